//! Looks whether a file is a kernel that can be executed whole: a file that is cut short would
//! die of a signal somewhere in its boot, and nobody would know why.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use hyper_hypervisor::VmError;

use crate::NAME;

/// Size of a 64-bit ELF header and of one of its program headers (elf(5)).
const HEADER: usize = 64;
const SEGMENT: u64 = 56;
const LOAD: u32 = 1;

/// Opens the kernel and checks that all of its segments are in the file. Blocking.
///
/// # Errors
/// Not there, not an executable of this machine, or shorter than it says.
pub fn open(path: &Path) -> Result<File, VmError> {
    let fail = |source| VmError::File { what: "use guest kernel", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(|source| {
        if source.kind() == ErrorKind::NotFound {
            VmError::Missing {
                hypervisor: NAME,
                what: format!("guest kernel `{}`", path.display()),
                hint: "build it with kernel/build or install hyperkernel-um".to_owned(),
            }
        } else {
            fail(source)
        }
    })?;
    check(&mut file).map_err(fail)?;
    Ok(file)
}

fn check(file: &mut File) -> Result<(), Error> {
    let bad = |text: &str| Error::new(ErrorKind::InvalidData, text);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(bad("not a regular file"));
    }
    let mut header = [0; HEADER];
    file.read_exact(&mut header).map_err(|_| bad("not a user-mode kernel: too short"))?;
    // \x7fELF, 64 bits, little endian.
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err(bad("not a user-mode kernel: no 64-bit ELF program"));
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    if machine != MACHINE {
        return Err(bad("not a user-mode kernel for this machine"));
    }
    let table = u64::from_le_bytes(part(&header, 32));
    let count = u16::from_le_bytes([header[56], header[57]]);
    for at in 0..u64::from(count) {
        let mut segment = [0; SEGMENT as usize];
        let offset = table.checked_add(at * SEGMENT).ok_or_else(|| bad("header out of range"))?;
        file.read_exact_at(&mut segment, offset).map_err(|_| bad("the file is cut short"))?;
        if u32::from_le_bytes([segment[0], segment[1], segment[2], segment[3]]) != LOAD {
            continue;
        }
        let start = u64::from_le_bytes(part(&segment, 8));
        let length = u64::from_le_bytes(part(&segment, 32));
        if start.checked_add(length).is_none_or(|end| end > found.len()) {
            return Err(bad("the file is cut short"));
        }
    }
    Ok(())
}

/// `e_machine` of this host.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

fn part(bytes: &[u8], at: usize) -> [u8; 8] {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    eight
}
