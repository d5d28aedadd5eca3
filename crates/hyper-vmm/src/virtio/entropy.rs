//! Entropy (virtio 1.2, 5.4): the host's random numbers.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::Queue;

use super::buffers::{Buffers, listen, next, scatter, total, used};
use super::worker::{Stop, Worker, borrow};
use super::{Device, Live};
use crate::metrics::count;

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
        self.0 = Some(Worker::start("rng", &[libc::SYS_getrandom], live, serve)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let live = self.0.take().and_then(Worker::stop);
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
                let mut bytes = [0; MOST];
                let wanted = total(&buffers.writable).min(MOST);
                let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty())?;
                written = scatter(&memory, &buffers.writable, &bytes[..got])?;
            }
            count(&live.counters.bytes_in, written as u64);
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
