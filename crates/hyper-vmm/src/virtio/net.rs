//! Network device (virtio 1.2, 5.1) on a tap.
//!
//! Both sides speak `virtio_net_hdr`, so checksums and segmentation are left to whoever has to do
//! them: between pods of one host nobody does. Packets for which the guest has no buffers wait in
//! the tap's own queue, whose length is the host's to bound; what the tap does not take is
//! dropped, as a wire would. Where the host has vhost-net its kernel does all of that ([`KernelNet`]).

mod kernel;
mod tap;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use virtio_queue::{Queue, QueueT as _};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use kernel::KernelNet;

use super::buffers::{Buffers, Piece, Way, listen, next, scatter, total, transfer, used};
use super::worker::{Stop, Worker, borrow};
use super::{Device, Live, copy_config};
use crate::memory::Memory;
use crate::metrics::{DeviceCounters, count};

const KIND: u32 = 1;
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const RX: usize = 0;
const TX: usize = 1;
const SIZES: [u16; 2] = [256, 256];
/// `struct virtio_net_hdr_v1`, and where its number of buffers is.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
/// Largest packet with its header: 64 KiB of IP behind an Ethernet header.
const LARGEST: usize = 65_536 + 14 + HEADER;

/// System calls of its thread.
const CALLS: &[i64] = &[libc::SYS_writev];

/// What the driver is told of its card.
#[derive(Debug, Clone, Copy)]
struct Card {
    mac: [u8; 6],
    mtu: u16,
}

impl Card {
    const FEATURES: u64 = F_GUEST_CSUM
        | F_GUEST_TSO4
        | F_GUEST_TSO6
        | F_CSUM
        | F_HOST_TSO4
        | F_HOST_TSO6
        | F_MAC
        | F_MTU
        | F_MRG_RXBUF;

    fn config(self, offset: usize, data: &mut [u8]) {
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.mac);
        space[10..].copy_from_slice(&self.mtu.to_le_bytes());
        copy_config(&space, offset, data);
    }

    /// Tells the tap what the driver can do.
    fn agree(tap: &OwnedFd, features: u64) -> io::Result<()> {
        let has = |feature| features & feature != 0;
        let offloads = tap::offloads(has(F_GUEST_CSUM), has(F_GUEST_TSO4), has(F_GUEST_TSO6));
        tap::set_offloads(tap, offloads)
    }
}

/// The device.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
    card: Card,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle(OwnedFd),
    Busy(Worker<Work>),
    Lost,
}

impl Net {
    /// A device on `tap`, which must have `IFF_VNET_HDR` and not block.
    pub fn new(name: String, tap: OwnedFd, mac: [u8; 6], mtu: u16) -> io::Result<Self> {
        tap::set_header(&tap, HEADER)?;
        Ok(Self { name, card: Card { mac, mtu }, state: State::Idle(tap) })
    }

    /// A device on something that is no tap: for tests and the fuzz targets.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn untold(name: String, tap: OwnedFd) -> Self {
        let card = Card { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
        Self { name, card, state: State::Idle(tap) }
    }
}

impl Device for Net {
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

    fn activate(&mut self, live: Live) -> io::Result<()> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(tap) => {
                // That of tests and fuzz targets is none.
                if let Err(error) = Card::agree(&tap, live.features)
                    && !cfg!(any(test, feature = "fuzzing"))
                {
                    self.state = State::Idle(tap);
                    return Err(error);
                }
                let merge = live.features & F_MRG_RXBUF != 0;
                let work =
                    Work { tap, live, merge, packet: vec![0; LARGEST], waiting: 0, held: vec![] };
                self.state = State::Busy(Worker::start(&self.name, CALLS, work, Work::run)?);
                Ok(())
            }
            other => {
                self.state = other;
                Err(io::Error::other("it has a driver already"))
            }
        }
    }

    fn stop(&mut self) -> Vec<Queue> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Busy(worker) => {
                let Some(mut work) = worker.stop() else { return Vec::new() };
                // Buffers that wait for the rest of a packet go back; the packet is dropped.
                let held = u16::try_from(work.held.len()).unwrap_or(0);
                if let Some(queue) = work.live.queues.get_mut(RX) {
                    queue.set_next_avail(queue.next_avail().wrapping_sub(held));
                }
                self.state = State::Idle(work.tap);
                work.live.queues
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }
}

#[derive(Debug)]
struct Work {
    tap: OwnedFd,
    live: Live,
    merge: bool,
    packet: Vec<u8>,
    /// Bytes of a packet in `packet` that found too few buffers yet.
    waiting: usize,
    /// The buffers it did find.
    held: Vec<(u16, Vec<Piece>)>,
}

impl Work {
    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let kicks = std::mem::take(&mut self.live.kicks);
        let ended = self.serve(stop, &kicks);
        self.live.kicks = kicks;
        ended
    }

    fn serve(&mut self, stop: &Stop, kicks: &[EventFd]) -> io::Result<()> {
        let [rx, tx] = kicks else { return Err(io::Error::other("queues are missing")) };
        loop {
            let mut again = self.send()?;
            let (starved, more) = self.receive()?;
            again |= more;
            if again {
                continue;
            }
            let kicked = [(borrow(rx), PollFlags::IN), (borrow(tx), PollFlags::IN)];
            let ready = if starved {
                // The tap may have packets for a long time; only the guest's buffers count.
                stop.wait(kicked)?
            } else {
                let [a, b] = kicked;
                let tap = (self.tap.as_fd(), PollFlags::IN);
                stop.wait([a, b, tap])?.map(|[a, b, _]| [a, b])
            };
            let Some(ready) = ready else { return Ok(()) };
            for (kick, ready) in [rx, tx].into_iter().zip(ready) {
                if ready {
                    let _ = kick.read();
                    count(&self.live.counters.kicks, 1);
                }
            }
        }
    }

    /// From the guest to the tap; whether there is more.
    fn send(&mut self) -> io::Result<bool> {
        let memory = Arc::clone(&self.live.memory);
        let queue = &mut self.live.queues[TX];
        while let Some(chain) = next(queue, &memory)? {
            let head = chain.head_index();
            let sent = Buffers::of(&memory, chain)
                .filter(|buffers| (HEADER..=LARGEST).contains(&total(&buffers.readable)))
                .and_then(|buffers| {
                    let way = Way::Out;
                    transfer(&memory, self.tap.as_fd(), way, None, &buffers.readable).ok()
                });
            match sent {
                Some(bytes) => count(&self.live.counters.bytes_out, bytes as u64),
                None => count(&self.live.counters.errors, 1),
            }
            used(queue, &memory, &self.live.interrupt, head, 0)?;
        }
        listen(queue, &memory)
    }

    /// From the tap to the guest; whether the guest has too few buffers, and whether to look again.
    fn receive(&mut self) -> io::Result<(bool, bool)> {
        let memory = Arc::clone(&self.live.memory);
        loop {
            if self.waiting == 0 {
                match rustix::io::read(&self.tap, &mut self.packet) {
                    Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok((false, false)),
                    Ok(bytes) => self.waiting = bytes,
                    Err(rustix::io::Errno::INTR) => continue,
                    // A tap whose interface is gone, or down.
                    Err(error) => return Err(error.into()),
                }
            }
            let queue = &mut self.live.queues[RX];
            if !collect(queue, &memory, &mut self.held, self.waiting, self.merge)? {
                return Ok((true, listen(queue, &memory)?));
            }
            let packet = &mut self.packet[..self.waiting];
            place(queue, &memory, &mut self.held, packet, &self.live.counters)?;
            self.waiting = 0;
            if queue.needs_notification(&*memory).map_err(io::Error::other)? {
                self.live.interrupt.used();
            }
        }
    }
}

/// Takes buffers for `bytes`: one, or several where the driver merges them. Whether that is enough:
/// as many as the queue has are, however short they may be.
fn collect(
    queue: &mut Queue,
    memory: &Memory,
    held: &mut Vec<(u16, Vec<Piece>)>,
    bytes: usize,
    merge: bool,
) -> io::Result<bool> {
    let mut room: usize = held.iter().map(|(_, pieces)| total(pieces)).sum();
    let most = usize::from(queue.size());
    while held.is_empty() || (merge && room < bytes && held.len() < most) {
        let Some(chain) = next(queue, memory)? else { return Ok(false) };
        let head = chain.head_index();
        let pieces = Buffers::of(memory, chain).map(|buffers| buffers.writable).unwrap_or_default();
        room += total(&pieces);
        held.push((head, pieces));
    }
    Ok(true)
}

/// Puts a packet into its buffers; what does not fit is cut off.
fn place(
    queue: &mut Queue,
    memory: &Memory,
    held: &mut Vec<(u16, Vec<Piece>)>,
    packet: &mut [u8],
    counters: &DeviceCounters,
) -> io::Result<()> {
    let buffers = u16::try_from(held.len()).unwrap_or(1);
    if let Some(number) = packet.get_mut(NUM_BUFFERS..HEADER) {
        number.copy_from_slice(&buffers.to_le_bytes());
    }
    let mut done = 0;
    for (head, pieces) in held.drain(..) {
        let written = scatter(memory, &pieces, &packet[done..])?;
        done += written;
        let length = u32::try_from(written).unwrap_or(0);
        queue.add_used(&**memory, head, length).map_err(io::Error::other)?;
    }
    if done < packet.len() {
        count(&counters.errors, 1);
    }
    count(&counters.bytes_in, done as u64);
    Ok(())
}

#[cfg(test)]
mod test {
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::memory;

    #[test]
    fn buffers_without_room_are_not_collected_for_ever() {
        let memory = memory::take(1 << 20, false, Default::default()).unwrap();
        let (descriptors, available, size) = (0x1000, 0x2000, 8_u16);
        // One descriptor: no bytes, for the device to write.
        memory.write_obj(2_u16, GuestAddress(descriptors + 12)).unwrap();
        let mut queue = Queue::new(size).unwrap();
        queue.set_desc_table_address(Some(0x1000), Some(0));
        queue.set_avail_ring_address(Some(0x2000), Some(0));
        queue.set_used_ring_address(Some(0x3000), Some(0));
        queue.set_ready(true);
        let mut held = Vec::new();
        let mut enough = false;
        for round in 1..=4_u16 {
            memory.write_obj(round * 4, GuestAddress(available + 2)).unwrap();
            enough = collect(&mut queue, &memory, &mut held, 100, true).unwrap();
        }
        assert!(enough, "it waits for more than the queue can have");
        assert_eq!(held.len(), usize::from(size));
        let counters = DeviceCounters::default();
        place(&mut queue, &memory, &mut held, &mut [1; 100], &counters).unwrap();
        assert!(held.is_empty());
    }
}
