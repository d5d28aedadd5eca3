//! One engine per data root and exec root: a locked file with the holder's process id.
//!
//! The lock is the kernel's (`flock`), so it ends with the process however that ends.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use crate::{Error, Result};

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Lock {
    /// Takes `directory/hyperd.lock`. Blocks for the file's operations only.
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
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the text: an unreadable file is as good as an empty one.
                let _ = file.read_to_string(&mut holder);
                return Err(Error::Conflict(format!(
                    "{} is in use by another hyperd (pid {}): stop it, or choose another directory",
                    directory.display(),
                    if holder.trim().is_empty() { "unknown" } else { holder.trim() }
                )));
            }
            Err(TryLockError::Error(error)) => return Err(wrong("lock")(error)),
        }
        file.set_len(0).map_err(wrong("truncate"))?;
        file.rewind().map_err(wrong("rewind"))?;
        writeln!(file, "{}", std::process::id()).map_err(wrong("write"))?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let error = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
