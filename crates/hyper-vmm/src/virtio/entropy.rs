//! Entropy (virtio 1.2, 5.4): the host's random numbers.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::Queue;

use super::buffers::{Buffers, scatter, total};
use super::requests::serve;
use super::worker::Worker;
use super::{Device, Live};
use crate::memory::Memory;
use crate::metrics::{DeviceCounters, count};

const KIND: u32 = 4;
/// Most bytes for one request.
const MOST: usize = 256;

/// The device.
#[derive(Debug, Default)]
pub(crate) struct Entropy(Option<Worker<Live>>);

impl Device for Entropy {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[16]
    }

    fn config(&self, _: usize, _: &mut [u8]) {}

    fn activate(&mut self, live: Live) -> io::Result<()> {
        self.stop();
        self.0 = Some(Worker::start("rng", &[libc::SYS_getrandom], live, |live, stop| {
            serve(live, stop, answer)
        })?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let live = self.0.take().and_then(Worker::stop);
        live.map(|live| live.queues).unwrap_or_default()
    }
}

fn answer(
    memory: &Memory,
    counters: &DeviceCounters,
    buffers: Option<Buffers>,
) -> io::Result<usize> {
    let Some(buffers) = buffers else { return Ok(0) };
    let mut bytes = [0; MOST];
    let wanted = total(&buffers.writable).min(MOST);
    let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty())?;
    let written = scatter(memory, &buffers.writable, &bytes[..got])?;
    count(&counters.bytes_in, written as u64);
    Ok(written)
}
