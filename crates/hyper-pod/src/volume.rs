//! Volumes that are disks: one guest writes, or several read.
//!
//! A file system that two kernels write to is lost, so the lock is on the file itself and lives as
//! long as the supervisor that holds it: no daemon has to remember who had it.

use std::fs::File;
use std::time::{Duration, Instant};

use hyper_hypervisor::Disk;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::PodError;

/// A guest that has just ended lets go within this.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Takes the locks of a disk's files.
pub(crate) async fn hold(disk: &Disk) -> Result<Vec<File>, PodError> {
    let how = if disk.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let until = Instant::now() + PATIENCE;
    let mut held = Vec::new();
    for extent in &disk.extents {
        let path = &extent.path;
        let file = File::open(path).map_err(PodError::file("open disk volume", path))?;
        loop {
            match flock(&file, how) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < until => tokio::time::sleep(POLL).await,
                Err(Errno::WOULDBLOCK) => {
                    return Err(PodError::Unsupported(format!(
                        "disk volume `{}` is in use by another pod: one pod writes to it, or \
                         several mount it read-only; stop that pod, or use a volume of driver \
                         `local`",
                        path.display()
                    )));
                }
                Err(error) => return Err(PodError::file("lock disk volume", path)(error.into())),
            }
        }
        held.push(file);
    }
    Ok(held)
}
