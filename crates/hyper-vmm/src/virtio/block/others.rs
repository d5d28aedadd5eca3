//! Who waits for the host's disk while the device's thread goes on: the host's kernel, or threads.

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use vmm_sys_util::eventfd::EventFd;

use super::Shared;
use super::hands::Hands;
use super::request::Request;
use super::ring::{Flights, Ring};
use crate::event::Maker;
use crate::virtio::worker::{Stop, borrow};

/// Who waits for the host's disk.
pub(super) enum Others {
    Kernel(Box<Flights>),
    Threads(Hands),
}

impl Others {
    /// Those of the device called `name`: the kernel where there is a ring.
    pub fn new(ring: Option<Ring>, name: &str, maker: Maker, shared: Arc<Shared>) -> Self {
        match ring {
            Some(ring) => Self::Kernel(Box::new(Flights::new(ring, shared))),
            None => Self::Threads(Hands::new(name, maker, shared)),
        }
    }

    /// Whether they have something to do.
    pub fn busy(&self) -> bool {
        match self {
            Self::Kernel(flights) => flights.busy(),
            Self::Threads(hands) => hands.busy(),
        }
    }

    /// Waits until fewer than `limit` requests are in flight; tells what has failed.
    pub fn wait_for_room(&mut self, limit: u16) -> io::Result<()> {
        match self {
            Self::Kernel(flights) => flights.wait_for_room(limit),
            Self::Threads(hands) => hands.wait_for_room(limit),
        }
    }

    /// Takes a request, or gives it back when nobody is there; `more`: others follow at once.
    pub fn take(&mut self, request: Request, more: bool) -> io::Result<Option<Request>> {
        match self {
            Self::Kernel(flights) => flights.take(request, more).map(|()| None),
            Self::Threads(hands) => Ok(hands.take(request)),
        }
    }

    /// Does what is to be done now for what is in flight; whether that was all.
    pub fn advance(&mut self) -> io::Result<bool> {
        match self {
            Self::Kernel(flights) => flights.advance(),
            Self::Threads(_) => Ok(true),
        }
    }

    /// Waits for `kick`, and for what is in flight that nobody else tells the driver of; `None` when the
    /// thread shall end, else whether there was a kick.
    pub fn wait(&self, stop: &Stop, kick: &EventFd) -> io::Result<Option<bool>> {
        let kick = (borrow(kick), PollFlags::IN);
        if let Self::Kernel(flights) = self
            && let Some(done) = flights.done()
        {
            return Ok(stop.wait([kick, (done, PollFlags::IN)])?.map(|[kicked, _]| kicked));
        }
        Ok(stop.wait([kick])?.map(|[kicked]| kicked))
    }

    /// Returns when all that was in flight is done.
    pub fn end(self) -> (Option<Ring>, io::Result<()>) {
        match self {
            Self::Kernel(flights) => flights.end(),
            Self::Threads(hands) => (None, hands.end()),
        }
    }
}
