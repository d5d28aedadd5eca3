//! Disks as open descriptors for the monitor.

use std::os::fd::OwnedFd;

use hyper_adapter::check_stitched;
use hyper_hypervisor::{Disk, VmError, open_extent};
use hyper_vmm::config::{self, MAX_EXTENTS};

use crate::NAME;

/// Opens the files of a disk. Blocks. The descriptors' numbers are the caller's to set.
pub fn open(disk: &Disk) -> Result<(config::Disk, Vec<OwnedFd>), VmError> {
    check_stitched(NAME, disk, MAX_EXTENTS)?;
    let mut files = Vec::with_capacity(disk.extents.len());
    let mut extents = Vec::with_capacity(disk.extents.len());
    for extent in &disk.extents {
        files.push(open_extent(extent, disk.read_only)?.into());
        extents.push(config::Extent { fd: 0, bytes: extent.bytes });
    }
    let (read_only, ephemeral) = (disk.read_only, disk.ephemeral);
    Ok((config::Disk { extents, read_only, ephemeral }, files))
}
