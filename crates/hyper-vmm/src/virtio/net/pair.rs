//! A pair of queues: packets from the tap's queue to the guest, and from the guest to it.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use virtio_queue::{Queue, QueueT as _};
use vmm_sys_util::eventfd::EventFd;

use super::tap::Tap;
use super::{F_MRG_RXBUF, HEADER, NUM_BUFFERS};
use crate::memory::Memory;
use crate::metrics::{DeviceCounters, count};
use crate::virtio::Live;
use crate::virtio::buffers::{Buffers, Piece, Way, listen, next, scatter, total, transfer, used};
use crate::virtio::worker::{Stop, Worker, borrow};

const RX: usize = 0;
const TX: usize = 1;
/// Largest packet with its header: 64 KiB of IP behind an Ethernet header.
const LARGEST: usize = 65_536 + 14 + HEADER;

/// System calls of its thread.
const CALLS: &[i64] = &[libc::SYS_writev];

/// What its thread works on.
#[derive(Debug)]
pub(super) struct Pair {
    tap: Arc<Tap>,
    /// Which of the tap's queues it is.
    at: usize,
    live: Live,
    merge: bool,
    packet: Vec<u8>,
    /// Bytes of a packet in `packet` that found too few buffers yet.
    waiting: usize,
    /// The buffers it did find.
    held: Vec<(u16, Vec<Piece>)>,
}

impl Pair {
    /// Carries packets in a thread of its own. `live` has two queues: to the guest, and from it.
    pub fn start(name: &str, tap: Arc<Tap>, at: usize, live: Live) -> io::Result<Worker<Self>> {
        let merge = live.features & F_MRG_RXBUF != 0;
        let (packet, held) = (vec![0; LARGEST], Vec::new());
        let pair = Self { tap, at, live, merge, packet, waiting: 0, held };
        Worker::start(name, CALLS, pair, Self::run)
    }

    /// Ends the thread; its queues, or `None` when it panicked.
    pub fn stop(worker: Worker<Self>) -> Option<Vec<Queue>> {
        let mut pair = worker.stop()?;
        // Buffers that wait for the rest of a packet go back; the packet is dropped.
        let held = u16::try_from(pair.held.len()).unwrap_or(0);
        if let Some(queue) = pair.live.queues.get_mut(RX) {
            queue.set_next_avail(queue.next_avail().wrapping_sub(held));
        }
        Some(pair.live.queues)
    }

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
            let turned = self.tap.turned(self.at);
            let told = [rx, tx, turned].map(|event| (borrow(event), PollFlags::IN));
            let ready = if starved {
                // The tap may have packets for a long time; only the guest's buffers count.
                stop.wait(told)?
            } else {
                let [a, b, c] = told;
                let tap = (self.tap.file(self.at), PollFlags::IN);
                stop.wait([a, b, c, tap])?.map(|[a, b, c, _]| [a, b, c])
            };
            let Some([for_rx, for_tx, is_turned]) = ready else { return Ok(()) };
            for (kick, ready) in [(rx, for_rx), (tx, for_tx)] {
                if ready {
                    let _ = kick.read();
                    count(&self.live.counters.kicks, 1);
                }
            }
            if is_turned {
                let _ = turned.read();
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
                    transfer(&memory, self.tap.file(self.at), way, None, &buffers.readable).ok()
                });
            match sent {
                Some(bytes) => count(&self.live.counters.bytes_out, bytes as u64),
                None => count(&self.live.counters.errors, 1),
            }
            used(queue, &memory, &self.live.interrupt, head, 0)?;
        }
        listen(queue, &memory)
    }

    /// From the tap to the guest; whether that has to wait for others than the tap (buffers of the guest's, or to be
    /// attached), and whether to look again.
    fn receive(&mut self) -> io::Result<(bool, bool)> {
        let memory = Arc::clone(&self.live.memory);
        loop {
            if !self.tap.is_attached(self.at) {
                return Ok((true, false));
            }
            if self.waiting == 0 {
                match rustix::io::read(self.tap.file(self.at), &mut self.packet) {
                    Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok((false, false)),
                    Ok(bytes) => self.waiting = bytes,
                    Err(rustix::io::Errno::INTR) => continue,
                    // It was detached in the meantime.
                    Err(_) if !self.tap.is_attached(self.at) => continue,
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
