//! The network device with its queues in the host's kernel (`/dev/vhost-net`, Linux, vhost.h), which is opened once for
//! each pair of them: packets go between tap and guest without a thread of the monitor's and without being copied twice.
//! The kernel looks at what the guest says, and nothing is counted. The control queue is the monitor's.
#![expect(
    unsafe_code,
    reason = "VHOST_NET_SET_BACKEND; the crate's own device opens its file by name"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{
    Address as _, Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _,
    GuestRegionMmap,
};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::control::Control;
use super::tap::Tap;
use super::{Card, F_MRG_RXBUF, HEADER, KIND, Split};
use crate::memory::Memory;
use crate::virtio::{Device, DeviceState, F_VERSION_1, Live};

/// Without these the tap's header has another length than the guest's.
const NEEDED: u64 = F_MRG_RXBUF | F_VERSION_1;

/// The device.
#[derive(Debug)]
pub(crate) struct KernelNet {
    name: String,
    card: Card,
    tap: Arc<Tap>,
    /// One for each pair.
    vhosts: Vec<File>,
    /// Features that the kernel knows; the others are the tap's.
    known: u64,
    busy: Option<Busy>,
}

#[derive(Debug)]
struct Busy {
    /// What the kernel serves, pair by pair.
    pairs: Vec<Live>,
    control: Option<Control>,
    unused: Vec<Queue>,
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

    /// A device on the queues of a tap, which must have `IFF_VNET_HDR`, with a `/dev/vhost-net` for each, of which one
    /// has been tried out; `known`: from there.
    pub fn new(
        name: String,
        queues: Vec<(OwnedFd, File)>,
        known: u64,
        mac: [u8; 6],
        mtu: u16,
    ) -> io::Result<Self> {
        let card = Card::new(mac, mtu, queues.len());
        let (files, vhosts): (_, Vec<_>) = queues.into_iter().unzip();
        for vhost in vhosts.iter().skip(1) {
            let kernel = Kernel { vhost, memory: &Memory::default() };
            kernel.set_owner().map_err(io::Error::other)?;
        }
        let tap = Arc::new(Tap::new(files)?);
        tap.set_header(HEADER)?;
        Ok(Self { name, card, tap, vhosts, known, busy: None })
    }

    /// Lets the kernel serve pair `at`, whose queues are `live`.
    fn connect(&self, at: usize, live: &Live) -> io::Result<()> {
        let vhost = self.vhosts.get(at).ok_or(io::ErrorKind::InvalidInput)?;
        let kernel = Kernel { vhost, memory: &live.memory };
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
        let tap = self.tap.file(at).as_raw_fd();
        for (at, kick) in live.kicks.iter().enumerate() {
            kernel.set_backend(at, tap)?;
            // For what was there before the kernel looked.
            let _ = kick.write(1);
        }
        Ok(())
    }

    fn obey(&self, live: Live) -> io::Result<Control> {
        Control::start(&self.name, Arc::clone(&self.tap), live)
    }

    /// Takes the queues of pair `at` back.
    fn disconnect(&self, at: usize, mut live: Live) -> Vec<Queue> {
        let Some(vhost) = self.vhosts.get(at) else { return live.queues };
        let kernel = Kernel { vhost, memory: &live.memory };
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

impl Device for KernelNet {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        self.card.features()
    }

    fn queues(&self) -> &[u16] {
        &self.card.queues
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        self.card.config(offset, data);
    }

    fn is_served_elsewhere(&self) -> bool {
        true
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        let Split { data: pairs, control, unused } = self.card.split(live);
        if !pairs.iter().flat_map(|pair| &pair.queues).all(Queue::ready) {
            return Err(io::Error::other("queues are missing"));
        }
        self.tap.agree(pairs.first().map_or(0, |pair| pair.features))?;
        let connect = || {
            pairs.iter().enumerate().try_for_each(|(at, pair)| self.connect(at, pair))?;
            control.map(|live| self.obey(live)).transpose()
        };
        let (control, connected) = match connect() {
            Ok(control) => (control, Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.busy = Some(Busy { pairs, control, unused });
        if connected.is_err() {
            // One of the queues may be served.
            drop(self.stop());
        }
        connected
    }

    /// The kernel takes another table while it works.
    fn extend(&mut self, memory: &Memory) -> Option<io::Result<()>> {
        let Some(busy) = &mut self.busy else { return Some(Ok(())) };
        if busy.control.is_some() {
            // Its commands may lie there.
            return None;
        }
        for (vhost, live) in self.vhosts.iter().zip(&mut busy.pairs) {
            if let Err(error) = (Kernel { vhost, memory }).set_mem_table(&table(memory)) {
                return Some(Err(io::Error::other(error)));
            }
            live.memory = Memory::clone(memory);
        }
        Some(Ok(()))
    }

    fn stop(&mut self) -> Vec<Queue> {
        let Some(Busy { pairs, control, unused }) = self.busy.take() else { return Vec::new() };
        let control = control.map(Control::stop);
        let pairs = pairs.into_iter().enumerate();
        let pairs: Vec<_> = pairs.map(|(at, live)| self.disconnect(at, live)).collect();
        let all = pairs.into_iter().map(Some).chain(control).collect::<Option<Vec<_>>>();
        all.into_iter().flatten().flatten().chain(unused).collect()
    }

    fn reset(&mut self) {
        self.tap.use_pairs(1);
    }

    fn save(&self) -> DeviceState {
        self.tap.save()
    }

    fn load(&mut self, state: DeviceState) {
        self.tap.use_pairs(state.pairs.unwrap_or(1));
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
