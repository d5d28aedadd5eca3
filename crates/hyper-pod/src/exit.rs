//! `BUNDLE/exit.json`: how a container ended, for whoever comes after the supervisor.

use std::io::Write as _;
use std::path::Path;

use hyper_task::pod::{EXIT_FILE, ExitRecord};

use crate::PodError;

/// Writes the record; it is whole or absent whenever somebody looks.
///
/// # Errors
/// The system's.
pub fn write_exit(bundle: &Path, record: &ExitRecord) -> Result<(), PodError> {
    let path = bundle.join(EXIT_FILE);
    let temporary = bundle.join(".exit.json.new");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
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
        assert_eq!(read_exit(dir.path()).unwrap(), None);
        let record = ExitRecord {
            code: 137,
            unix_ns: 5,
            oom_killed: true,
            reason: Some("hypervisor killed by signal 9".into()),
        };
        write_exit(dir.path(), &record).unwrap();
        assert_eq!(read_exit(dir.path()).unwrap(), Some(record));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
