//! Guest memory: what lies where, and giving pages back.
//!
//! ```text
//!      0 ┬ real-mode leftovers, page tables, boot parameters, command line, MP table
//!  1 MiB ┼ the kernel where it says, the initramfs at the end of low memory
//!  HOLE  ┼ no memory: virtio-mmio devices, I/O APIC, local APICs
//!  4 GiB ┼ the rest
//!        ┴ read-only disks that are mapped (images.rs)
//! ```
//! Pages are private and anonymous, so that what the guest never touches costs nothing; a guest
//! with shared directories has them in a memfd, because their server maps them, too, and reserved
//! huge pages are in a memfd always. Private memory begins huge pages on the host where it does in the
//! guest, so that KVM maps one as one where the host makes some, and what is filled at the start
//! asks for them ([`filled`]).

use std::io;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionMmap, GuestUsize, MmapRegion,
};

use crate::VmmError;
use crate::config::{HUGE_PAGE, Huge, Pages};

/// Guest memory; clones are the same memory.
pub(crate) type Memory = Arc<GuestMemoryMmap>;

/// Begin of the addresses without memory. Below 4 GiB by as much as Linux leaves for devices.
pub(crate) const HOLE: u64 = 0xd000_0000;
pub(crate) const FOUR_GIB: u64 = 1 << 32;
pub(crate) const PAGE: u64 = 4096;

/// Takes `bytes` of memory, of which nothing is touched yet, unless that is asked for. What is private
/// stays as long as the process, which is as long as its guest.
pub(crate) fn take(bytes: u64, shared: bool, pages: Pages) -> Result<Memory, VmmError> {
    let failed = |doing: &'static str| move |why: String| VmmError::Memory { doing, why };
    let ranges = ranges(bytes).ok_or_else(|| failed("lay out")(format!("{bytes} bytes")))?;
    let memory = match (pages.huge, shared) {
        (Huge::Reserved, _) => reserved(bytes, &ranges)?,
        (Huge::Transparent | Huge::No, false) => aligned(&ranges)?,
        (Huge::Transparent | Huge::No, true) => shareable(bytes, &ranges)?,
    };
    for region in memory.iter() {
        let advise = |advice: i32| {
            let length = usize::try_from(region.len()).map_err(io::Error::other)?;
            // SAFETY: it is a mapping of ours as a whole, and neither advice changes what is in it.
            let done = unsafe { libc::madvise(region.as_ptr().cast(), length, advice) };
            if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        if pages.huge == Huge::Transparent {
            advise(libc::MADV_HUGEPAGE).map_err(|error| {
                let why = format!("{error}: the host's kernel has no transparent huge pages");
                failed("ask for huge pages for")(why)
            })?;
        }
        if pages.prefault {
            advise(libc::MADV_POPULATE_WRITE).map_err(|error| {
                let old = error.kind() == io::ErrorKind::InvalidInput;
                let hint = if old { ": it needs Linux 5.14" } else { "" };
                failed("prefault")(format!("{error}{hint}"))
            })?;
        }
    }
    Ok(Arc::new(memory))
}

/// Memory that goes when it is dropped: for fuzz targets, which take it for each of their inputs.
#[cfg(feature = "fuzzing")]
pub(crate) fn brief(bytes: u64) -> Option<Memory> {
    GuestMemoryMmap::from_ranges(&ranges(bytes)?).ok().map(Arc::new)
}

type Ranges = [(GuestAddress, usize)];

/// Memory that another process can map, too.
fn shareable(bytes: u64, ranges: &Ranges) -> Result<GuestMemoryMmap, VmmError> {
    let failed = |doing: &'static str| move |why: String| VmmError::Memory { doing, why };
    let file = memfd(bytes, false).map_err(|error| failed("make a memfd")(error.to_string()))?;
    mapped(&file, ranges, libc::MAP_SHARED | libc::MAP_NORESERVE).map_err(failed("map"))
}

/// Huge pages of the host's pool. Not mapped with `MAP_NORESERVE`: what the pool cannot give is an
/// error now, and not a signal when the guest touches it.
fn reserved(bytes: u64, ranges: &Ranges) -> Result<GuestMemoryMmap, VmmError> {
    let failed = |doing: &'static str| move |why: String| VmmError::Memory { doing, why };
    if !bytes.is_multiple_of(HUGE_PAGE) {
        return Err(failed("lay out")(format!("{bytes} bytes are no whole huge pages")));
    }
    let pool = |error: &dyn std::fmt::Display| {
        let pages = bytes / HUGE_PAGE;
        failed("take huge pages for")(format!("{error}: {pages} of 2 MiB have to be free"))
    };
    let file = memfd(bytes, true).map_err(|error| pool(&error))?;
    mapped(&file, ranges, libc::MAP_SHARED | libc::MAP_HUGETLB).map_err(|why| pool(&why))
}

/// Private memory whose addresses on the host begin huge pages where the guest's do.
fn aligned(ranges: &Ranges) -> Result<GuestMemoryMmap, VmmError> {
    let failed = |why: String| VmmError::Memory { doing: "map", why };
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    let huge = usize::try_from(HUGE_PAGE).unwrap_or_default();
    let mut regions = Vec::new();
    for (start, length) in ranges {
        let wanted = length.checked_add(huge).ok_or_else(|| failed("it is too long".to_owned()))?;
        // SAFETY: a new mapping where the kernel has room.
        let whole = unsafe { libc::mmap(std::ptr::null_mut(), wanted, protection, flags, -1, 0) };
        if whole == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error().to_string()));
        }
        let whole = whole.cast::<u8>();
        let first = whole.wrapping_add(whole.align_offset(huge));
        // SAFETY: `length` bytes from there on are inside the mapping, which is this guest's and
        // stays as long as the process: the region does not end it.
        let mapping = unsafe { MmapRegion::build_raw(first, *length, protection, flags) };
        let mapping = mapping.map_err(|error| failed(error.to_string()))?;
        let region = GuestRegionMmap::new(mapping, *start);
        regions.push(region.ok_or_else(|| failed("it is too long".to_owned()))?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| failed(error.to_string()))
}

/// All of a file as memory.
fn mapped(
    file: &Arc<std::fs::File>,
    ranges: &Ranges,
    flags: i32,
) -> Result<GuestMemoryMmap, String> {
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, length) in ranges {
        let place = FileOffset::from_arc(Arc::clone(file), offset);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = MmapRegion::build(Some(place), *length, protection, flags)
            .map_err(|error| error.to_string())?;
        let region = GuestRegionMmap::new(mapping, *start);
        regions.push(region.ok_or("it is too long")?);
        offset += *length as u64;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| error.to_string())
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
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    mapped(&Arc::new(file), &ranges, flags).map(Arc::new).map_err(failed("map"))
}

/// Says that all of `bytes` from `start` on is about to be written, where it is private memory: a huge
/// page costs nothing more there, and saves the host and the guest 511 faults of 512. What cannot be
/// done is left: it is advice.
pub(crate) fn filled(memory: &GuestMemoryMmap, start: u64, bytes: u64) {
    let Some(region) = memory.find_region(GuestAddress(start)) else { return };
    let private = region.flags() & libc::MAP_SHARED == 0;
    let (first, length) = (region.start_addr().raw_value(), region.len());
    let from = (start - first) / HUGE_PAGE * HUGE_PAGE;
    let end = (start - first).saturating_add(bytes).min(length);
    let whole = end.div_ceil(HUGE_PAGE) * HUGE_PAGE;
    let to = if whole > length { length / HUGE_PAGE * HUGE_PAGE } else { whole };
    let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else { return };
    if private && from < to {
        let at = region.as_ptr().wrapping_add(from);
        // SAFETY: `from..to` is inside the region's mapping, and the advice changes nothing in it.
        unsafe { libc::madvise(at.cast(), to - from, libc::MADV_HUGEPAGE) };
    }
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

/// First address behind all of it, and not below 4 GiB: devices are there.
pub(crate) fn end(memory: &GuestMemoryMmap) -> u64 {
    memory.last_addr().raw_value().saturating_add(1).max(FOUR_GIB)
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

pub(crate) fn memfd(bytes: u64, huge: bool) -> io::Result<Arc<std::fs::File>> {
    let size = if huge { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC | size)?;
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
    fn memory_that_is_asked_for_is_there_and_aligned() {
        let resident = |memory: &Memory| {
            let region = memory.iter().next().unwrap();
            let mut seen = vec![0_u8; region.len() as usize / 4096];
            // SAFETY: `seen` has a byte for each page of the mapping.
            let asked = unsafe {
                libc::mincore(region.as_ptr().cast(), region.len() as usize, seen.as_mut_ptr())
            };
            assert_eq!(asked, 0);
            seen.iter().filter(|page| **page & 1 == 1).count()
        };
        for shared in [false, true] {
            for (huge, prefault) in [
                (Huge::No, false),
                (Huge::No, true),
                (Huge::Transparent, false),
                (Huge::Transparent, true),
            ] {
                let memory = match take(8 << 20, shared, Pages { huge, prefault }) {
                    Ok(memory) => memory,
                    // Not every kernel has them, and it is told.
                    Err(error) => {
                        assert!(huge == Huge::Transparent, "{error}");
                        continue;
                    }
                };
                let wanted = if prefault { 2048 } else { 0 };
                assert_eq!(resident(&memory), wanted, "{shared} {huge:?}");
                let at = memory.iter().next().unwrap().as_ptr() as u64;
                assert!(shared || at.is_multiple_of(HUGE_PAGE));
                memory.write_obj(7_u64, GuestAddress((8 << 20) - 8)).unwrap();
            }
        }
    }

    #[test]
    fn what_will_be_filled_asks_for_whole_huge_pages() {
        let memory = take(8 << 20, false, Pages::default()).unwrap();
        // Odd, too long, in no memory, wrapping around: nothing of it may fail.
        let huge = HUGE_PAGE;
        for (start, bytes) in [(huge + 5, 7), (huge * 3, u64::MAX), (1 << 40, 4), (u64::MAX, 1)] {
            filled(&memory, start, bytes);
        }
        let at = memory.iter().next().unwrap().as_ptr() as u64;
        assert!(at.is_multiple_of(huge));
        let asked = |offset: u64| {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let (mut inside, mut found) = (false, None);
            for line in maps.lines() {
                let mut range = line.split(' ').next().unwrap_or_default().split('-');
                let end = |text: Option<&str>| text.and_then(|t| u64::from_str_radix(t, 16).ok());
                if let (Some(from), Some(to)) = (end(range.next()), end(range.next())) {
                    inside = (from..to).contains(&(at + offset));
                }
                if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                    found = Some(flags.split_whitespace().any(|flag| flag == "hg"));
                }
            }
            found
        };
        // Kernels without huge pages have no such flag.
        if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            let seen = [0, huge, 2 * huge, 3 * huge].map(asked);
            assert_eq!(seen, [Some(false), Some(true), Some(false), Some(true)]);
        }
        let shared = take(8 << 20, true, Pages::default()).unwrap();
        filled(&shared, 0, huge);
    }

    #[test]
    fn a_pool_that_is_too_small_is_told() {
        let pages = Pages { huge: Huge::Reserved, prefault: false };
        let error = take(1 << 40, true, pages).map(drop).unwrap_err().chain();
        assert!(error.contains("524288 of 2 MiB"), "{error}");
        let error = take(3 << 20, true, pages).map(drop).unwrap_err().chain();
        assert!(error.contains("no whole huge pages"), "{error}");
    }

    #[test]
    fn pages_that_are_given_back_are_zero_in_private_and_shared_memory() {
        for shared in [false, true] {
            let memory = take(1 << 20, shared, Pages::default()).unwrap();
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
