//! A driver without a guest: it offers requests, and sleeps until the interrupt as a guest does.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::Block;
use crate::memory::Memory;
use crate::virtio::Transport;
use crate::virtio::worker::borrow;

pub const READ: u32 = super::request::IN;
pub const WRITE: u32 = super::request::OUT;
pub const FLUSH: u32 = super::request::FLUSH;
pub const CLEAR: u32 = super::request::WRITE_ZEROES;

const MEMORY: u64 = 16 << 20;
const TABLE: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1_4000;
const USED: u64 = 0x1_8000;
const HEADERS: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;
const DATA: u64 = 1 << 20;
/// Requests that there is room for in a queue of 128 entries, three to each, and bytes for the data
/// of each.
pub const SLOTS: u16 = 40;
pub const ROOM: u32 = 128 << 10;

pub struct Driver {
    pub transport: Transport,
    pub memory: Memory,
    line: EventFd,
    kick: EventFd,
    entries: u16,
    offered: u16,
    seen: u16,
}

impl Driver {
    /// Starts on a disk.
    pub fn on(disk: Block) -> Self {
        let memory = crate::memory::take(MEMORY, false, Default::default()).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (own, given) = (Arc::clone(&memory), line.try_clone().unwrap());
        let transport =
            Transport::new("disk".to_owned(), Box::new(disk), own, given, false).unwrap();
        let kick = transport.kicks()[0].try_clone().unwrap();
        let mut driver = Self { transport, memory, line, kick, entries: 0, offered: 0, seen: 0 };
        driver.set_up();
        driver
    }

    /// Resets the device, and begins anew.
    pub fn set_up(&mut self) {
        (self.offered, self.seen) = (0, 0);
        self.register(0x70, 0);
        let mut most = [0; 4];
        self.transport.read(0x34, &mut most);
        self.entries = u32::from_le_bytes(most) as u16;
        for at in [AVAILABLE + 2, USED + 2] {
            self.memory.write_obj(0_u16, GuestAddress(at)).unwrap();
        }
        let rings = [(0x80, TABLE as u32), (0x90, AVAILABLE as u32), (0xa0, USED as u32)];
        for (offset, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0)]
            .into_iter()
            .chain([(0x38, self.entries.into())])
            .chain(rings)
            .chain([(0x44, 1), (0x70, 15)])
        {
            self.register(offset, value);
        }
    }

    fn register(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn data(slot: u16) -> GuestAddress {
        GuestAddress(DATA + u64::from(slot) * u64::from(ROOM))
    }

    /// Offers a request, which the device sees from [`Self::kick`] on. What is cleared is named by the
    /// slot's data.
    pub fn offer(&mut self, slot: u16, kind: u32, sector: u64, bytes: u32) {
        let header = HEADERS + 16 * u64::from(slot);
        let status = STATUS + u64::from(slot);
        self.put(header, &kind.to_le_bytes());
        self.put(header + 8, &sector.to_le_bytes());
        self.put(status, &[0xff]);
        let first = 3 * slot;
        let data = if kind == READ { 3_u16 } else { 1 };
        self.descriptor(first, header, 16, 1, if bytes == 0 { first + 2 } else { first + 1 });
        self.descriptor(first + 1, Self::data(slot).0, bytes, data, first + 2);
        self.descriptor(first + 2, status, 1, 2, 0);
        let entry = AVAILABLE + 4 + 2 * u64::from(self.offered % self.entries);
        self.put(entry, &first.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device all that was offered, at once.
    pub fn kick(&self) {
        let index = GuestAddress(AVAILABLE + 2);
        self.memory.store(self.offered, index, Ordering::SeqCst).unwrap();
        self.kick.write(1).unwrap();
    }

    /// What was done since, once there is something: slots and their status.
    pub fn wait(&mut self) -> Vec<(u16, u8)> {
        loop {
            let done = self.done();
            if !done.is_empty() {
                return done;
            }
            let mut line = [PollFd::from_borrowed_fd(borrow(&self.line), PollFlags::IN)];
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            assert!(poll(&mut line, Some(&limit)).unwrap() > 0, "no interrupt for 20 s");
            let _ = self.line.read();
            self.register(0x64, 1);
        }
    }

    /// What was done since.
    pub fn done(&mut self) -> Vec<(u16, u8)> {
        let index: u16 = self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap();
        let mut done = Vec::new();
        while self.seen != index {
            let entry = USED + 4 + 8 * u64::from(self.seen % self.entries);
            let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
            let slot = head as u16 / 3;
            let status = GuestAddress(STATUS + u64::from(slot));
            done.push((slot, self.memory.read_obj(status).unwrap()));
            self.seen = self.seen.wrapping_add(1);
        }
        done
    }

    fn descriptor(&self, index: u16, at: u64, bytes: u32, flags: u16, next: u16) {
        let place = TABLE + 16 * u64::from(index);
        self.put(place, &at.to_le_bytes());
        self.put(place + 8, &bytes.to_le_bytes());
        self.put(place + 12, &flags.to_le_bytes());
        self.put(place + 14, &next.to_le_bytes());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}

/// A file whose every sector begins with its number.
pub fn numbered(sectors: u64) -> fs::File {
    let file = tempfile::tempfile().unwrap();
    let mut out = std::io::BufWriter::with_capacity(1 << 20, &file);
    for sector in 0..sectors {
        let mut bytes = [0xa5_u8; 512];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        out.write_all(&bytes).unwrap();
    }
    drop(out);
    assert_eq!(file.metadata().unwrap().len(), sectors * 512);
    file
}

/// Out of the page cache, as far as the file system does that.
pub fn forget(file: &fs::File) {
    file.sync_data().unwrap();
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// The number that a sector of a file begins with.
pub fn number(file: &fs::File, sector: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, sector * 512).unwrap();
    u64::from_le_bytes(bytes)
}
