//! `--init`: the first process of a container, which starts the real one, forwards signals to it
//! and reaps whoever lost a parent.
//!
//! The agent's own program, executed under the name [`NAME`] in place of the container's. It is
//! executed and not only forked, so that nothing of the agent's memory is in the container.
//!
//! ```text
//!   block signals ─▶ start PROGRAM ─▶ ┌ SIGCHLD: reap all; the program's end ─▶ exit as it did
//!                                     └ any other: to the program
//! ```

use std::{
    ffi::{CString, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use rustix::{
    process::{WaitOptions, setpgid, wait},
    stdio::stdin,
    termios::tcsetpgrp,
};

use crate::sys::{self, Forked};

/// `argv[0]` of this mode; the program's file, its own `argv[0]` and the rest follow.
pub(crate) const NAME: &str = "docker-init";

/// Runs until the program in `words` has ended, and ends like it.
pub(crate) fn run(mut words_left: impl Iterator<Item = OsString>) -> ! {
    let fail = |code: i32, why: &str| -> ! {
        eprintln!("{NAME}: {why}");
        sys::exit(code)
    };
    let (Some(file), Some(name)) = (words_left.next(), words_left.next()) else {
        fail(127, "no program to run");
    };
    if let Err(error) = sys::block_signals() {
        fail(125, &format!("block signals: {error}"));
    }
    let program = match sys::fork_plain() {
        Ok(Forked::Parent(program)) => program,
        Ok(Forked::Child) => {
            // A group of its own, so that a terminal's signals are the program's alone.
            let _leads_one = setpgid(None, None);
            sys::default_signals();
            // Words of a command line have no NUL in them.
            let words = |words: Vec<Vec<u8>>| -> Vec<CString> {
                words.into_iter().filter_map(|word| CString::new(word).ok()).collect()
            };
            let path = CString::new(file.as_bytes()).unwrap_or_default();
            let arguments = std::iter::once(name).chain(words_left).map(OsString::into_vec);
            let environment = std::env::vars_os()
                .map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat());
            let error =
                sys::execute(&path, &words(arguments.collect()), &words(environment.collect()));
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            fail(code, &format!("exec {}: {error}", file.display()));
        }
        Err(error) => fail(125, &format!("fork: {error}")),
    };
    // Without a terminal there is no foreground to give.
    if tcsetpgrp(stdin(), program).is_ok() {
        // It may have asked for input before the terminal was its own.
        let _ended = sys::kill(program.as_raw_nonzero().get(), libc::SIGCONT);
    }
    loop {
        // Ends and signals come one by one; a look at all children misses none.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == program {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                sys::exit(status.exit_status().or(signal).unwrap_or(255));
            }
        }
        match sys::next_signal() {
            libc::SIGCHLD | libc::SIGTTIN | libc::SIGTTOU => {}
            // It may end at any moment by itself.
            signal => drop(sys::kill(program.as_raw_nonzero().get(), signal)),
        }
    }
}
