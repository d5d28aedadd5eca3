//! Console device with one port (virtio 1.2, 5.3): the link's bytes.
//!
//! ```text
//! driver: DEVICE_READY ─► us: PORT_ADD 1 ─► driver: PORT_READY ─► us: PORT_OPEN
//!     ─► driver: PORT_OPEN (a process has opened it) ─► bytes flow
//! ```
//! The port is number 1 (`/dev/vport0p1`), since port 0 is a terminal in Linux whatever it is used
//! for. Bytes go between socket and guest memory without a copy. What one side does not take
//! stays with the other: the socket is read only into buffers that the guest has offered, the
//! guest's buffers are given back only when they have been written. Nothing is dropped.

mod control;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vmm_sys_util::eventfd::EventFd;

use self::control::Control;
use super::buffers::{Buffers, Piece, Way, listen, next, split, total, transfer, used};
use super::worker::{Stop, Worker, borrow};
use super::{ConsoleState, Device, DeviceState, Live, copy_config};
use crate::metrics::count;

const KIND: u32 = 3;
const F_MULTIPORT: u64 = 1 << 1;
/// Queues: port 0 in and out (no such port), control in and out, port 1 in and out. Linux fills
/// each queue that comes in with a page per entry, so they are short.
const SIZES: [u16; 6] = [2, 2, 8, 8, 32, 32];
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
const IN: usize = 4;
const OUT: usize = 5;
const PORTS: u32 = 2;

/// System calls of its thread.
const CALLS: &[i64] = &[libc::SYS_readv, libc::SYS_writev];

/// The device.
#[derive(Debug)]
pub(crate) struct Console {
    state: State,
    /// What has been agreed with the driver, while no thread has it.
    control: Control,
    /// Bytes of the oldest buffer from the guest that have been sent.
    sent: usize,
}

#[derive(Debug)]
enum State {
    Idle(OwnedFd),
    Busy(Worker<Work>),
    Lost,
}

impl Console {
    /// A port whose other end is `socket`, which must not block.
    pub fn new(socket: OwnedFd) -> Self {
        Self { state: State::Idle(socket), control: Control::default(), sent: 0 }
    }
}

impl Device for Console {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn queues(&self) -> &[u16] {
        &SIZES
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; 12];
        space[4..8].copy_from_slice(&PORTS.to_le_bytes());
        copy_config(&space, offset, data);
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(socket) => {
                let control = std::mem::take(&mut self.control);
                let skip = std::mem::take(&mut self.sent);
                let work = Work { socket, live, control, skip, sending: None, closed: false };
                self.state = State::Busy(Worker::start("link", CALLS, work, Work::run)?);
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
                self.sent = work.unsend();
                self.control = work.control;
                self.state = State::Idle(work.socket);
                work.live.queues
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }

    fn reset(&mut self) {
        self.control = Control::default();
        self.sent = 0;
    }

    fn save(&self) -> DeviceState {
        let (open, words) = self.control.save();
        let console = ConsoleState { open, words, sent: self.sent };
        DeviceState { console: Some(console), ..DeviceState::default() }
    }

    fn load(&mut self, state: DeviceState) {
        let ConsoleState { open, words, sent } = state.console.unwrap_or_default();
        self.control = Control::load(open, words);
        self.sent = sent;
    }
}

#[derive(Debug)]
struct Work {
    socket: OwnedFd,
    live: Live,
    control: Control,
    /// A chain whose bytes the socket did not take yet: its head, what is left, what went.
    sending: Option<Sending>,
    /// Bytes of the next chain that have been sent before.
    skip: usize,
    /// The other side has closed.
    closed: bool,
}

#[derive(Debug)]
struct Sending {
    head: u16,
    left: Vec<Piece>,
    sent: usize,
}

impl Work {
    /// Gives a chain back that was not sent whole; returns how much of it was.
    fn unsend(&mut self) -> usize {
        let Some(sending) = self.sending.take() else { return self.skip };
        if let Some(queue) = self.live.queues.get_mut(OUT) {
            queue.set_next_avail(queue.next_avail().wrapping_sub(1));
        }
        sending.sent
    }

    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let kicks = std::mem::take(&mut self.live.kicks);
        let ended = self.serve(stop, &kicks);
        self.live.kicks = kicks;
        ended
    }

    fn serve(&mut self, stop: &Stop, kicks: &[EventFd]) -> io::Result<()> {
        let [_, _, control_in, control_out, into, out] = kicks else {
            return Err(io::Error::other("queues are missing"));
        };
        let events = [control_in, control_out, into, out];
        loop {
            let mut again = self.talk()?;
            let (blocked, more) = self.send()?;
            again |= more;
            let (hungry, more) = self.receive()?;
            again |= more;
            if again {
                continue;
            }
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::OUT, blocked);
            wanted.set(PollFlags::IN, hungry && !self.closed);
            let [a, b, c, d] = events.map(|kick| (borrow(kick), PollFlags::IN));
            // A closed socket is always ready; nothing waits for it then.
            let ready = if wanted.is_empty() {
                stop.wait([a, b, c, d])?.map(|[a, b, c, d]| [a, b, c, d, false])
            } else {
                stop.wait([a, b, c, d, (self.socket.as_fd(), wanted)])?
            };
            let Some(ready) = ready else { return Ok(()) };
            for (event, ready) in events.into_iter().zip(ready) {
                if ready {
                    let _ = event.read();
                    count(&self.live.counters.kicks, 1);
                }
            }
        }
    }

    /// Control messages in both directions.
    fn talk(&mut self) -> io::Result<bool> {
        let memory = Arc::clone(&self.live.memory);
        let Some([from, to]) = self.live.queues.get_mut(CONTROL_IN..=CONTROL_OUT) else {
            return Err(io::Error::other("queues are missing"));
        };
        while let Some(chain) = next(to, &memory)? {
            let head = chain.head_index();
            if let Some(buffers) = Buffers::of(&memory, chain) {
                self.control.hear(&memory, &buffers.readable)?;
            }
            used(to, &memory, &self.live.interrupt, head, 0)?;
        }
        while self.control.has_words() {
            let Some(chain) = next(from, &memory)? else { break };
            let head = chain.head_index();
            let written = match Buffers::of(&memory, chain) {
                Some(buffers) => self.control.say(&memory, &buffers.writable)?,
                None => 0,
            };
            used(from, &memory, &self.live.interrupt, head, written)?;
        }
        // Buffers for our words are asked for only when there are words.
        let silent = !self.control.has_words();
        Ok(listen(to, &memory)? || (!silent && listen(from, &memory)?))
    }

    /// From the guest to the socket; whether the socket is full, and whether there is more.
    fn send(&mut self) -> io::Result<(bool, bool)> {
        let memory = Arc::clone(&self.live.memory);
        let Some(queue) = self.live.queues.get_mut(OUT) else { return Ok((false, false)) };
        loop {
            if self.sending.is_none() {
                let Some(chain) = next(queue, &memory)? else { break };
                let head = chain.head_index();
                let pieces = Buffers::of(&memory, chain).map(|buffers| buffers.readable);
                let mut left = pieces.unwrap_or_default();
                let sent = std::mem::take(&mut self.skip).min(total(&left));
                split(&mut left, sent).ok_or(io::ErrorKind::InvalidData)?;
                self.sending = Some(Sending { head, left, sent });
            }
            let Some(sending) = &mut self.sending else { break };
            if !sending.left.is_empty() && !self.closed {
                let socket = self.socket.as_fd();
                match transfer(&memory, socket, Way::Out, None, &sending.left) {
                    Ok(moved) => {
                        count(&self.live.counters.bytes_out, moved as u64);
                        sending.sent += moved;
                        split(&mut sending.left, moved).ok_or(io::ErrorKind::InvalidData)?;
                        if !sending.left.is_empty() {
                            continue;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok((true, false));
                    }
                    // Nobody is there any more: what is left is lost, and the guest soon, too.
                    Err(_) => self.closed = true,
                }
            }
            let head = sending.head;
            self.sending = None;
            used(queue, &memory, &self.live.interrupt, head, 0)?;
        }
        Ok((false, listen(queue, &memory)?))
    }

    /// From the socket to the guest; whether bytes are wanted, and whether to look again at once.
    fn receive(&mut self) -> io::Result<(bool, bool)> {
        let memory = Arc::clone(&self.live.memory);
        if !self.control.open() || self.closed {
            return Ok((false, false));
        }
        let Some(queue) = self.live.queues.get_mut(IN) else { return Ok((false, false)) };
        while let Some(chain) = next(queue, &memory)? {
            let head = chain.head_index();
            let pieces = Buffers::of(&memory, chain).map(|buffers| buffers.writable);
            let pieces = pieces.unwrap_or_default();
            let mut moved = 0;
            if total(&pieces) > 0 {
                match transfer(&memory, self.socket.as_fd(), Way::In, None, &pieces) {
                    Ok(bytes @ 1..) => moved = bytes,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        queue.go_to_previous_position();
                        return Ok((true, false));
                    }
                    Ok(0) | Err(_) => {
                        queue.go_to_previous_position();
                        self.closed = true;
                        break;
                    }
                }
            }
            count(&self.live.counters.bytes_in, moved as u64);
            let length = u32::try_from(moved).unwrap_or(0);
            used(queue, &memory, &self.live.interrupt, head, length)?;
        }
        Ok((false, listen(queue, &memory)?))
    }
}
