//! Disks as open descriptors for the monitor, and which of a running guest's places are free.

use std::os::fd::OwnedFd;

use hyper_hypervisor::{Disk, VmError, open_extent};
use hyper_vmm::config::{self, MAX_EXTENTS};

use crate::{NAME, machine};

/// Opens the files of a disk. Blocks. The descriptors' numbers are the caller's to set.
pub fn open(disk: &Disk) -> Result<(config::Disk, Vec<OwnedFd>), VmError> {
    let unsupported = |what: String| Err(VmError::Unsupported { hypervisor: NAME, what });
    if disk.extents.is_empty() {
        return unsupported("attach a disk without extents".to_owned());
    }
    if disk.extents.len() > MAX_EXTENTS {
        let count = disk.extents.len();
        return unsupported(format!("attach a disk of {count} extents, at most {MAX_EXTENTS}"));
    }
    if disk.extents.len() > 1 && !disk.read_only {
        return unsupported("attach a writable disk of several extents".to_owned());
    }
    let mut files = Vec::with_capacity(disk.extents.len());
    let mut extents = Vec::with_capacity(disk.extents.len());
    for extent in &disk.extents {
        files.push(open_extent(extent, disk.read_only)?.into());
        extents.push(config::Extent { fd: 0, bytes: extent.bytes });
    }
    let (read_only, ephemeral) = (disk.read_only, disk.ephemeral);
    Ok((config::Disk { extents, read_only, ephemeral }, files))
}

/// The places of one guest.
#[derive(Debug)]
pub struct Places {
    /// Disks at launch.
    first: usize,
    free: Vec<bool>,
}

impl Places {
    pub fn new(disks: usize, spares: usize) -> Self {
        Self { first: disks, free: vec![true; spares] }
    }

    /// Takes a place for such a disk: its number among the places.
    pub fn take(&mut self, read_only: bool) -> Result<usize, VmError> {
        let fits =
            |(at, free): (usize, &bool)| *free && machine::spare_is_read_only(at) == read_only;
        let Some(at) = self.free.iter().enumerate().position(fits) else {
            let kind = if read_only { "read-only" } else { "writable" };
            let what = format!("add another {kind} disk to this guest: its places are used up");
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        };
        self.free[at] = false;
        Ok(at)
    }

    pub fn give_back(&mut self, place: usize) {
        self.free[place] = true;
    }

    /// Device node of the disk in `place`.
    pub fn node(&self, place: usize) -> String {
        machine::disk_node(self.first + place)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn places_are_taken_by_kind_and_given_back() {
        let mut places = Places::new(1, 3);
        assert_eq!(places.take(false).unwrap(), 1);
        assert!(places.take(false).unwrap_err().to_string().contains("another writable disk"));
        assert_eq!((places.take(true).unwrap(), places.take(true).unwrap()), (0, 2));
        assert!(places.take(true).is_err());
        places.give_back(0);
        assert_eq!(places.node(places.free.iter().position(|free| *free).unwrap()), "/dev/vdb");
    }
}
