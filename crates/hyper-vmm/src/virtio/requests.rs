//! Devices with one queue of requests, each answered before the next one is looked at.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;

use super::Live;
use super::buffers::{Buffers, listen, next, used};
use super::worker::{Stop, borrow};
use crate::memory::Memory;
use crate::metrics::{DeviceCounters, count};

/// Answers requests until it is stopped. `answer` returns the bytes that it has written; what it is
/// given is `None` for a chain that breaks a rule.
pub(super) fn serve(
    live: &mut Live,
    stop: &Stop,
    mut answer: impl FnMut(&Memory, &DeviceCounters, Option<Buffers>) -> io::Result<usize>,
) -> io::Result<()> {
    let memory = Arc::clone(&live.memory);
    let (Some(queue), Some(kick)) = (live.queues.first_mut(), live.kicks.first()) else {
        return Err(io::Error::other("the driver has set up no queue"));
    };
    loop {
        while let Some(chain) = next(queue, &memory)? {
            let head = chain.head_index();
            let written = answer(&memory, &live.counters, Buffers::of(&memory, chain))?;
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
