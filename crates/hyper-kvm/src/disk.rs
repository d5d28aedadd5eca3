//! Disks as open descriptors for the monitor.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

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
    let (read_only, ephemeral, mapped) = (disk.read_only, disk.ephemeral, disk.mapped);
    Ok((config::Disk { extents, read_only, ephemeral, mapped }, files))
}

/// A whole disk of the host and its partitions, as files say what they are on (`st_dev`). Blocks.
pub fn parts((major, minor): (u32, u32)) -> Vec<u64> {
    let mut parts = vec![rustix::fs::makedev(major, minor)];
    let disk = format!("/sys/dev/block/{major}:{minor}");
    for entry in fs::read_dir(disk).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.join("partition").exists() {
            parts.extend(number(&path));
        }
    }
    // The same disk is named by the same list.
    parts.sort_unstable();
    parts
}

fn number(partition: &Path) -> Option<u64> {
    let text = fs::read_to_string(partition.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}
