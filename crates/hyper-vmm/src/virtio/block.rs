//! Block device (virtio 1.2, 5.2) over files of the host.
//!
//! One thread per disk whose driver is there. It carries out by itself, by `preadv2` and `pwritev`
//! straight into guest memory, what the page cache takes or has, and what comes alone. What has to
//! wait for the host's disk while there is more to do goes to the host's io_uring (ring.rs), or, where
//! there is none, to threads that are made then (hands.rs).
//! A file that shrank or a host that is full is an I/O error of the request, told to the guest.
//!
//! A disk that comes later has a place from the start, which looks like a disk that is as long as
//! any may be and reads as zeros, so that nothing has to be told to the driver when it comes. After
//! its disk was taken away it stays as long, and every request fails: a driver that was told of
//! another length may be told of the next disk's too late.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod driver;
mod file;
mod hands;
mod limits;
mod others;
mod request;
mod ring;
#[cfg(test)]
mod test;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_queue::{DescriptorChain, Queue, QueueT as _};

use super::buffers::{listen, next, used};
use super::worker::{Stop, Worker};
use super::{Device, Live, copy_config};
use crate::event::Maker;
use crate::memory::Memory;
use crate::metrics::count;
pub(crate) use file::File;
pub(crate) use limits::Limits;
use others::Others;
use request::{Progress, Request};
use ring::Ring;

const KIND: u32 = 2;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
/// Pieces of one request, header and status not counted.
const SEGMENTS: u32 = 126;
const SECTOR: u64 = 512;
const BLOCK: u32 = 4096;
/// Length of `struct virtio_blk_config` up to the write-zeroes fields.
const CONFIG_BYTES: usize = 60;
/// Most sectors of one discard: 1 GiB.
const DISCARD_SECTORS: u32 = 1 << 21;
/// Ranges in one discard.
const DISCARD_RANGES: u32 = 16;
/// How often a disk that waits for its limits looks whether they are others.
const LOOK: Duration = Duration::from_millis(100);
/// And whether something that is in flight is done.
const LOOK_BUSY: Duration = Duration::from_millis(1);

/// System calls of its thread.
const CALLS: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_io_uring_enter,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwritev,
];

/// What all disks of a guest have from outside.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Where threads beside a device's own come from.
    pub maker: Maker,
    pub limits: Arc<Limits>,
    /// Whether a disk asks for an io_uring.
    pub rings: bool,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Host {
    /// One of tests and fuzz targets, with threads: see [`Maker::apart`].
    pub fn apart() -> Self {
        Self { maker: Maker::apart(), limits: Arc::default(), rings: false }
    }
}

/// Whether this host has rings.
pub(crate) fn rings() -> io::Result<()> {
    Ring::new(1).map(drop)
}

/// The device.
#[derive(Debug)]
pub(crate) struct Block {
    name: String,
    sizes: [u16; 1],
    read_only: bool,
    sectors: u64,
    /// It is a place whose disk is still to come, or was taken away.
    spare: bool,
    host: Host,
    /// While no thread has it, and where the host has one.
    ring: Option<Ring>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No driver.
    Idle(File),
    Busy(Worker<Work>),
    /// Its thread panicked: a bug, which the driver sees as a dead disk.
    Lost,
}

impl Block {
    /// A device with its disk.
    pub fn new(name: String, file: File, host: Host) -> Self {
        Self::with(name, file, host, 128)
    }

    /// A place for a disk that comes later.
    pub fn spare(name: String, read_only: bool, host: Host) -> Self {
        // It takes less of the guest's memory for requests, as it may stay empty.
        Self { spare: true, ..Self::with(name, File::empty(read_only), host, 32) }
    }

    fn with(name: String, file: File, host: Host, entries: u16) -> Self {
        Self {
            name,
            sizes: [entries],
            read_only: file.read_only(),
            sectors: file.bytes() / SECTOR,
            spare: false,
            // Threads do as well.
            ring: host.rings.then(|| Ring::new(entries)).and_then(Result::ok),
            host,
            state: State::Idle(file),
        }
    }

    /// Ends the device's thread, with all that are in flight done; `None` when it panicked.
    fn ended(&mut self, worker: Worker<Work>) -> Option<(File, Live)> {
        let work = worker.stop()?;
        self.ring = work.ring;
        Arc::into_inner(work.shared).map(Shared::into_parts)
    }

    fn start(&mut self, file: File, live: Live) -> io::Result<()> {
        let shared = Arc::new(Shared::new(file, live)?);
        let (name, host, ring) = (self.name.clone(), self.host.clone(), self.ring.take());
        let work = Work { name, host, ring, shared };
        self.state = State::Busy(Worker::start(&self.name, CALLS, work, Work::run)?);
        Ok(())
    }

    /// Puts `file` behind the device and closes what was there. Between two requests: the thread
    /// ends behind the one it is at.
    fn swap(&mut self, file: File) -> io::Result<()> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(_) => self.state = State::Idle(file),
            State::Busy(worker) => {
                let lost = || io::Error::other("its thread is lost");
                let (_, live) = self.ended(worker).ok_or_else(lost)?;
                self.start(file, live)?;
            }
            State::Lost => return Err(io::Error::other("its thread is lost")),
        }
        Ok(())
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        let common = F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        common | if self.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn queues(&self) -> &[u16] {
        &self.sizes
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEGMENTS.min(u32::from(self.sizes[0]) - 2).to_le_bytes());
        put(20, &BLOCK.to_le_bytes());
        put(36, &DISCARD_SECTORS.to_le_bytes());
        put(40, &DISCARD_RANGES.to_le_bytes());
        put(44, &(BLOCK / 512).to_le_bytes());
        put(48, &DISCARD_SECTORS.to_le_bytes());
        put(52, &DISCARD_RANGES.to_le_bytes());
        // Zeroing may unmap.
        put(56, &[1]);
        copy_config(&space, offset, data);
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(file) => self.start(file, live),
            other => {
                self.state = other;
                Err(io::Error::other("it has a driver already"))
            }
        }
    }

    fn stop(&mut self) -> Vec<Queue> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Busy(worker) => {
                let Some((file, live)) = self.ended(worker) else { return Vec::new() };
                self.state = State::Idle(file);
                live.queues
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }

    fn fill(&mut self, file: File) -> io::Result<()> {
        if !self.spare {
            return Err(io::Error::other("the place has a disk already"));
        }
        if file.read_only() != self.read_only {
            return Err(io::Error::other("the place is for another kind of disk"));
        }
        self.swap(file)?;
        self.spare = false;
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        if self.spare {
            return Err(io::Error::other("the place has no disk"));
        }
        self.swap(File::gone(self.read_only))?;
        self.spare = true;
        Ok(())
    }
}

/// What the device's thread has.
#[derive(Debug)]
struct Work {
    name: String,
    host: Host,
    ring: Option<Ring>,
    shared: Arc<Shared>,
}

/// What those that carry out requests have.
#[derive(Debug)]
struct Shared {
    file: File,
    /// Without its queue.
    live: Live,
    queue: Mutex<Queue>,
}

impl Shared {
    fn new(file: File, mut live: Live) -> io::Result<Self> {
        let queue = live.queues.pop().filter(|_| live.kicks.len() == 1);
        let queue = queue.ok_or_else(|| io::Error::other("it has another number of queues"))?;
        Ok(Self { file, live, queue: Mutex::new(queue) })
    }

    fn into_parts(self) -> (File, Live) {
        let Self { file, mut live, queue } = self;
        live.queues.push(queue.into_inner().unwrap_or_else(PoisonError::into_inner));
        (file, live)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next chain, and whether there is one more.
    fn next(&self) -> io::Result<Option<(DescriptorChain<Memory>, bool)>> {
        let Some(chain) = next(&mut self.queue(), &self.live.memory)? else { return Ok(None) };
        Ok(Some((chain, self.has_more()?)))
    }

    fn has_more(&self) -> io::Result<bool> {
        let queue = self.queue();
        let offered = queue.avail_idx(&*self.live.memory, Ordering::Relaxed);
        Ok(offered.map_err(io::Error::other)?.0 != queue.next_avail())
    }

    fn used(&self, head: u16, written: u32) -> io::Result<()> {
        used(&mut self.queue(), &self.live.memory, &self.live.interrupt, head, written)
    }

    /// Does what is left of a request; returns how many bytes were written to its chain.
    fn carry_out(&self, request: Request) -> u32 {
        request.finish(&self.file, &self.live.memory, &self.live.counters)
    }

    /// Ends a request that others have carried out.
    fn tell(&self, request: &Request, said: io::Result<()>) -> u32 {
        request.tell(&self.live.memory, said, &self.live.counters)
    }
}

impl Work {
    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let (maker, shared) = (self.host.maker.clone(), Arc::clone(&self.shared));
        let mut others = Others::new(self.ring.take(), &self.name, maker, shared);
        let served = self.serve(stop, &mut others);
        // What is in flight is done, also when the queue can be served no more.
        let (ring, ended) = others.end();
        self.ring = ring;
        served.and(ended)
    }

    fn serve(&self, stop: &Stop, others: &mut Others) -> io::Result<()> {
        let live = &self.shared.live;
        loop {
            // What is there is done before the kick is waited for: the first may have come early.
            self.drain(stop, others)?;
            let all = others.advance()?;
            if !stop.asked() && (!all || listen(&mut self.shared.queue(), &live.memory)?) {
                continue;
            }
            let kick = &live.kicks[0];
            match others.wait(stop, kick)? {
                None => return Ok(()),
                Some(false) => {}
                Some(true) => {
                    let _ = kick.read();
                    count(&live.counters.kicks, 1);
                }
            }
        }
    }

    /// Waits until the disk may move something; whether it may: not when it shall end before.
    fn wait_for_limits(&self, stop: &Stop, others: &mut Others) -> io::Result<bool> {
        loop {
            let wait = self.host.limits.wait(self.shared.file.devices());
            if wait.is_zero() {
                return Ok(true);
            }
            others.advance()?;
            // They may be changed meanwhile, and what is in flight be done.
            let look = if others.busy() { LOOK_BUSY } else { LOOK };
            if stop.wait_for(wait.min(look))? {
                return Ok(false);
            }
        }
    }

    /// Carries out what the driver has offered, or has it carried out; when the thread shall end, no
    /// more than a queue has room for: a driver that goes on offering must not keep it.
    fn drain(&self, stop: &Stop, others: &mut Others) -> io::Result<()> {
        let shared = &*self.shared;
        let live = &shared.live;
        let size = shared.queue().size();
        let mut left = size;
        let mut waited = false;
        loop {
            others.wait_for_room(size)?;
            if !self.wait_for_limits(stop, others)? {
                // What is left is still in the ring, for whoever goes on with it.
                break;
            }
            let Some((chain, more)) = shared.next()? else { break };
            let head = chain.head_index();
            let progress = match Request::of(&live.memory, chain, &live.counters) {
                Ok(request) => {
                    self.host.limits.charge(shared.file.devices(), request.cost());
                    request.begin(&shared.file, &live.memory, &live.counters)
                }
                Err(written) => Progress::Done(written),
            };
            match progress {
                Progress::Done(written) => shared.used(head, written)?,
                Progress::Waits(request) => {
                    // One alone is done sooner without another thread. It is not when it waited for
                    // the one before: came before that was told, so not because of it.
                    let alone = !(more || waited || others.busy() || request.is_long());
                    let own = if alone { Some(request) } else { others.take(request, more)? };
                    if let Some(request) = own {
                        let written = shared.carry_out(request);
                        waited = shared.has_more()?;
                        shared.used(head, written)?;
                    }
                }
            }
            if stop.asked() {
                left = left.saturating_sub(1);
                if left == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}
