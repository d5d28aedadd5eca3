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
fn place(index: usize) -> PathBuf {
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

/// Looks at the files of disks that would be devices `first` and up. Blocking.
///
/// # Errors
/// Too many devices, a file that is not there, not readable by the jail's uid, or not as long as
/// its extent.
pub fn check(disks: &[Disk], first: usize, max_disks: usize) -> Result<(), VmError> {
    let extents = disks.iter().map(|disk| disk.extents.len()).sum::<usize>();
    if first + extents > max_disks {
        return Err(VmError::Unsupported {
            hypervisor: NAME,
            what: format!("have {} disk extents: at most {max_disks}", first + extents),
        });
    }
    for disk in disks {
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
}
