//! Persistent memory (virtio 1.2, 5.19): tells the guest where a mapped disk is (images.rs).
//!
//! The guest reads by itself; the queue is for flushes, of which there is nothing to do: no byte of
//! such a disk ever reaches its file.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use virtio_queue::Queue;

use super::buffers::{Buffers, gather, listen, next, scatter, used};
use super::worker::{Stop, Worker, borrow};
use super::{Device, Live, copy_config};
use crate::images::Place;
use crate::metrics::count;

const KIND: u32 = 27;
/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`, the only request.
const FLUSH: [u8; 4] = 0_u32.to_le_bytes();
const DONE: [u8; 4] = 0_u32.to_le_bytes();
const FAILED: [u8; 4] = u32::MAX.to_le_bytes();

/// The device.
#[derive(Debug)]
pub(crate) struct Pmem {
    name: String,
    config: [u8; 16],
    worker: Option<Worker<Live>>,
}

impl Pmem {
    /// The disk that is at `place`.
    pub fn new(name: String, place: Place) -> Self {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&place.start.to_le_bytes());
        config[8..].copy_from_slice(&place.bytes.to_le_bytes());
        Self { name, config, worker: None }
    }
}

impl Device for Pmem {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[16]
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        self.stop();
        self.worker = Some(Worker::start(&self.name, &[], live, serve)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let live = self.worker.take().and_then(Worker::stop);
        live.map(|live| live.queues).unwrap_or_default()
    }
}

fn serve(live: &mut Live, stop: &Stop) -> io::Result<()> {
    let memory = Arc::clone(&live.memory);
    let (Some(queue), Some(kick)) = (live.queues.first_mut(), live.kicks.first()) else {
        return Err(io::Error::other("the driver has set up no queue"));
    };
    loop {
        while let Some(chain) = next(queue, &memory)? {
            let head = chain.head_index();
            let mut written = 0;
            if let Some(buffers) = Buffers::of(&memory, chain) {
                let mut asked = [0; 4];
                let whole = gather(&memory, &buffers.readable, &mut asked)? == asked.len();
                let answer = if whole && asked == FLUSH { DONE } else { FAILED };
                written = scatter(&memory, &buffers.writable, &answer)?;
            }
            let length = u32::try_from(written).unwrap_or(0);
            used(queue, &memory, &live.interrupt, head, length)?;
        }
        if listen(queue, &memory)? {
            continue;
        }
        if stop.wait([(borrow(kick), PollFlags::IN)])?.is_none() {
            return Ok(());
        }
        let _ = kick.read();
        count(&live.counters.kicks, 1);
    }
}
