//! A step that failed, on its way to the supervisor.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};

use hyper_jail::wire::Report;

/// What was done to which object, and why it did not work.
#[derive(Debug)]
pub struct Fail {
    doing: Cow<'static, str>,
    object: String,
    errno: i32,
    hint: String,
}

impl Fail {
    /// `doing` reads like `bind`, `object` like `/usr/lib`.
    pub fn new(doing: &'static str, object: impl Display, error: impl Into<io::Error>) -> Self {
        let errno = error.into().raw_os_error().unwrap_or(libc::EIO);
        Self { doing: doing.into(), object: object.to_string(), errno, hint: String::new() }
    }

    /// What to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// For the pipe to init.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { doing, object, errno, hint } = self;
        format!("{doing}\0{object}\0{errno}\0{hint}").into_bytes()
    }

    /// What [`Fail::to_bytes`] or [`tell_exec`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut parts = text.split('\0').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let (doing, object, errno, hint) = (part(), part(), part(), part());
        Self { doing: doing.into(), object, errno: errno.parse().unwrap_or(libc::EIO), hint }
    }

    pub fn report(self) -> Report {
        Report::Failed {
            doing: self.doing.into_owned(),
            object: self.object,
            errno: self.errno,
            hint: self.hint,
        }
    }
}

/// `result.or_fail("bind", path)?`
pub trait OrFail<T> {
    fn or_fail(self, doing: &'static str, object: impl Display) -> Result<T, Fail>;
}

impl<T, E: Into<io::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, doing: &'static str, object: impl Display) -> Result<T, Fail> {
        self.map_err(|error| Fail::new(doing, object, error))
    }
}

/// Tells init that exec failed, with one `write`: more may not be allowed any more.
pub fn tell_exec(mut word: &File, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let hint = match errno {
        libc::ENOENT => "is its interpreter bound, and the program itself?",
        libc::EACCES => "is it executable for everybody, on a mount that is?",
        libc::ENOEXEC => "not a program of this machine",
        _ => "",
    };
    let _ = word.write_all(format!("execute\0the program\0{errno}\0{hint}").as_bytes());
}
