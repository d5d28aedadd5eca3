//! The network device with its queues in the host's kernel (`/dev/vhost-net`, Linux, vhost.h): packets go between tap and
//! guest without a thread of the monitor's and without being copied twice. The kernel looks at what the guest says, and
//! nothing is counted.
#![expect(
    unsafe_code,
    reason = "VHOST_NET_SET_BACKEND; the crate's own device opens its file by name"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{
    Address as _, Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _,
    GuestRegionMmap,
};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{Card, F_MRG_RXBUF, HEADER, KIND, SIZES, tap};
use crate::memory::Memory;
use crate::virtio::{Device, F_VERSION_1, Live};

/// Without these the tap's header has another length than the guest's.
const NEEDED: u64 = F_MRG_RXBUF | F_VERSION_1;

/// The device.
#[derive(Debug)]
pub(crate) struct KernelNet {
    card: Card,
    tap: OwnedFd,
    vhost: File,
    /// Features that the kernel knows; the others are the tap's.
    known: u64,
    live: Option<Live>,
}

impl KernelNet {
    /// What of an open `/dev/vhost-net` is to be known first.
    ///
    /// # Errors
    /// The host's cannot serve such a device.
    pub fn try_out(vhost: &File) -> io::Result<u64> {
        let kernel = Kernel { vhost, memory: &Memory::default() };
        kernel.set_owner().map_err(io::Error::other)?;
        let known = kernel.get_features().map_err(io::Error::other)?;
        if known & NEEDED == NEEDED {
            Ok(known)
        } else {
            Err(io::Error::other(format!("it has the features {known:#x} only")))
        }
    }

    /// A device on `tap`, which must have `IFF_VNET_HDR`; `known`: from [`Self::try_out`].
    pub fn new(tap: OwnedFd, vhost: File, known: u64, mac: [u8; 6], mtu: u16) -> io::Result<Self> {
        tap::set_header(&tap, HEADER)?;
        Ok(Self { card: Card { mac, mtu }, tap, vhost, known, live: None })
    }

    fn connect(&self, live: &Live) -> io::Result<()> {
        let kernel = Kernel { vhost: &self.vhost, memory: &live.memory };
        let failed = |error: vhost::Error| io::Error::other(error);
        kernel.set_features(live.features & self.known).map_err(failed)?;
        kernel.set_mem_table(&table(&live.memory)).map_err(failed)?;
        for (at, queue) in live.queues.iter().enumerate() {
            kernel.set_vring_num(at, queue.size()).map_err(failed)?;
            let rings = VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: queue.desc_table(),
                used_ring_addr: queue.used_ring(),
                avail_ring_addr: queue.avail_ring(),
                log_addr: None,
            };
            kernel.set_vring_addr(at, &rings).map_err(failed)?;
            kernel.set_vring_base(at, queue.next_avail()).map_err(failed)?;
            kernel.set_vring_call(at, live.interrupt.line()).map_err(failed)?;
            let kick = live.kicks.get(at).ok_or(io::ErrorKind::InvalidInput)?;
            kernel.set_vring_kick(at, kick).map_err(failed)?;
        }
        for (at, kick) in live.kicks.iter().enumerate() {
            kernel.set_backend(at, self.tap.as_fd().as_raw_fd())?;
            // For what was there before the kernel looked.
            let _ = kick.write(1);
        }
        Ok(())
    }
}

impl Device for KernelNet {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        Card::FEATURES
    }

    fn queues(&self) -> &[u16] {
        &SIZES
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        self.card.config(offset, data);
    }

    fn is_served_elsewhere(&self) -> bool {
        true
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        if !live.queues.iter().all(Queue::ready) {
            return Err(io::Error::other("queues are missing"));
        }
        Card::agree(&self.tap, live.features)?;
        let connected = self.connect(&live);
        self.live = Some(live);
        if connected.is_err() {
            // One of the queues may be served.
            drop(self.stop());
        }
        connected
    }

    /// The kernel takes another table while it works.
    fn extend(&mut self, memory: &Memory) -> Option<io::Result<()>> {
        let Some(live) = &mut self.live else { return Some(Ok(())) };
        let told = Kernel { vhost: &self.vhost, memory }.set_mem_table(&table(memory));
        if told.is_ok() {
            live.memory = Memory::clone(memory);
        }
        Some(told.map_err(io::Error::other))
    }

    fn stop(&mut self) -> Vec<Queue> {
        let Some(mut live) = self.live.take() else { return Vec::new() };
        let kernel = Kernel { vhost: &self.vhost, memory: &live.memory };
        for (at, queue) in live.queues.iter_mut().enumerate() {
            // When it returns the kernel has let go of the queue.
            let _ = kernel.set_backend(at, -1);
            let Ok(next) = kernel.get_vring_base(at) else { continue };
            queue.set_next_avail((next & 0xffff) as u16);
            // Where the kernel goes on from, too (`vhost_vq_init_access`).
            let index = queue.used_ring().checked_add(2).map(GuestAddress);
            let used = index.and_then(|at| live.memory.read_obj::<u16>(at).ok());
            queue.set_next_used(used.map_or(0, u16::from_le));
        }
        live.queues
    }
}

/// What the kernel may reach.
fn table(memory: &Memory) -> Vec<VhostUserMemoryRegionInfo> {
    let one = |region: &GuestRegionMmap| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        mmap_offset: 0,
        mmap_handle: -1,
    };
    memory.iter().map(one).collect()
}

/// An open `/dev/vhost-net` and what it is to reach.
struct Kernel<'a> {
    vhost: &'a File,
    memory: &'a Memory,
}

impl Kernel<'_> {
    /// Lets the kernel serve a queue on `tap`; -1: not any more.
    fn set_backend(&self, queue: usize, tap: RawFd) -> io::Result<()> {
        let index = u32::try_from(queue).map_err(io::Error::other)?;
        let file = vhost_vring_file { index, fd: tap };
        // SAFETY: the request reads a `vhost_vring_file` from the pointer, which outlives the call; the descriptor is
        // open as long as `self`.
        let done = unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &file) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsRawFd for Kernel<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.vhost.as_raw_fd()
    }
}

impl VhostKernBackend for Kernel<'_> {
    type AS = Memory;

    fn mem(&self) -> &Memory {
        self.memory
    }
}
