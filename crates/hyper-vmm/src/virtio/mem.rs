//! Memory that comes and goes (virtio 1.2, 5.15): the guest is asked to have so much of a region,
//! and takes blocks of it, or gives them back, one request after the other.
//!
//! ```text
//!  Region::ask(bytes) ─► configuration changes ─► driver: PLUG, UNPLUG of blocks ─► Region::has
//! ```
//! A block is had or not; what was unplugged goes back to the host at once. Requests outside of the
//! usable part, of no blocks, of what is had already or not had are errors, and nothing is done.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::Queue;
use vm_memory::GuestAddress;

use super::buffers::{Buffers, gather, scatter, total};
use super::requests::serve;
use super::worker::{Stop, Worker};
use super::{Device, Interrupt, Live, copy_config};
use crate::memory::{self, Memory};
use crate::metrics::{DeviceCounters, count};

const KIND: u32 = 24;
/// Bytes of a block: what Linux's driver works with, its page blocks, are no smaller.
pub(crate) const BLOCK: u64 = 2 << 20;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const REQUEST_BYTES: usize = 24;

const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;
const ANSWER_BYTES: usize = 10;

const ALL: u16 = 0;
const NONE: u16 = 1;
const MIXED: u16 = 2;

/// The device.
#[derive(Debug)]
pub(crate) struct Mem {
    region: Arc<Region>,
    worker: Option<Worker<Live>>,
}

/// What the device and who asks for memory share.
#[derive(Debug)]
pub(crate) struct Region {
    base: u64,
    bytes: u64,
    block: u64,
    /// Of the configuration.
    generation: AtomicU32,
    blocks: Mutex<Blocks>,
    /// While there is a driver.
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

#[derive(Debug, Default)]
struct Blocks {
    usable: u64,
    wanted: u64,
    had: u64,
    /// By block, of the usable ones.
    which: Vec<bool>,
}

impl Region {
    /// `bytes` from `base` on, both multiples of `block`, a power of two.
    pub fn new(base: u64, bytes: u64, block: u64) -> Self {
        Self {
            base,
            bytes,
            block,
            generation: AtomicU32::new(0),
            blocks: Mutex::default(),
            interrupt: Mutex::default(),
        }
    }

    /// The first `bytes` can be used from now on: they are memory, and the device has been given it.
    pub fn use_up_to(&self, bytes: u64) {
        let mut blocks = self.lock();
        blocks.usable = bytes.min(self.bytes);
        let number = usize::try_from(blocks.usable / self.block).unwrap_or(0);
        blocks.which.resize(number, false);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Asks the driver to have so much, a multiple of the block that is usable.
    pub fn ask(&self, bytes: u64) {
        self.lock().wanted = bytes;
        self.generation.fetch_add(1, Ordering::SeqCst);
        let interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        // A driver that comes later reads it first of all.
        if let Some(interrupt) = &*interrupt {
            interrupt.config_changed();
        }
    }

    /// Bytes that the driver is asked to have.
    pub fn wanted(&self) -> u64 {
        self.lock().wanted
    }

    /// Bytes that it has.
    pub fn has(&self) -> u64 {
        self.lock().had
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a request: its kind of answer, and the state that was asked for.
    fn obey(&self, memory: &Memory, request: &[u8; REQUEST_BYTES]) -> (u16, u16, Change) {
        let half = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let start = u64::from_le_bytes(request[8..16].try_into().unwrap_or_default());
        let (kind, number) = (half(0), half(16));
        let wrong = (ERROR, 0, Change::None);
        let mut blocks = self.lock();
        if kind == UNPLUG_ALL {
            let all = 0..blocks.which.len();
            let had = blocks.had;
            return match self.take_back(&mut blocks, memory, all) {
                Ok(()) => (ACK, 0, Change::Less(had)),
                Err(_) => wrong,
            };
        }
        let Some(range) = self.range(&blocks, start, number) else { return wrong };
        let (count, there) = (range.len(), &blocks.which[range.clone()]);
        let had = there.iter().filter(|had| **had).count();
        let bytes = u64::from(number) * self.block;
        match kind {
            PLUG if had > 0 => wrong,
            PLUG if blocks.had + bytes > blocks.wanted => (NACK, 0, Change::None),
            PLUG => {
                blocks.which[range].fill(true);
                blocks.had += bytes;
                (ACK, 0, Change::More(bytes))
            }
            UNPLUG if had < count => wrong,
            UNPLUG => match self.take_back(&mut blocks, memory, range) {
                Ok(()) => (ACK, 0, Change::Less(bytes)),
                Err(_) => wrong,
            },
            STATE if had == count => (ACK, ALL, Change::None),
            STATE => (ACK, if had == 0 { NONE } else { MIXED }, Change::None),
            _ => wrong,
        }
    }

    /// The usable blocks that a request names.
    fn range(&self, blocks: &Blocks, start: u64, number: u16) -> Option<std::ops::Range<usize>> {
        let offset = start.checked_sub(self.base).filter(|at| at.is_multiple_of(self.block))?;
        let first = usize::try_from(offset / self.block).ok()?;
        let behind = first.checked_add(usize::from(number))?;
        (number > 0 && behind <= blocks.which.len()).then_some(first..behind)
    }

    /// Gives those blocks of `range` back to the host that are had.
    fn take_back(
        &self,
        blocks: &mut Blocks,
        memory: &Memory,
        range: std::ops::Range<usize>,
    ) -> io::Result<()> {
        let mut at = range.start;
        let runs: Vec<(bool, usize)> =
            blocks.which[range].chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
        for (had, length) in runs {
            if had {
                let start = GuestAddress(self.base + at as u64 * self.block);
                let bytes = length as u64 * self.block;
                let length_here = usize::try_from(bytes).map_err(io::Error::other)?;
                memory::give_back(memory, start, length_here)?;
                blocks.which[at..at + length].fill(false);
                blocks.had -= bytes;
            }
            at += length;
        }
        Ok(())
    }
}

/// What a request did, in bytes.
enum Change {
    None,
    More(u64),
    Less(u64),
}

impl Mem {
    pub fn new(region: Arc<Region>) -> Self {
        Self { region, worker: None }
    }
}

impl Device for Mem {
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
        let region = &self.region;
        let blocks = region.lock();
        let numbers = [
            region.block,
            // No node, as there is no ACPI that knows any.
            0,
            region.base,
            region.bytes,
            blocks.usable,
            blocks.had,
            blocks.wanted,
        ];
        let space: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        copy_config(&space, offset, data);
    }

    fn generation(&self) -> u32 {
        self.region.generation.load(Ordering::SeqCst)
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        self.stop();
        let told = Some(Arc::clone(&live.interrupt));
        let region = Arc::clone(&self.region);
        let work = move |live: &mut Live, stop: &Stop| {
            serve(live, stop, |memory, counters, buffers| {
                answer(&region, memory, counters, buffers)
            })
        };
        self.worker = Some(Worker::start("mem", &[], live, work)?);
        *self.region.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = told;
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let live = self.worker.take().and_then(Worker::stop);
        live.map(|live| live.queues).unwrap_or_default()
    }

    /// What it has it keeps: a driver that comes again gives it back first.
    fn reset(&mut self) {
        *self.region.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn cannot_be_saved(&self) -> Option<&'static str> {
        let blocks = self.region.lock();
        (blocks.had > 0 || blocks.wanted > 0)
            .then_some("its memory has grown: give it what it booted with first")
    }
}

fn answer(
    region: &Region,
    memory: &Memory,
    counters: &DeviceCounters,
    buffers: Option<Buffers>,
) -> io::Result<usize> {
    let buffers = buffers.filter(|buffers| {
        total(&buffers.readable) >= REQUEST_BYTES && total(&buffers.writable) >= ANSWER_BYTES
    });
    let mut request = [0; REQUEST_BYTES];
    let read = buffers.as_ref().map(|buffers| gather(memory, &buffers.readable, &mut request));
    let (Some(buffers), Some(Ok(_))) = (&buffers, read) else {
        count(&counters.errors, 1);
        return Ok(0);
    };
    let (kind, state, change) = region.obey(memory, &request);
    match change {
        Change::More(bytes) => count(&counters.bytes_in, bytes),
        Change::Less(bytes) => count(&counters.bytes_out, bytes),
        Change::None => count(&counters.errors, u64::from(kind != ACK)),
    }
    let mut answer = [0; ANSWER_BYTES];
    answer[..2].copy_from_slice(&kind.to_le_bytes());
    answer[8..].copy_from_slice(&state.to_le_bytes());
    scatter(memory, &buffers.writable, &answer)
}

#[cfg(test)]
mod test;
