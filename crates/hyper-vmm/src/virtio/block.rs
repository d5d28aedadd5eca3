//! Block device (virtio 1.2, 5.2) over files of the host.
//!
//! One thread per disk whose driver is there. Requests are carried out in their order, by `preadv`
//! and `pwritev` straight into guest memory. A file that shrank or a host that is full is an I/O
//! error of the request, told to the guest.
//!
//! A disk that comes later has a place from the start, which looks like a disk that is as long as
//! any may be and reads as zeros, so that nothing has to be told to the driver when it comes. After
//! its disk was taken away it stays as long, and every request fails: a driver that was told of
//! another length may be told of the next disk's too late.

mod file;
mod request;
#[cfg(test)]
mod test;

use std::io;
use std::sync::Arc;

use rustix::event::PollFlags;
use virtio_queue::{Queue, QueueT as _};

use super::buffers::{listen, next, used};
use super::worker::{Stop, Worker, borrow};
use super::{Device, Live, copy_config};
use crate::metrics::count;
pub(crate) use file::File;

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

/// System calls of its thread.
const CALLS: &[i64] =
    &[libc::SYS_fallocate, libc::SYS_fdatasync, libc::SYS_preadv, libc::SYS_pwritev];

/// The device.
#[derive(Debug)]
pub(crate) struct Block {
    name: String,
    sizes: [u16; 1],
    read_only: bool,
    sectors: u64,
    /// It is a place whose disk is still to come, or was taken away.
    spare: bool,
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
    pub fn new(name: String, file: File) -> Self {
        Self {
            name,
            sizes: [128],
            read_only: file.read_only(),
            sectors: file.bytes() / SECTOR,
            spare: false,
            state: State::Idle(file),
        }
    }

    /// A place for a disk that comes later.
    pub fn spare(name: String, read_only: bool) -> Self {
        // It takes less of the guest's memory for requests, as it may stay empty.
        Self { sizes: [32], spare: true, ..Self::new(name, File::empty(read_only)) }
    }

    fn start(&mut self, work: Work) -> io::Result<()> {
        self.state = State::Busy(Worker::start(&self.name, CALLS, work, Work::run)?);
        Ok(())
    }

    /// Puts `file` behind the device and closes what was there. Between two requests: the thread
    /// ends behind the one it is at.
    fn swap(&mut self, file: File) -> io::Result<()> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Idle(_) => self.state = State::Idle(file),
            State::Busy(worker) => {
                let work = worker.stop().ok_or_else(|| io::Error::other("its thread is lost"))?;
                self.start(Work { file, live: work.live })?;
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
            State::Idle(file) => self.start(Work { file, live }),
            other => {
                self.state = other;
                Err(io::Error::other("it has a driver already"))
            }
        }
    }

    fn stop(&mut self) -> Vec<Queue> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Busy(worker) => {
                let Some(work) = worker.stop() else { return Vec::new() };
                self.state = State::Idle(work.file);
                work.live.queues
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

/// What the thread has.
#[derive(Debug)]
struct Work {
    file: File,
    live: Live,
}

impl Work {
    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let missing = || io::Error::other("the driver has set up no queue");
        let kicks = std::mem::take(&mut self.live.kicks);
        let kick = kicks.first().ok_or_else(missing)?;
        let mut queue = self.live.queues.pop().ok_or_else(missing)?;
        let ended = self.serve(stop, kick, &mut queue);
        self.live.queues.push(queue);
        self.live.kicks = kicks;
        ended
    }

    fn serve(
        &mut self,
        stop: &Stop,
        kick: &vmm_sys_util::eventfd::EventFd,
        queue: &mut Queue,
    ) -> io::Result<()> {
        let memory = Arc::clone(&self.live.memory);
        loop {
            // What is there is done before the kick is waited for: the first may have come early.
            self.drain(stop, queue)?;
            if !stop.asked() && listen(queue, &memory)? {
                continue;
            }
            if stop.wait([(borrow(kick), PollFlags::IN)])?.is_none() {
                return Ok(());
            }
            let _ = kick.read();
            count(&self.live.counters.kicks, 1);
        }
    }

    /// Carries out what the driver has offered; when the thread shall end, no more than a queue has
    /// room for: a driver that goes on offering must not keep it.
    fn drain(&mut self, stop: &Stop, queue: &mut Queue) -> io::Result<()> {
        let memory = Arc::clone(&self.live.memory);
        let mut left = queue.size();
        while let Some(chain) = next(queue, &memory)? {
            let head = chain.head_index();
            let written = request::carry_out(&self.file, &memory, chain, &self.live.counters);
            used(queue, &memory, &self.live.interrupt, head, written)?;
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
