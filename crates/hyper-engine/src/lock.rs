//! One engine per data root and exec root: a locked file with the holder's process id.
//!
//! The lock is the kernel's (`flock`), so it ends with the process however that ends: with what it was just
//! starting, that is, which has its descriptors until it is the new program.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long the last child of a hyperd that was killed may take to become its program.
const HANDOVER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Lock {
    /// Takes `directory/hyperd.lock`. Blocks, for [`HANDOVER`] at most.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join("hyperd.lock");
        let wrong = |action| Error::file(action, path.clone());
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(wrong("open"))?;
        let deadline = Instant::now() + HANDOVER;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(wrong("lock")(error)),
            }
            let mut holder = String::new();
            // An unreadable file is as good as an empty one.
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut holder));
            if is_another(holder.trim()) || Instant::now() > deadline {
                return Err(Error::Conflict(format!(
                    "{} is in use by another hyperd (pid {}): stop it, or choose another directory",
                    directory.display(),
                    if holder.trim().is_empty() { "unknown" } else { holder.trim() }
                )));
            }
            std::thread::sleep(POLL);
        }
        file.set_len(0).map_err(wrong("truncate"))?;
        file.rewind().map_err(wrong("rewind"))?;
        writeln!(file, "{}", std::process::id()).map_err(wrong("write"))?;
        Ok(Self(file))
    }
}

/// Whether there is such a process that has not ended, and is not this one: what this one let go, its last child may
/// still have.
fn is_another(pid: &str) -> bool {
    let pid = pid.parse::<u32>().ok().filter(|pid| *pid != std::process::id());
    let stat = pid.map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")));
    // The state follows the name, which is in brackets and may have any letter.
    let state = |text: String| text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    stat.and_then(Result::ok).and_then(state).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(dir.path().join("hyperd.lock"), other.id().to_string()).unwrap();
        let error = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", other.id())), "{error}");
        drop(first);
        other.kill().unwrap();
        other.wait().unwrap();
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn what_a_killed_hyperd_was_starting_does_not_keep_the_next_one_out() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        std::fs::write(dir.path().join("hyperd.lock"), gone.id().to_string()).unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(lock);
        });
        Lock::take(dir.path()).unwrap();
        child.join().unwrap();
    }
}
