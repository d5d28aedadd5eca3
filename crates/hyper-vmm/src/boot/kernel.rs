//! Kernel and initramfs into guest memory. The files are hostile: every length is bounded by the
//! memory there is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::HIGH_MEMORY;
use crate::VmmError;
use crate::memory::{self, Memory};

const PAGE: u64 = 4096;
/// The 64-bit entry of a bzImage, behind where it was loaded (boot.rst, "64-bit boot protocol").
const ENTRY_64: u64 = 0x200;
/// Bit of `xloadflags`: the kernel has that entry.
const XLF_KERNEL_64: u16 = 1;
/// `e_machine` of x86-64 and its place in an ELF header.
const EM_X86_64: u16 = 62;
const E_MACHINE: usize = 18;
/// Places in headers of 64-bit ELF files (elf(5)).
const E_PHOFF: usize = 32;
const E_PHNUM: usize = 56;
const PH_BYTES: usize = 56;
const P_PADDR: usize = 24;
const P_MEMSZ: usize = 40;
const PT_LOAD: u32 = 1;
/// Most segments that are looked at before they are loaded.
const SEGMENTS: u16 = 16;

/// A kernel in memory.
pub(super) struct Kernel {
    pub entry: u64,
    /// First byte behind it, its uninitialized data included.
    pub end: u64,
    /// Of a bzImage.
    pub header: Option<setup_header>,
}

/// Where the initramfs is.
#[derive(Clone, Copy)]
pub(super) struct Initramfs {
    pub start: u64,
    pub bytes: u64,
}

pub(super) fn load(memory: &Memory, mut file: File) -> Result<Kernel, VmmError> {
    let refuse = |why: String| VmmError::Kernel { why };
    let mut head = [0; 64];
    let head_bytes = read_head(&mut file, &mut head)
        .map_err(|error| refuse(format!("its first bytes cannot be read: {error}")))?;
    let kernel = if head[..head_bytes].starts_with(b"\x7fELF") {
        let machine = u16::from_le_bytes([head[E_MACHINE], head[E_MACHINE + 1]]);
        if machine != EM_X86_64 {
            return Err(refuse(format!("it is for another machine (ELF machine {machine})")));
        }
        foresee(memory, &head, &file);
        let loaded = Elf::load(&**memory, None, &mut file, Some(GuestAddress(HIGH_MEMORY)))
            .map_err(|error| refuse(error.to_string()))?;
        Kernel { entry: loaded.kernel_load.0, end: loaded.kernel_end, header: None }
    } else if is_bzimage(&mut file) {
        let loaded = BzImage::load(&**memory, None, &mut file, Some(GuestAddress(HIGH_MEMORY)))
            .map_err(|error| refuse(error.to_string()))?;
        let header = loaded.setup_header.unwrap_or_default();
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(refuse("it is a bzImage without a 64-bit entry".to_owned()));
        }
        // While it unpacks itself it uses memory behind its image.
        let start = loaded.kernel_load.0;
        let end = start.max(header.pref_address).saturating_add(u64::from(header.init_size));
        memory::filled(memory, header.pref_address, header.init_size.into());
        let entry = start.saturating_add(ENTRY_64);
        Kernel { entry, end: end.max(loaded.kernel_end), header: Some(header) }
    } else {
        return Err(refuse("it is neither an ELF file nor a bzImage".to_owned()));
    };
    let room = memory::low_end(memory);
    if kernel.entry >= room || kernel.end > room {
        let why = format!("it needs memory up to {:#x}, the guest has {room:#x}", kernel.end);
        return Err(refuse(why));
    }
    Ok(kernel)
}

/// At the end of low memory, behind everything the kernel needs before it has found it.
pub(super) fn load_initramfs(
    memory: &Memory,
    mut file: File,
    kernel_end: u64,
) -> Result<Initramfs, VmmError> {
    let refuse = |why: String| VmmError::Initramfs { why };
    let bytes = file.metadata().map_err(|error| refuse(error.to_string()))?.len();
    let room = memory::low_end(memory);
    let start = room.checked_sub(bytes).map(|start| start / PAGE * PAGE);
    let Some(start) = start.filter(|start| *start >= kernel_end) else {
        let why = format!(
            "its {bytes} bytes do not fit into the {room} bytes of guest memory behind the kernel"
        );
        return Err(refuse(why));
    };
    file.seek(SeekFrom::Start(0)).map_err(|error| refuse(error.to_string()))?;
    let length = usize::try_from(bytes).map_err(|error| refuse(error.to_string()))?;
    memory::filled(memory, start, bytes);
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, length)
        .map_err(|error| refuse(error.to_string()))?;
    Ok(Initramfs { start, bytes })
}

/// Tells memory what an ELF file's segments will fill. Whatever is wrong with it is the loader's to say.
fn foresee(memory: &Memory, head: &[u8; 64], file: &File) {
    let long = |from: &[u8], at: usize| {
        from[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let count = u16::from_le_bytes([head[E_PHNUM], head[E_PHNUM + 1]]).min(SEGMENTS);
    for index in 0..u64::from(count) {
        let mut segment = [0; PH_BYTES];
        let at = long(head, E_PHOFF).checked_add(index * PH_BYTES as u64);
        let read = at.map(|at| file.read_exact_at(&mut segment, at));
        if matches!(read, Some(Ok(()))) && segment.starts_with(&PT_LOAD.to_le_bytes()) {
            memory::filled(memory, long(&segment, P_PADDR), long(&segment, P_MEMSZ));
        }
    }
}

/// Reads as much of `head` as there is.
fn read_head(file: &mut File, head: &mut [u8]) -> std::io::Result<usize> {
    file.seek(SeekFrom::Start(0))?;
    let mut read = 0;
    while read < head.len() {
        match file.read(&mut head[read..])? {
            0 => break,
            count => read += count,
        }
    }
    Ok(read)
}

/// `HdrS` at 0x202.
fn is_bzimage(file: &mut File) -> bool {
    let mut magic = [0; 4];
    file.seek(SeekFrom::Start(0x202)).is_ok()
        && file.read_exact(&mut magic).is_ok()
        && &magic == b"HdrS"
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn says(bytes: &[u8]) -> String {
        let memory = memory::take(32 << 20, false, Default::default()).unwrap();
        load(&memory, file(bytes)).err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// An ELF file with one segment.
    fn elf(machine: u16, entry: u64, at: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend(machine.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(entry.to_le_bytes());
        bytes.extend(64_u64.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 1, 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(5_u32.to_le_bytes());
        for long in [120, at, at, in_file, in_memory, 4096] {
            bytes.extend(long.to_le_bytes());
        }
        bytes.extend(b"code");
        bytes
    }

    #[test]
    fn an_elf_kernel_is_loaded_where_it_says() {
        let memory = memory::take(32 << 20, false, Default::default()).unwrap();
        let kernel = load(&memory, file(&elf(62, 0x100_0000, 0x100_0000, 4, 8192))).unwrap();
        assert_eq!((kernel.entry, kernel.end), (0x100_0000, 0x100_2000));
        let mut code = [0; 4];
        memory.read_slice(&mut code, GuestAddress(0x100_0000)).unwrap();
        assert_eq!(&code, b"code");
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        assert!(says(b"").contains("neither an ELF file nor a bzImage"));
        assert!(says(b"#!/bin/sh\n").contains("neither"));
        assert!(says(b"\x7fELF").contains("machine 0"));
        assert!(says(&elf(183, 0x100_0000, 0x100_0000, 4, 4)).contains("machine 183"));
        // Cut short, out of memory, wrapping around.
        assert!(!says(&elf(62, 0x100_0000, 0x100_0000, 4096, 4096)).is_empty());
        assert!(!says(&elf(62, 0x100_0000, 1 << 40, 4, 4)).is_empty());
        assert!(says(&elf(62, 0x100_0000, 0x100_0000, 4, 1 << 40)).contains("needs memory"));
        assert!(!says(&elf(62, 0x100_0000, 0x100_0000, 4, u64::MAX)).is_empty());
        assert!(!says(&elf(62, 0x10, 0x100_0000, 4, 4)).is_empty());
        let mut zimage = vec![0; 1024];
        zimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(!says(&zimage).is_empty());
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_refused() {
        let memory = memory::take(32 << 20, false, Default::default()).unwrap();
        let large = tempfile::tempfile().unwrap();
        large.set_len(64 << 20).unwrap();
        let error = load_initramfs(&memory, large, 0).err().unwrap().to_string();
        assert!(error.contains("67108864 bytes do not fit"), "{error}");
        let place = load_initramfs(&memory, file(b"070701"), 0x100_0000).unwrap();
        assert_eq!((place.start, place.bytes), ((32 << 20) - 4096, 6));
    }
}
