//! Guest memory: what lies where, and giving pages back.
//!
//! ```text
//!      0 ┬ real-mode leftovers, page tables, boot parameters, command line, MP table
//!  1 MiB ┼ the kernel where it says, the initramfs at the end of low memory
//!  HOLE  ┼ no memory: virtio-mmio devices, I/O APIC, local APICs
//!  4 GiB ┴ the rest
//! ```
//! Pages are private and anonymous, so that what the guest never touches costs nothing; a guest
//! with shared directories has them in a memfd, because their server maps them, too.

use std::io;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionMmap, GuestUsize, MmapRegion,
};

use crate::VmmError;

/// Guest memory; clones are the same memory.
pub(crate) type Memory = Arc<GuestMemoryMmap>;

/// Begin of the addresses without memory. Below 4 GiB by as much as Linux leaves for devices.
pub(crate) const HOLE: u64 = 0xd000_0000;
const FOUR_GIB: u64 = 1 << 32;
const PAGE: u64 = 4096;

/// Takes `bytes` of memory, of which nothing is touched yet.
pub(crate) fn take(bytes: u64, shared: bool) -> Result<Memory, VmmError> {
    let failed = |doing: &'static str| move |why: String| VmmError::Memory { doing, why };
    let ranges = ranges(bytes).ok_or_else(|| failed("lay out")(format!("{bytes} bytes")))?;
    let memory = if shared {
        let file = memfd(bytes).map_err(|error| failed("make a memfd")(error.to_string()))?;
        let mut offset = 0;
        let mut with_files = Vec::new();
        for (start, length) in ranges {
            let file = FileOffset::from_arc(Arc::clone(&file), offset);
            with_files.push((start, length, Some(file)));
            offset += length as u64;
        }
        GuestMemoryMmap::from_ranges_with_files(with_files)
    } else {
        GuestMemoryMmap::from_ranges(&ranges)
    };
    memory.map(Arc::new).map_err(|error| failed("map")(error.to_string()))
}

/// Memory as `file` has it, copy-on-write: what is never written to is there once for all guests.
pub(crate) fn copy(bytes: u64, file: std::fs::File) -> Result<Memory, VmmError> {
    let failed = |doing: &'static str| move |why: String| VmmError::Memory { doing, why };
    let ranges = ranges(bytes).ok_or_else(|| failed("lay out")(format!("{bytes} bytes")))?;
    let length = file.metadata().map_err(VmmError::io("look at saved memory"))?.len();
    if length != bytes {
        let why = format!("the saved memory has {length} bytes, the guest {bytes}");
        return Err(failed("map")(why));
    }
    let file = Arc::new(file);
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, length) in ranges {
        let place = FileOffset::from_arc(Arc::clone(&file), offset);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        let mapping = MmapRegion::build(Some(place), length, protection, flags)
            .map_err(|error| failed("map")(error.to_string()))?;
        let region = GuestRegionMmap::new(mapping, start);
        regions.push(region.ok_or_else(|| failed("map")("it is too long".to_owned()))?);
        offset += length as u64;
    }
    let memory = GuestMemoryMmap::from_regions(regions);
    memory.map(Arc::new).map_err(|error| failed("map")(error.to_string()))
}

/// End of the memory below the hole.
pub(crate) fn low_end(memory: &GuestMemoryMmap) -> u64 {
    let first = memory.iter().find(|region| region.start_addr() == GuestAddress(0));
    first.map_or(0, vm_memory::GuestMemoryRegion::len)
}

/// The memory above 4 GiB: its length in bytes.
pub(crate) fn high_bytes(memory: &GuestMemoryMmap) -> u64 {
    let high = memory.iter().find(|region| region.start_addr().raw_value() == FOUR_GIB);
    high.map_or(0, vm_memory::GuestMemoryRegion::len)
}

/// All of it.
pub(crate) fn bytes(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().map(vm_memory::GuestMemoryRegion::len).sum()
}

/// Gives whole pages of `bytes` from `start` on back to the host; they read as zeros afterwards, or
/// as they were saved. Addresses that are no memory are an error, and nothing is done.
pub(crate) fn give_back(
    memory: &GuestMemoryMmap,
    start: GuestAddress,
    bytes: usize,
) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    if !start.raw_value().is_multiple_of(PAGE) || !(bytes as u64).is_multiple_of(PAGE) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let slice = memory.get_slice(start, bytes).map_err(invalid)?;
    let region = memory.find_region(start);
    let shared = region.is_some_and(|region| region.flags() & libc::MAP_SHARED != 0);
    let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    // SAFETY: the slice is page-aligned memory of the guest, which nobody here holds references
    // into: it is only ever accessed through volatile copies.
    let done = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), bytes, advice) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn ranges(bytes: u64) -> Option<Vec<(GuestAddress, usize)>> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE) {
        return None;
    }
    let low = bytes.min(HOLE);
    let mut ranges = vec![(GuestAddress(0), usize::try_from(low).ok()?)];
    if bytes > low {
        ranges.push((GuestAddress(FOUR_GIB), usize::try_from(bytes - low).ok()?));
    }
    Some(ranges)
}

fn memfd(bytes: u64) -> io::Result<Arc<std::fs::File>> {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)?;
    let file = std::fs::File::from(file);
    file.set_len(bytes)?;
    Ok(Arc::new(file))
}

/// All regions: start, host address, length.
pub(crate) fn regions(memory: &GuestMemoryMmap) -> Vec<(u64, u64, GuestUsize)> {
    memory
        .iter()
        .map(|region| (region.start_addr().raw_value(), region.as_ptr() as u64, region.len()))
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use vm_memory::Bytes as _;

    #[test]
    fn what_does_not_fit_below_the_hole_is_above_four_gigabytes() {
        let small = ranges(64 << 20).unwrap();
        assert_eq!(small, [(GuestAddress(0), 64 << 20)]);
        let large = ranges(8 << 30).unwrap();
        assert_eq!(large[0], (GuestAddress(0), 0xd000_0000));
        assert_eq!(large[1], (GuestAddress(1 << 32), (8 << 30) - 0xd000_0000));
        assert_eq!(ranges(4097), None);
        assert_eq!(ranges(0), None);
    }

    #[test]
    fn pages_that_are_given_back_are_zero_in_private_and_shared_memory() {
        for shared in [false, true] {
            let memory = take(1 << 20, shared).unwrap();
            memory.write_obj(7_u64, GuestAddress(0x3000)).unwrap();
            memory.write_obj(9_u64, GuestAddress(0x4000)).unwrap();
            give_back(&memory, GuestAddress(0x3000), 4096).unwrap();
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 0, "{shared}");
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x4000)).unwrap(), 9, "{shared}");
            for (start, bytes) in [(1, 4096), (0x3000, 17), (0xff000, 8192), (1 << 40, 4096)] {
                assert!(give_back(&memory, GuestAddress(start), bytes).is_err(), "{start} {bytes}");
            }
        }
    }
}
