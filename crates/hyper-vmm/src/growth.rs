//! Memory for a running guest beyond what it booted with: where it lies, and how much of it is
//! there.
//!
//! ```text
//!  booted │ … base, aligned ┬ usable: mapped, and shown to the guest and to all devices
//!                           ┼ in the steps in which it was asked for; it stays
//!                           ┴ addresses only, up to the host's memory
//! ```
//! What of the usable part the guest has is between its driver and the device
//! (`virtio/mem.rs`). What it has not is memory of its own all the same, empty until it is touched:
//! a guest that touches it gets no other's, and the limit of the monitor's cgroup counts it.
//!
//! Not all is shown at once, since KVM and `vhost` have tables as long as what they are shown.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::VmmError;
use crate::config::{Config, HUGE_PAGE, Huge};
use crate::memory::{self, Memory};
use crate::save::Growing;
use crate::virtio::mem::{self, Region};

/// Linux adds memory in blocks of this, and in larger ones to guests with much memory; then, too,
/// its own blocks are not larger than [`LARGE_BLOCK`].
const BLOCK: u64 = 128 << 20;
const LARGE_BLOCK: u64 = 2 << 30;
const MUCH: u64 = 64 << 30;
/// Most steps: each is a slot of KVM's, which has 509 since ever.
const STEPS: u64 = 128;
/// Number of the first step's slot; those before are for what the guest booted with.
const FIRST_SLOT: u32 = 256;

/// The addresses, and what is there.
#[derive(Debug)]
pub(crate) struct Growth {
    /// All that the guest sees without this.
    seen: Memory,
    /// Bytes that it booted with.
    booted: u64,
    base: u64,
    bytes: u64,
    step: u64,
    usable: u64,
    steps: u32,
    /// Where the first byte is in this process.
    host: usize,
    /// Where another process maps it, too.
    file: Option<Arc<File>>,
    huge: bool,
}

/// What is there in addition.
#[derive(Debug)]
pub(crate) struct More {
    /// For KVM: slot, guest's address, our own, length.
    pub slot: u32,
    pub start: u64,
    pub host: u64,
    pub bytes: u64,
    /// All memory of the guest.
    pub memory: Memory,
}

impl Growth {
    /// Reserves addresses behind `seen` for `bytes` more than the `booted` ones, rounded up to whole
    /// blocks. Nothing is there yet.
    pub fn reserve(
        seen: &Memory,
        booted: u64,
        bytes: u64,
        shared: bool,
        huge: Huge,
    ) -> Result<Self, VmmError> {
        let failed = |why: String| VmmError::Memory { doing: "reserve addresses for more", why };
        let much = booted >= MUCH;
        let block = if much { LARGE_BLOCK } else { BLOCK };
        let whole = |bytes: u64, of: u64| bytes.checked_next_multiple_of(of);
        let bytes = whole(bytes, block).ok_or_else(|| failed(format!("{bytes} bytes")))?;
        let step = whole(bytes.div_ceil(STEPS), block).unwrap_or(bytes);
        let length = bytes.checked_add(HUGE_PAGE).and_then(|length| usize::try_from(length).ok());
        let length = length.ok_or_else(|| failed(format!("{bytes} bytes")))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel has room.
        let place =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error().to_string()));
        }
        // Stays as long as the process, as all of the guest's memory. Aligned for huge pages.
        let host = (place as usize).next_multiple_of(HUGE_PAGE as usize);
        // Made now: once the guest runs nothing can be (seccomp.rs).
        let file = shared.then(|| memory::memfd(0, false)).transpose();
        Ok(Self {
            base: memory::end(seen).next_multiple_of(LARGE_BLOCK),
            seen: Arc::clone(seen),
            booted,
            bytes,
            step,
            usable: 0,
            steps: 0,
            host,
            file: file.map_err(|error| failed(error.to_string()))?,
            huge: huge == Huge::Transparent,
        })
    }

    /// First address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Most that can be there.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are there.
    pub fn usable(&self) -> u64 {
        self.usable
    }

    /// Has at least `wanted` bytes there; `None`: they are already. It counts once the guest and
    /// its devices were shown it: see [`Self::shown`].
    pub fn extend(&mut self, wanted: u64) -> Result<Option<More>, VmmError> {
        if wanted <= self.usable {
            return Ok(None);
        }
        let failed = |why: String| VmmError::Memory { doing: "map more", why };
        let usable = wanted.checked_next_multiple_of(self.step).unwrap_or(self.bytes);
        let usable = usable.min(self.bytes);
        if wanted > usable {
            return Err(failed(format!("{wanted} bytes, at most {}", self.bytes)));
        }
        self.map(usable).map_err(|error| failed(error.to_string()))?;
        let length = usize::try_from(usable).map_err(|error| failed(error.to_string()))?;
        let sharing = if self.file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let mut mapping = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(sharing | libc::MAP_NORESERVE);
        if let Some(file) = &self.file {
            mapping = mapping.with_file_offset(FileOffset::from_arc(Arc::clone(file), 0));
        }
        // SAFETY: `usable` bytes from there on were mapped by now, in a mapping that is this
        // guest's and stays as long as the process: the region does not end it.
        let mapping = unsafe { mapping.with_raw_mmap_pointer(self.host as *mut u8) }.build();
        let mapping = mapping.map_err(|error| failed(error.to_string()))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(self.base))
            .ok_or_else(|| failed("it is too long".to_owned()))?;
        let memory: GuestMemoryMmap =
            self.seen.insert_region(Arc::new(region)).map_err(|error| failed(error.to_string()))?;
        Ok(Some(More {
            slot: FIRST_SLOT + self.steps,
            start: self.base + self.usable,
            host: self.host as u64 + self.usable,
            bytes: usable - self.usable,
            memory: Arc::new(memory),
        }))
    }

    /// The guest has been shown `more`.
    pub fn shown(&mut self, more: &More) {
        self.usable += more.bytes;
        self.steps += 1;
    }

    /// Makes memory of the addresses from what is usable up to `usable`.
    fn map(&self, usable: u64) -> io::Result<()> {
        let here = self.host + usize::try_from(self.usable).map_err(io::Error::other)?;
        let length = usize::try_from(usable - self.usable).map_err(io::Error::other)?;
        let (at, protection) = (here as *mut libc::c_void, libc::PROT_READ | libc::PROT_WRITE);
        let done = match &self.file {
            None => {
                // SAFETY: addresses that `reserve` took for this, which nobody uses yet.
                unsafe { libc::mprotect(at, length, protection) == 0 }
            }
            Some(file) => {
                use std::os::fd::AsRawFd as _;
                file.set_len(usable)?;
                let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
                let offset = libc::off_t::try_from(self.usable).map_err(io::Error::other)?;
                let fd = file.as_raw_fd();
                // SAFETY: as above; what it replaces is the reservation.
                let mapped = unsafe { libc::mmap(at, length, protection, flags, fd, offset) };
                mapped != libc::MAP_FAILED
            }
        };
        if !done {
            return Err(io::Error::last_os_error());
        }
        if self.huge {
            // What it booted with has been given them, or was refused; this is for speed only.
            // SAFETY: memory of ours, in which the advice changes nothing.
            unsafe { libc::madvise(at, length, libc::MADV_HUGEPAGE) };
        }
        Ok(())
    }
}

/// A guest's room for more memory, and what its driver has of it.
#[derive(Debug)]
pub(crate) struct Grows {
    growth: Mutex<Growth>,
    pub region: Arc<Region>,
}

impl Grows {
    /// As `room` says; and all the memory that devices reach.
    pub fn make(
        config: &Config,
        room: Growing,
        vm: &VmFd,
        seen: &Memory,
    ) -> Result<(Option<Self>, Memory), VmmError> {
        let mut memory = Arc::clone(seen);
        if room.bytes == 0 {
            return Ok((None, memory));
        }
        let (huge, shared) = (config.pages.huge, config.share.is_some());
        let growth = Growth::reserve(seen, config.memory_bytes, room.bytes, shared, huge)?;
        let region = Arc::new(Region::new(growth.base(), growth.bytes(), mem::BLOCK));
        let grows = Self { growth: Mutex::new(growth), region };
        grows.extend(room.usable, vm, |more| {
            memory = Arc::clone(more);
            Ok(())
        })?;
        Ok((Some(grows), memory))
    }

    /// For a guest that is saved.
    pub fn room(&self) -> Growing {
        let growth = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        Growing { bytes: growth.bytes(), usable: growth.usable() }
    }

    /// Asks for `bytes` of memory in all. `show` gives devices what they did not reach before.
    pub fn ask(
        &self,
        bytes: u64,
        vm: &VmFd,
        show: impl FnOnce(&Memory) -> Result<(), VmmError>,
    ) -> Result<(), VmmError> {
        let (booted, most) = {
            let growth = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
            (growth.booted, growth.bytes)
        };
        let refuse = |why: String| VmmError::Config { what: "other memory", why };
        let more = bytes.checked_sub(booted).ok_or_else(|| {
            refuse(format!("{bytes} bytes are less than the {booted} it booted with"))
        })?;
        let more = more.checked_next_multiple_of(mem::BLOCK).filter(|more| *more <= most);
        let more = more.ok_or_else(|| {
            refuse(format!("{bytes} bytes are more than the {} it has room for", booted + most))
        })?;
        self.extend(more, vm, show)?;
        self.region.ask(more);
        Ok(())
    }

    /// Bytes that the driver is asked to have, and that it has.
    pub fn more(&self) -> (u64, u64) {
        (self.region.wanted(), self.region.has())
    }

    fn extend(
        &self,
        wanted: u64,
        vm: &VmFd,
        show: impl FnOnce(&Memory) -> Result<(), VmmError>,
    ) -> Result<(), VmmError> {
        let mut growth = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(more) = growth.extend(wanted)? else { return Ok(()) };
        // The devices first: this is what may be refused, and can be done again.
        show(&more.memory)?;
        let region = kvm_userspace_memory_region {
            slot: more.slot,
            flags: 0,
            guest_phys_addr: more.start,
            memory_size: more.bytes,
            userspace_addr: more.host,
        };
        // SAFETY: memory of that length is there, and stays as long as the process.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(VmmError::kvm("show the guest more memory"))?;
        growth.shown(&more);
        self.region.use_up_to(growth.usable());
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use vm_memory::{Bytes as _, GuestMemory as _, GuestMemoryRegion as _};

    fn booted(shared: bool) -> Memory {
        memory::take(1 << 20, shared, Default::default()).unwrap()
    }

    #[test]
    fn memory_comes_in_steps_and_keeps_what_is_in_it() {
        for shared in [false, true] {
            let booted = booted(shared);
            let mut growth =
                Growth::reserve(&booted, 1 << 20, 300 << 20, shared, Huge::No).unwrap();
            assert_eq!((growth.base(), growth.bytes()), (4 << 30, 384 << 20));
            let at = GuestAddress(growth.base());
            let first = growth.extend(4096).unwrap().unwrap();
            assert_eq!((first.slot, first.start, first.bytes), (256, 4 << 30, 128 << 20));
            growth.shown(&first);
            first.memory.write_obj(7_u64, at).unwrap();
            assert!(first.memory.write_obj(7_u64, GuestAddress(at.0 + (128 << 20))).is_err());
            assert!(growth.extend(128 << 20).unwrap().is_none());
            let second = growth.extend(200 << 20).unwrap().unwrap();
            assert_eq!((second.slot, second.start), (257, (4 << 30) + (128 << 20)));
            assert_eq!(second.host, first.host + (128 << 20));
            growth.shown(&second);
            assert_eq!(second.memory.read_obj::<u64>(at).unwrap(), 7, "{shared}");
            second.memory.write_obj(9_u64, GuestAddress(at.0 + (200 << 20))).unwrap();
            assert_eq!(second.memory.num_regions(), 2);
            let grown = second.memory.find_region(at).unwrap();
            assert_eq!(grown.file_offset().is_some(), shared, "another process can map it");
            // What goes back to the host reads as zero.
            memory::give_back(&second.memory, at, 4096).unwrap();
            assert_eq!(second.memory.read_obj::<u64>(at).unwrap(), 0, "{shared}");
            assert!(growth.extend(385 << 20).is_err());
            assert_eq!(growth.usable(), 256 << 20);
        }
    }

    #[test]
    fn a_large_region_has_few_steps_and_a_large_guest_large_blocks() {
        let growth = Growth::reserve(&booted(false), 1 << 20, 1 << 40, false, Huge::No).unwrap();
        assert!(growth.bytes() / growth.step <= STEPS);
        let large = memory::take(MUCH, false, Default::default()).unwrap();
        let growth = Growth::reserve(&large, MUCH, 1, false, Huge::No).unwrap();
        assert_eq!((growth.bytes(), growth.base() % LARGE_BLOCK), (LARGE_BLOCK, 0));
        assert!(growth.base() >= memory::end(&large));
    }
}
