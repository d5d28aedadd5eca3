//! Memory balloon (virtio 1.2, 5.5): pages that the guest does not need go back to the host, those
//! it gives up because it is asked to, and those it reports as free by itself.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use virtio_queue::Queue;
use vm_memory::GuestAddress;

use super::buffers::{Buffers, gather, listen, next, total, used};
use super::worker::{Stop, Worker, borrow};
use super::{Device, Live, copy_config};
use crate::memory::{self, Memory};
use crate::metrics::count;

const KIND: u32 = 5;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;
/// Queues: pages to take, pages to give back, free pages. Queues of features that are not offered
/// have no number.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;
/// Page numbers in one request of Linux's driver (VIRTIO_BALLOON_ARRAY_PFNS_MAX) are 256.
const MOST_BYTES: usize = 4 * 1024;
const PAGE: u64 = 4096;

/// The device.
#[derive(Debug)]
pub(crate) struct Balloon {
    worker: Option<Worker<Live>>,
    gives: bool,
}

impl Balloon {
    /// `gives`: pages go back to the host. Else it takes what the driver says and does nothing.
    pub fn new(gives: bool) -> Self {
        Self { worker: None, gives }
    }
}

impl Device for Balloon {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | if self.gives { F_REPORTING } else { 0 }
    }

    fn queues(&self) -> &[u16] {
        &[16, 16, 32]
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        // No page is asked for.
        copy_config(&[0; 8], offset, data);
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        self.stop();
        let gives = self.gives;
        let work = move |live: &mut Live, stop: &Stop| serve(live, stop, gives);
        self.worker = Some(Worker::start("balloon", &[], live, work)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let live = self.worker.take().and_then(Worker::stop);
        live.map(|live| live.queues).unwrap_or_default()
    }
}

fn serve(live: &mut Live, stop: &Stop, gives: bool) -> io::Result<()> {
    let memory = Arc::clone(&live.memory);
    let kicks = [INFLATE, DEFLATE, REPORTING].map(|at| live.kicks.get(at).map(borrow));
    let [Some(inflate), Some(deflate), Some(reporting)] = kicks else {
        return Err(io::Error::other("queues are missing"));
    };
    loop {
        let mut again = false;
        for (at, queue) in live.queues.iter_mut().enumerate() {
            while let Some(chain) = next(queue, &memory)? {
                let head = chain.head_index();
                let given = Buffers::of(&memory, chain).map_or(0, |buffers| match at {
                    INFLATE if gives => numbered(&memory, &buffers),
                    REPORTING if gives => reported(&memory, &buffers),
                    // Pages that are taken back come when they are touched.
                    _ => 0,
                });
                count(&live.counters.bytes_out, given);
                used(queue, &memory, &live.interrupt, head, 0)?;
            }
            again |= listen(queue, &memory)?;
        }
        if again {
            continue;
        }
        let all = [inflate, deflate, reporting].map(|kick| (kick, PollFlags::IN));
        let Some(ready) = stop.wait(all)? else { return Ok(()) };
        for (kick, ready) in live.kicks.iter().zip(ready) {
            if ready {
                let _ = kick.read();
                count(&live.counters.kicks, 1);
            }
        }
    }
}

/// Pages given up by their numbers; the bytes that went back.
fn numbered(memory: &Memory, buffers: &Buffers) -> u64 {
    let length = total(&buffers.readable).min(MOST_BYTES) / 4 * 4;
    let mut numbers = vec![0; length];
    if gather(memory, &buffers.readable, &mut numbers).is_err() {
        return 0;
    }
    let mut given = 0;
    for number in numbers.chunks_exact(4) {
        let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        let at = GuestAddress(u64::from(number) * PAGE);
        if memory::give_back(memory, at, 4096).is_ok() {
            given += PAGE;
        }
    }
    given
}

/// Free pages are the chain's own buffers: what is in them does not matter any more.
fn reported(memory: &Memory, buffers: &Buffers) -> u64 {
    let mut given = 0;
    for piece in &buffers.writable {
        if memory::give_back(memory, piece.at, piece.bytes).is_ok() {
            given += piece.bytes as u64;
        }
    }
    given
}
