//! The directory of a saved guest: `state` and `memory`, whose forms are the hypervisor's.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hyper_hypervisor::VmError;

const STATE: &str = "state";
const MEMORY: &str = "memory";

/// Makes the files of a saved guest, state and memory, which must not be there. They hold all that the guest knew: only their owner
/// can read them. Blocks.
pub fn create_saved(directory: &Path) -> Result<[OwnedFd; 2], VmError> {
    let create = |name: &str| {
        let path = directory.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path);
        file.map(OwnedFd::from).map_err(|source| VmError::File { what: "create", path, source })
    };
    Ok([create(STATE)?, create(MEMORY)?])
}

/// Opens the files of a saved guest, state and memory, for reading. Blocks.
pub fn open_saved(directory: &Path) -> Result<(OwnedFd, OwnedFd), VmError> {
    let open = |name: &str| {
        let path = directory.join(name);
        let file = File::open(&path);
        let what = "open a saved guest's";
        file.map(OwnedFd::from).map_err(|source| VmError::File { what, path, source })
    };
    Ok((open(STATE)?, open(MEMORY)?))
}
