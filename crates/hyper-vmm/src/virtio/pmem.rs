//! Persistent memory (virtio 1.2, 5.19): tells the guest where a mapped disk is (images.rs).
//!
//! The guest reads by itself; the queue is for flushes, of which there is nothing to do: no byte of
//! such a disk ever reaches its file.

use std::io;

use virtio_queue::Queue;

use super::buffers::{Buffers, gather, scatter};
use super::requests::serve;
use super::worker::Worker;
use super::{Device, Live, copy_config};
use crate::images::Place;
use crate::memory::Memory;
use crate::metrics::DeviceCounters;

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
        self.worker =
            Some(Worker::start(&self.name, &[], live, |live, stop| serve(live, stop, answer))?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let live = self.worker.take().and_then(Worker::stop);
        live.map(|live| live.queues).unwrap_or_default()
    }
}

fn answer(memory: &Memory, _: &DeviceCounters, buffers: Option<Buffers>) -> io::Result<usize> {
    let Some(buffers) = buffers else { return Ok(0) };
    let mut asked = [0; 4];
    let whole = gather(memory, &buffers.readable, &mut asked)? == asked.len();
    let answer = if whole && asked == FLUSH { DONE } else { FAILED };
    scatter(memory, &buffers.writable, &answer)
}
