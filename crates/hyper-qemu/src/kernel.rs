//! Looks whether a file is a kernel that QEMU can boot, before QEMU does.
//!
//! QEMU loads nearly anything and then runs it: a text file hangs without a word. Accepted are an
//! ELF for x86-64 with a PVH entry point (Xen's `elfnote.h`, `XEN_ELFNOTE_PHYS32_ENTRY`) and a
//! bzImage (Linux, Documentation/arch/x86/boot.rst). All numbers in the file are checked.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use hyper_hypervisor::VmError;

use crate::NAME;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PHYS32_ENTRY: u32 = 18;
/// Bounds of what is read.
const MAX_HEADERS: u16 = 64;
const MAX_NOTES: u64 = 64 << 10;

/// Refuses what is no kernel.
pub fn check(path: &Path) -> Result<(), VmError> {
    let file = |source| VmError::File { what: "read guest kernel", path: path.to_owned(), source };
    let kernel = File::open(path).map_err(file)?;
    let length = kernel.metadata().map_err(file)?.len();
    match look(&kernel, length) {
        Ok(()) => Ok(()),
        Err(Wrong::Io(source)) if source.kind() != ErrorKind::UnexpectedEof => Err(file(source)),
        Err(Wrong::Io(_)) => Err(not(path, "it ends too early")),
        Err(Wrong::Form(why)) => Err(not(path, why)),
    }
}

fn not(path: &Path, why: &str) -> VmError {
    let detail = format!("kernel `{}` cannot be booted: {why}", path.display());
    VmError::Launch { hypervisor: NAME, detail }
}

enum Wrong {
    Io(io::Error),
    Form(&'static str),
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn look(kernel: &File, length: u64) -> Result<(), Wrong> {
    let magic: [u8; 4] = read(kernel, 0)?;
    if &magic == b"\x7fELF" { elf(kernel, length) } else { bzimage(kernel, length) }
}

fn elf(kernel: &File, length: u64) -> Result<(), Wrong> {
    let class: [u8; 2] = read(kernel, 4)?;
    let machine = u16::from_le_bytes(read(kernel, 18)?);
    if class != [2, 1] || machine != 62 {
        return Err(Wrong::Form("it is not for x86-64"));
    }
    let table = u64::from_le_bytes(read(kernel, 32)?);
    let (size, count) =
        (u16::from_le_bytes(read(kernel, 54)?), u16::from_le_bytes(read(kernel, 56)?));
    if size != 56 || count == 0 || count > MAX_HEADERS {
        return Err(Wrong::Form("its program headers are odd"));
    }
    let (mut loads, mut entry) = (0, false);
    for at in 0..u64::from(count) {
        let place = table.checked_add(at * 56).ok_or(Wrong::Form("its headers are odd"))?;
        let kind = u32::from_le_bytes(read(kernel, place)?);
        let offset = u64::from_le_bytes(read(kernel, place + 8)?);
        let bytes = u64::from_le_bytes(read(kernel, place + 32)?);
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(Wrong::Form("it is cut short"));
        }
        loads += u32::from(kind == PT_LOAD);
        entry |= kind == PT_NOTE && has_entry(kernel, offset, bytes)?;
    }
    match (loads, entry) {
        (0, _) => Err(Wrong::Form("it has nothing to load")),
        (_, false) => Err(Wrong::Form("it has no PVH entry point (CONFIG_PVH)")),
        _ => Ok(()),
    }
}

/// Whether a note segment holds Xen's note with the 32-bit entry point.
fn has_entry(kernel: &File, offset: u64, bytes: u64) -> io::Result<bool> {
    let end = offset + bytes.min(MAX_NOTES);
    let mut at = offset;
    while at + 12 <= end {
        let name = u64::from(u32::from_le_bytes(read(kernel, at)?));
        let content = u64::from(u32::from_le_bytes(read(kernel, at + 4)?));
        let kind = u32::from_le_bytes(read(kernel, at + 8)?);
        if kind == PHYS32_ENTRY && name == 4 && read(kernel, at + 12)? == *b"Xen\0" {
            return Ok(true);
        }
        at += 12 + name.next_multiple_of(4) + content.next_multiple_of(4);
    }
    Ok(false)
}

fn bzimage(kernel: &File, length: u64) -> Result<(), Wrong> {
    if &read::<4>(kernel, 0x202)? != b"HdrS" {
        return Err(Wrong::Form("it is neither an ELF nor a bzImage"));
    }
    let [sectors] = read(kernel, 0x1f1)?;
    let paragraphs = u32::from_le_bytes(read(kernel, 0x1f4)?);
    let sectors = if sectors == 0 { 4 } else { u64::from(sectors) };
    let needed = (sectors + 1) * 512 + u64::from(paragraphs) * 16;
    if needed > length { Err(Wrong::Form("it is cut short")) } else { Ok(()) }
}

fn read<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[cfg(test)]
mod test {
    use super::*;

    fn says(bytes: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        check(file.path()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn with(mut bytes: Vec<u8>, at: usize, what: &[u8]) -> Vec<u8> {
        bytes[at..at + what.len()].copy_from_slice(what);
        bytes
    }

    /// An ELF with one load segment and one note segment.
    fn small_elf() -> Vec<u8> {
        let mut elf = vec![0; 256];
        elf = with(elf, 0, b"\x7fELF\x02\x01");
        elf = with(elf, 18, &62_u16.to_le_bytes());
        elf = with(elf, 32, &64_u64.to_le_bytes());
        elf = with(elf, 54, &[56, 0, 2, 0]);
        elf = with(elf, 64, &PT_LOAD.to_le_bytes());
        elf = with(elf, 64 + 32, &200_u64.to_le_bytes());
        elf = with(elf, 120, &PT_NOTE.to_le_bytes());
        elf = with(elf, 120 + 8, &200_u64.to_le_bytes());
        elf = with(elf, 120 + 32, &20_u64.to_le_bytes());
        elf = with(elf, 200, &4_u32.to_le_bytes());
        elf = with(elf, 204, &4_u32.to_le_bytes());
        elf = with(elf, 208, &PHYS32_ENTRY.to_le_bytes());
        with(elf, 212, b"Xen\0")
    }

    #[test]
    fn a_kernel_is_told_from_other_files() {
        assert_eq!(says(&small_elf()), "");
        assert!(says(b"").contains("ends too early"));
        assert!(says(&[b'#'; 4096]).contains("neither an ELF nor a bzImage"));
        assert!(says(&with(small_elf(), 18, &[3])).contains("not for x86-64"));
        assert!(says(&with(small_elf(), 208, &[1])).contains("no PVH entry"));
        assert!(says(&small_elf()[..210]).contains("cut short"));
    }

    #[test]
    fn hostile_numbers_are_bounded() {
        let wild = u64::MAX.to_le_bytes();
        assert!(!says(&with(small_elf(), 32, &wild)).is_empty());
        assert!(!says(&with(small_elf(), 64 + 8, &wild)).is_empty());
        assert!(!says(&with(small_elf(), 56, &[0xff, 0xff])).is_empty());
        assert!(!says(&with(small_elf(), 200, &[0xff; 8])).is_empty());
        let mut image = vec![0; 4096];
        image = with(image, 0x202, b"HdrS");
        assert_eq!(says(&image), "");
        assert!(says(&with(image, 0x1f4, &[0xff; 4])).contains("cut short"));
    }
}
