//! Disks as UML sees them: every extent is a `ubd` device backed by one file.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use hyper_hypervisor::{Disk, Extent, VmError};
use hyper_jail::Bind;

use crate::NAME;

/// Name of a device in the guest: ubda … ubdz, ubdaa … (kernel/patches, as `sd` counts).
pub fn node(index: usize) -> String {
    hyper_adapter::node("ubd", index)
}

/// Where the file of a device is inside the jail.
pub fn place(index: usize) -> PathBuf {
    PathBuf::from(format!("/d{index}"))
}

/// The setting of a device, as the kernel takes it on its command line and over mconsole:
/// `r` read-only; `d` data, never a copy-on-write header that would name another file; `c` no
/// lock: layers never change and are shared, and a lock on the whole file would keep out QEMU.
pub fn setting(index: usize, read_only: bool) -> String {
    let flags = if read_only { "rdc" } else { "d" };
    format!("ubd{index}{flags}={}", place(index).display())
}

/// How the file of a device is shown in the jail. One that is written belongs to the jail's uid
/// from then on.
pub fn bind(index: usize, extent: &Extent, read_only: bool) -> Bind {
    let bind = Bind::new(&extent.path, place(index));
    if read_only { bind } else { bind.writable().owned() }
}

/// Which devices a guest has, by their numbers: those of the launch, then those that were added.
#[derive(Debug)]
pub struct Numbers {
    launched: usize,
    /// Whether it is read-only, of each that has a file.
    added: Vec<Option<bool>>,
}

impl Numbers {
    /// Of `most`, the first `launched` are not to be had.
    pub fn new(launched: usize, most: usize) -> Self {
        Self { launched, added: vec![None; most.saturating_sub(launched)] }
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.added.iter().filter(|read_only| read_only.is_none()).count()
    }

    /// Takes the lowest free one.
    pub fn take(&mut self, read_only: bool) -> Option<usize> {
        let at = self.added.iter().position(Option::is_none)?;
        self.added[at] = Some(read_only);
        Some(self.launched + at)
    }

    pub fn give_back(&mut self, number: usize) {
        if let Some(at) = number.checked_sub(self.launched).filter(|at| *at < self.added.len()) {
            self.added[at] = None;
        }
    }

    /// Number and mode of the devices that these nodes are; none unless all of them were added.
    pub fn of(&self, nodes: &[String]) -> Option<Vec<(usize, bool)>> {
        let of = |wanted: &String| {
            let mut all = (self.launched..).zip(&self.added);
            all.find_map(|(at, mode)| mode.filter(|_| node(at) == *wanted).map(|mode| (at, mode)))
        };
        nodes.iter().map(of).collect()
    }
}

/// Looks at the files of disks where `free` devices can be had. Blocking.
///
/// # Errors
/// Too many devices, a file that is not there, not readable by the jail's uid, or not as long as
/// its extent.
pub fn check(disks: &[Disk], free: usize) -> Result<(), VmError> {
    let extents = disks.iter().map(|disk| disk.extents.len()).sum::<usize>();
    if extents > free {
        return Err(VmError::Unsupported {
            hypervisor: NAME,
            what: format!("have {extents} disk extents more: at most {free}"),
        });
    }
    for disk in disks {
        if disk.mapped {
            let what = "map a disk into a guest".to_owned();
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        for extent in &disk.extents {
            check_file(extent, disk.read_only)?;
        }
    }
    Ok(())
}

fn check_file(extent: &Extent, read_only: bool) -> Result<(), VmError> {
    let what = if read_only { "use read-only disk" } else { "use disk" };
    let fail = |source| VmError::File { what, path: extent.path.clone(), source };
    let found = fs::metadata(&extent.path).map_err(fail)?;
    if !found.is_file() {
        return Err(fail(Error::new(ErrorKind::InvalidInput, "not a regular file")));
    }
    if found.len() != extent.bytes {
        let text = format!("has {} bytes, not {}", found.len(), extent.bytes);
        return Err(fail(Error::new(ErrorKind::InvalidData, text)));
    }
    // The jail's uid owns nothing it only reads.
    if read_only && found.permissions().mode() & 0o004 == 0 {
        let text = "the jail's uid may not read it: make it readable for all (its directory \
                    need not be)";
        return Err(fail(Error::new(ErrorKind::PermissionDenied, text)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_never_let_the_kernel_look_for_a_cow_header() {
        assert_eq!(setting(0, true), "ubd0rdc=/d0");
        assert_eq!(setting(31, false), "ubd31d=/d31");
    }

    #[test]
    fn numbers_are_found_by_their_nodes_and_used_again() {
        let mut numbers = Numbers::new(1, 3);
        assert_eq!(
            (numbers.take(true), numbers.take(false), numbers.take(true)),
            (Some(1), Some(2), None)
        );
        let of = |numbers: &Numbers, nodes: &[&str]| {
            numbers.of(&nodes.iter().map(|node| (*node).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(&numbers, &["/dev/ubdc", "/dev/ubdb"]), Some(vec![(2, false), (1, true)]));
        assert_eq!(of(&numbers, &["/dev/ubdb", "/dev/ubda"]), None, "of the launch");
        numbers.give_back(1);
        assert_eq!((of(&numbers, &["/dev/ubdb"]), numbers.free()), (None, 1));
        assert_eq!(numbers.take(false), Some(1));
    }
}
