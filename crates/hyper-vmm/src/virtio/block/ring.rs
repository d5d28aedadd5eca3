//! Requests that the host's kernel carries out while the device's thread goes on: io_uring(7).
//!
//! ```text
//!  made, restricted ──► idle ── driver ──► in flight ── end: all are done ──► idle
//! ```
//! A ring is made before the guest runs. From then on it reads, syncs and clears, whoever has its
//! descriptor: the kernel refuses it all else (`IORING_REGISTER_RESTRICTIONS`, Linux 5.10), and no
//! thread may make another (seccomp.rs). Where a host has none, or does not allow one
//! (`kernel.io_uring_disabled`), threads wait instead (hands.rs).
//!
//! Invariant: what is in flight has its request, and the list of its memory, in a slot. A slot that is
//! in flight is not let go.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use super::Shared;
use super::request::{Next, Request};
use crate::config::HANDS;
use crate::virtio::buffers::vectors;

/// Requests that are queued for the kernel before it is told.
const BATCH: usize = 8;

/// A ring without requests.
pub(super) struct Ring(IoUring);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Ring {
    /// One for so many requests at once.
    ///
    /// # Errors
    /// The host has none that can be restricted.
    pub fn new(entries: u16) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(entries.into())?;
        let allowed = [opcode::Readv::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        let submitter = ring.submitter();
        // For what the kernel cannot do without a thread it takes one of the monitor's own, of which the
        // host bounds how many there are. Before Linux 5.15 their number is the kernel's choice.
        let most = u32::try_from(HANDS).unwrap_or(1);
        let _ = submitter.register_iowq_max_workers(&mut [most, most]);
        submitter.register_restrictions(&mut allowed.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self(ring))
    }

    /// What the kernel says to a wish that no disk has.
    #[cfg(test)]
    pub fn tries_a_socket(mut self) -> Option<i32> {
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        push(&mut self, &socket).ok()?;
        self.0.submit_and_wait(1).ok()?;
        self.0.completion().next().map(|done| done.result())
    }
}

/// What a thread has in flight. They end when this is dropped.
pub(super) struct Flights {
    /// There but for the end.
    ring: Option<Ring>,
    shared: Arc<Shared>,
    slots: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Entries that the kernel does not know of yet.
    queued: usize,
}

struct Flight {
    request: Request,
    /// Steps that are done.
    done: usize,
    vectors: Vec<libc::iovec>,
}

impl Flights {
    /// None yet.
    pub fn new(ring: Ring, shared: Arc<Shared>) -> Self {
        let room = ring.0.params().sq_entries() as usize;
        let slots = (0..room).map(|_| None).collect();
        Self { ring: Some(ring), shared, slots, free: (0..room).rev().collect(), queued: 0 }
    }

    /// What is readable when a request is done.
    pub fn done(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring's descriptor is open as long as the ring, which is borrowed as long.
        self.ring.as_ref().map(|ring| unsafe { BorrowedFd::borrow_raw(ring.0.as_raw_fd()) })
    }

    /// Whether there are any.
    pub fn busy(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    /// Waits until fewer than `limit` requests are in flight.
    pub fn wait_for_room(&mut self, limit: u16) -> io::Result<()> {
        let limit = self.slots.len().min(limit.into());
        while self.slots.len() - self.free.len() >= limit {
            self.submit(1)?;
            self.reap()?;
        }
        Ok(())
    }

    /// Takes a request; `more`: there will be others at once. There is room ([`Self::wait_for_room`]).
    pub fn take(&mut self, request: Request, more: bool) -> io::Result<()> {
        let slot = self.free.pop().ok_or_else(|| io::Error::other("there is no room"))?;
        self.slots[slot] = Some(Flight { request, done: 0, vectors: Vec::new() });
        self.go_on(slot)?;
        if more && self.queued < BATCH { Ok(()) } else { self.submit(0) }
    }

    /// Tells the kernel what is new, and the driver what is done; whether the kernel has taken all.
    pub fn advance(&mut self) -> io::Result<bool> {
        self.reap()?;
        self.submit(0)?;
        Ok(self.queued == 0)
    }

    /// Returns the ring when all that was in flight is done.
    pub fn end(mut self) -> (Option<Ring>, io::Result<()>) {
        let ended = self.finish();
        let idle = !self.busy();
        (self.ring.take_if(|_| idle), ended)
    }

    fn finish(&mut self) -> io::Result<()> {
        // A queue that can be served no more does not stop what the kernel is at.
        let mut first = Ok(());
        while self.busy() {
            self.submit(1)?;
            first = first.and(self.reap());
        }
        first
    }

    /// Queues what a request needs next, or ends it.
    fn go_on(&mut self, slot: usize) -> io::Result<()> {
        let Self { ring: Some(ring), shared, slots, .. } = self else { return Ok(()) };
        let Some(flight) = &mut slots[slot] else { return Ok(()) };
        let entry = match flight.request.next(&shared.file, flight.done) {
            Ok(Next::Done) => return self.tell(slot, Ok(())),
            Err(error) => return self.tell(slot, Err(error)),
            Ok(Next::Read(file, offset, pieces)) => match vectors(&shared.live.memory, &pieces) {
                Err(error) => return self.tell(slot, Err(error)),
                Ok(list) => {
                    flight.vectors = list;
                    let count = u32::try_from(flight.vectors.len()).unwrap_or(0);
                    let file = types::Fd(file.as_raw_fd());
                    opcode::Readv::new(file, flight.vectors.as_ptr(), count).offset(offset).build()
                }
            },
            Ok(Next::Sync(file)) => opcode::Fsync::new(types::Fd(file.as_raw_fd()))
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Ok(Next::Clear(file, offset, bytes)) => {
                let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let file = types::Fd(file.as_raw_fd());
                opcode::Fallocate::new(file, bytes).offset(offset).mode(how).build()
            }
        };
        match push(ring, &entry.user_data(slot as u64)) {
            Ok(()) => {
                self.queued += 1;
                Ok(())
            }
            error => self.tell(slot, error),
        }
    }

    /// Tells the kernel what is queued, and waits until `wanted` requests are done.
    fn submit(&mut self, wanted: usize) -> io::Result<()> {
        let Some(ring) = &self.ring else { return Ok(()) };
        if self.queued == 0 && wanted == 0 {
            return Ok(());
        }
        loop {
            match ring.0.submitter().submit_and_wait(wanted) {
                Ok(told) => {
                    self.queued = self.queued.saturating_sub(told);
                    // What it did not take it takes when there is room for what is done.
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It has no memory now, or no room for what is done.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::yield_now();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes on with what the kernel has done: all of it, whatever becomes of one.
    fn reap(&mut self) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        let done: Vec<_> = ring.0.completion().map(|one| (one.user_data(), one.result())).collect();
        let mut all = Ok(());
        for (slot, result) in done {
            let slot = usize::try_from(slot).unwrap_or(usize::MAX);
            all = all.and(self.step_done(slot, result));
        }
        all
    }

    fn step_done(&mut self, slot: usize, result: i32) -> io::Result<()> {
        let Some(flight) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return Err(io::Error::other("something is done that was not asked for"));
        };
        if result == -libc::EAGAIN || result == -libc::EINTR {
            // It is not done, and is asked for once more.
            return self.go_on(slot);
        }
        flight.done += 1;
        let moved = usize::try_from(result)
            .map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
            .and_then(|moved| flight.request.moved(moved));
        match moved {
            Ok(()) => self.go_on(slot),
            error => self.tell(slot, error),
        }
    }

    /// Ends a request that is not in flight any more.
    fn tell(&mut self, slot: usize, said: io::Result<()>) -> io::Result<()> {
        let Some(Flight { request, .. }) = self.slots[slot].take() else { return Ok(()) };
        self.free.push(slot);
        let head = request.head;
        let written = self.shared.tell(&request, said);
        self.shared.used(head, written)
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        if self.finish().is_err() {
            // The kernel may still be at it: its lists stay, as the guest's memory does.
            self.slots.drain(..).for_each(std::mem::forget);
        }
    }
}

fn push(ring: &mut Ring, entry: &Entry) -> io::Result<()> {
    // SAFETY: what the entry names is there until it is done: the list of its memory in its slot, the
    // memory for as long as the process, its file as long as the device's thread, which ends behind
    // what is in flight.
    let pushed = unsafe { ring.0.submission().push(entry) };
    pushed.map_err(|_| io::Error::other("the ring is full"))
}
