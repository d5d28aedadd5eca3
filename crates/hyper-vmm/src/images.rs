//! Read-only disks as guest memory: their files back to back, each page the host's page cache.
//!
//! ```text
//!  0 … booted memory ┬ to a whole section ┬ image 0: file, file, …, zeros ┬ image 1 … ┬
//! ```
//! All guests with an image share its pages, and none has a copy of its own. The mapping is private:
//! what a guest, or a device for it, writes there is that guest's alone and never reaches a file.
//! A file must stay as long as it is: a guest whose image lost pages is ended.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{
    Address as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _, GuestRegionMmap,
    MmapRegion,
};

use crate::VmmError;
use crate::memory::{FOUR_GIB, Memory, PAGE};

/// Where Linux lets persistent memory begin and end: its smallest unit of hotplug
/// (SUBSECTION_SIZE; Documentation/mm/memory-model.rst).
const UNIT: u64 = 2 << 20;
/// Images begin where no memory shares a section of Linux's memory map.
const SECTION: u64 = 128 << 20;
const LOOK: Duration = Duration::from_secs(5);
const WHAT: &str = "a mapped disk";

/// Where an image is for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub start: u64,
    pub bytes: u64,
}

/// The files of an image, in their order, each with the bytes that are of the image.
pub(crate) type Image = Vec<(File, u64)>;

/// Files that are mapped.
#[derive(Debug, Default)]
pub(crate) struct Mapped(Image);

impl Mapped {
    /// How often somebody should look whether they [`shrank`](Self::shrank); never without any.
    pub fn look(&self) -> Option<Duration> {
        (!self.0.is_empty()).then_some(LOOK)
    }

    /// Whether pages are no longer there. A CPU that wants one stops with an error; but hosts before
    /// Linux 6.13 let a guest that takes page faults asynchronously try again for ever.
    pub fn shrank(&self) -> bool {
        let whole = |(file, bytes): &(File, u64)| match rustix::fs::fstat(file) {
            Ok(now) => u64::try_from(now.st_size).is_ok_and(|now| now >= *bytes),
            Err(_) => true,
        };
        !self.0.iter().all(whole)
    }
}

/// All images behind `memory`: memory with them, where each is, and their files.
pub(crate) fn map(
    memory: &Memory,
    images: Vec<Image>,
) -> Result<(Memory, Vec<Place>, Mapped), VmmError> {
    let lay_out = || VmmError::Config { what: WHAT, why: "there is no address for it".to_owned() };
    let end = memory.last_addr().raw_value().max(FOUR_GIB - 1);
    let mut start = end.checked_next_multiple_of(SECTION).ok_or_else(lay_out)?;
    let (mut all, mut places, mut mapped) = (Arc::clone(memory), Vec::new(), Vec::new());
    for files in images {
        let region = Arc::new(region(&files, start)?);
        mapped.extend(files);
        let bytes = region.len();
        all = Arc::new(
            all.insert_region(region)
                .map_err(|error| VmmError::Config { what: WHAT, why: error.to_string() })?,
        );
        places.push(Place { start, bytes });
        start = start.checked_add(bytes).ok_or_else(lay_out)?;
    }
    Ok((all, places, Mapped(mapped)))
}

fn region(files: &[(File, u64)], start: u64) -> Result<GuestRegionMmap, VmmError> {
    let refuse = |why: String| VmmError::Config { what: WHAT, why };
    let mut bytes = 0_u64;
    for (file, length) in files {
        let has = file.metadata().map_err(VmmError::io("look at a disk's file"))?.len();
        if *length == 0 || !length.is_multiple_of(PAGE) || *length > has {
            return Err(refuse(format!("{length} bytes of a file that has {has}, by whole pages")));
        }
        bytes = bytes.checked_add(*length).ok_or_else(|| refuse("it is too long".to_owned()))?;
    }
    let whole = bytes.checked_next_multiple_of(UNIT).and_then(|whole| usize::try_from(whole).ok());
    let whole = whole.filter(|whole| *whole > 0);
    let whole = whole.ok_or_else(|| refuse(format!("{bytes} bytes")))?;

    let failed =
        |error: io::Error| VmmError::Memory { doing: "map a disk", why: error.to_string() };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel has room.
    let first = unsafe {
        let anonymous = flags | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), whole, protection, anonymous, -1, 0)
    };
    if first == libc::MAP_FAILED {
        return Err(failed(io::Error::last_os_error()));
    }
    let first = first.cast::<u8>();
    let mut at = 0;
    for (file, length) in files {
        let length = usize::try_from(*length).unwrap_or(0);
        // SAFETY: the lengths add up to no more than `whole`, so this replaces part of the mapping
        // above, which is nobody else's yet.
        let mapped = unsafe {
            let address = first.wrapping_add(at).cast();
            let fixed = flags | libc::MAP_FIXED;
            libc::mmap(address, length, protection, fixed, file.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        at += length;
    }
    // SAFETY: `whole` bytes from `first` on are this guest's, and stay as long as the process: the
    // region does not end them.
    let mapping = unsafe { MmapRegion::build_raw(first, whole, protection, flags) };
    let mapping = mapping.map_err(|error| refuse(error.to_string()))?;
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| refuse("it is too long".to_owned()))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Write as _;
    use vm_memory::Bytes as _;

    use crate::config::Pages;
    use crate::memory;

    fn file(pages: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for byte in pages {
            file.write_all(&[*byte; 4096]).unwrap();
        }
        file
    }

    fn taken(bytes: u64) -> Memory {
        memory::take(bytes, false, Pages::default()).unwrap()
    }

    #[test]
    fn files_are_back_to_back_and_zeros_follow() {
        let ram = taken(64 << 20);
        let images =
            vec![vec![(file(&[1, 2]), 8192), (file(&[3, 9]), 4096)], vec![(file(&[4]), 4096)]];
        let (all, places, _) = map(&ram, images).unwrap();
        let unit = |at: u64| Place { start: FOUR_GIB + at * UNIT, bytes: UNIT };
        assert_eq!(places, [unit(0), unit(1)]);
        let byte = |at: u64| all.read_obj::<u8>(GuestAddress(at)).unwrap();
        let start = places[0].start;
        let seen: Vec<u8> = (0..5).map(|page| byte(start + page * 4096 + 17)).collect();
        assert_eq!(seen, [1, 2, 3, 0, 0]);
        assert_eq!((byte(start + UNIT - 1), byte(start + UNIT)), (0, 4));
        assert_eq!(memory::bytes(&ram), 64 << 20, "memory itself is as it was");
    }

    #[test]
    fn images_of_large_guests_are_behind_their_memory() {
        let ram = taken((4 << 30) + 4096);
        let (_, places, _) = map(&ram, vec![vec![(file(&[1]), 4096)]]).unwrap();
        let end = ram.last_addr().raw_value() + 1;
        assert!(places[0].start >= end && places[0].start < end + SECTION, "{places:?} {end}");
        assert!(places[0].start.is_multiple_of(SECTION));
    }

    #[test]
    fn what_is_written_never_reaches_the_file() {
        let image = file(&[1]);
        let again = image.try_clone().unwrap();
        let (all, places, _) = map(&taken(64 << 20), vec![vec![(image, 4096)]]).unwrap();
        all.write_obj(7_u8, GuestAddress(places[0].start)).unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&again, &mut byte, 0).unwrap();
        assert_eq!(byte, [1]);
    }

    #[test]
    fn a_file_that_shrinks_is_seen() {
        let image = file(&[1, 2, 3]);
        let again = image.try_clone().unwrap();
        let (_, _, mapped) = map(&taken(64 << 20), vec![vec![(image, 8192)]]).unwrap();
        for (bytes, shrank) in [(12288, false), (8192, false), (8191, true), (8192, false)] {
            again.set_len(bytes).unwrap();
            assert_eq!(mapped.shrank(), shrank, "{bytes}");
        }
        assert_eq!((mapped.look(), Mapped::default().look()), (Some(LOOK), None));
    }

    #[test]
    fn files_that_are_too_short_or_no_whole_pages_are_refused() {
        for (pages, bytes) in [(&[1_u8][..], 8192), (&[1, 2], 4097), (&[1], 0)] {
            let error = map(&taken(64 << 20), vec![vec![(file(pages), bytes)]]).unwrap_err();
            assert!(error.chain().contains("by whole pages"), "{}", error.chain());
        }
        let error = map(&taken(64 << 20), vec![vec![]]).unwrap_err().chain();
        assert!(error.contains("0 bytes"), "{error}");
    }
}
