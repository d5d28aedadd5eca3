//! `BUNDLE/exit.json`: how a container ended, for whoever comes after the supervisor.
//!
//! Its place is taken when the container is made: a container whose last deed was to fill the disk
//! still leaves word of its end.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use hyper_task::pod::{EXIT_FILE, ExitRecord};

use rustix::fs::FallocateFlags;

use crate::PodError;

/// Room that is taken beforehand, in bytes; a record that is longer may find none.
const ROOM: usize = 4096;
/// Where it is taken.
const RESERVED: &str = ".exit.json.new";

/// Takes the room for a record.
///
/// # Errors
/// The system's; a full disk, most likely.
pub fn reserve_exit(bundle: &Path) -> Result<(), PodError> {
    let path = bundle.join(RESERVED);
    let write = || {
        let mut file = std::fs::File::create(&path)?;
        // Blocks of its own at once, where the file system can; written bytes are only a promise.
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, ROOM as u64) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                file.write_all(&[b' '; ROOM])
            }
            done => Ok(done?),
        }
    };
    write().map_err(PodError::file("write", &path))
}

/// Writes the record; it is whole or absent whenever somebody looks.
///
/// # Errors
/// The system's.
pub fn write_exit(bundle: &Path, record: &ExitRecord) -> Result<(), PodError> {
    let path = bundle.join(EXIT_FILE);
    let temporary = bundle.join(RESERVED);
    let write = || {
        let mut text = serde_json::to_vec(record)?;
        // JSON may be followed by blanks.
        text.resize(text.len().max(ROOM), b' ');
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).open(&temporary)?;
        file.write_all(&text)?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(PodError::file("write", &path))
}

/// Reads it; `None` when the container has not ended under a living supervisor.
///
/// # Errors
/// The system's, or a record that cannot be understood.
pub fn read_exit(bundle: &Path) -> Result<Option<ExitRecord>, PodError> {
    let path = bundle.join(EXIT_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| PodError::file("understand", path)(error.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PodError::file("read", path)(error)),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_record_survives() {
        let dir = tempfile::tempdir().unwrap();
        reserve_exit(dir.path()).unwrap();
        assert_eq!(read_exit(dir.path()).unwrap(), None);
        let record = ExitRecord {
            code: 137,
            unix_ns: 5,
            oom_killed: true,
            reason: Some("hypervisor killed by signal 9".into()),
            note: None,
        };
        write_exit(dir.path(), &record).unwrap();
        assert_eq!(read_exit(dir.path()).unwrap(), Some(record));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
