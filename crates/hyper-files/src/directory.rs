//! Steps of a walk through directories that others change meanwhile: what is gone is passed over,
//! and no link is followed.

use std::{
    ffi::CStr,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat, openat, statat},
    io::Errno,
};

use crate::failure::{Outcome, invalid};
use crate::{MAX_DEPTH, wrong};

/// What `name` is; `None` when it is gone. `path` is for errors, here and below.
pub fn look(dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Outcome<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(wrong("look at", path, error)),
    }
}

/// Opens the directory `name`; `None` when it is gone, or no directory any more.
pub fn open(parent: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Outcome<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(wrong("open", path, error)),
    }
}

/// Whether an entry is the directory itself, or the one above.
pub fn is_dots(name: &CStr) -> bool {
    name == c"." || name == c".."
}

/// Refuses one more level below so many.
pub fn check_depth(levels: usize, path: &[u8]) -> Outcome<()> {
    if levels < MAX_DEPTH {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    Err(invalid(format!("directories deeper than {MAX_DEPTH} below {shown}…")))
}
