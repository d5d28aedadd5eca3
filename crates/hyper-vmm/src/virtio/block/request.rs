//! One request of a block driver (virtio 1.2, 5.2.6): header, data, a byte for the status.

use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::DescriptorChain;

use super::super::buffers::{Buffers, Piece, Way, gather, scatter, split, split_end, total};
use super::file::Span;
use super::limits::Cost;
use super::{DISCARD_RANGES, DISCARD_SECTORS, File, SECTOR};
use crate::memory::Memory;
use crate::metrics::{DeviceCounters, count};

const HEADER: usize = 16;
const RANGE: usize = 16;
pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
pub(super) const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const ID_BYTES: usize = 20;

/// What became of a request at the first look.
pub(super) enum Progress {
    /// It is done, and this many bytes were written to its chain.
    Done(u32),
    /// It has to wait for the host's disk.
    Waits(Request),
}

/// A step of a request that has to wait for the host's disk.
pub(super) enum Next<'a> {
    /// From a place of a file into memory.
    Read(BorrowedFd<'a>, u64, Cow<'a, [Piece]>),
    Sync(BorrowedFd<'a>),
    /// A file's place and bytes.
    Clear(BorrowedFd<'a>, u64, u64),
    /// There is none any more.
    Done,
}

/// A request that was understood.
#[derive(Debug)]
pub(super) struct Request {
    pub head: u16,
    status: Vec<Piece>,
    /// Bytes that the chain has room for beside the status.
    room: usize,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Read(Span),
    /// And all of its bytes, as those of the span become fewer.
    Write(Span, u64),
    Flush,
    Id(Vec<Piece>),
    /// Where each range begins, and its bytes.
    Clear(Vec<(u64, u64)>),
}

impl Request {
    /// What a chain asks for; of one that asks for nothing that there is, how many bytes were written
    /// to it. One without room for the status gets none.
    pub fn of(
        memory: &Memory,
        chain: DescriptorChain<Memory>,
        counters: &DeviceCounters,
    ) -> Result<Self, u32> {
        let head = chain.head_index();
        let parts = Buffers::of(memory, chain).and_then(|mut buffers| {
            let status = split_end(&mut buffers.writable, 1)?;
            Some((buffers, status))
        });
        let Some((buffers, status)) = parts else {
            count(&counters.errors, 1);
            return Err(0);
        };
        let room = total(&buffers.writable);
        match Work::of(memory, buffers) {
            Ok(work) => Ok(Self { head, status, room, work }),
            Err(error) => Err(tell(memory, &status, room, Err(error), counters)),
        }
    }

    /// What it moves.
    pub fn cost(&self) -> Cost {
        match &self.work {
            Work::Read(_) => Cost { read_bytes: self.room as u64, reads: 1, ..Cost::default() },
            Work::Write(_, bytes) => Cost { write_bytes: *bytes, writes: 1, ..Cost::default() },
            Work::Clear(_) => Cost { writes: 1, ..Cost::default() },
            Work::Flush | Work::Id(_) => Cost::default(),
        }
    }

    /// Whether it takes long even where disks are fast.
    pub fn is_long(&self) -> bool {
        !matches!(self.work, Work::Read(_))
    }

    /// Does what can be done without waiting.
    pub fn begin(mut self, file: &File, memory: &Memory, counters: &DeviceCounters) -> Progress {
        let said = match &mut self.work {
            Work::Read(span) => file.move_bytes(memory, Way::InNow, span),
            Work::Clear(_) => Err(io::ErrorKind::WouldBlock.into()),
            Work::Flush if file.flushes() => Err(io::ErrorKind::WouldBlock.into()),
            // Writes end in the page cache, and those to one file wait for each other anyway.
            Work::Write(..) | Work::Flush | Work::Id(_) => self.work.carry_out(file, memory),
        };
        match said {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Waits(self),
            said => Progress::Done(self.tell(memory, said, counters)),
        }
    }

    /// Does what is left of it; returns how many bytes were written to its chain.
    pub fn finish(mut self, file: &File, memory: &Memory, counters: &DeviceCounters) -> u32 {
        let said = self.work.carry_out(file, memory);
        self.tell(memory, said, counters)
    }

    /// What of it the host's kernel is to do when `done` steps of it are.
    pub fn next<'a>(&'a self, file: &'a File, done: usize) -> io::Result<Next<'a>> {
        Ok(match &self.work {
            Work::Read(span) => file
                .part(span)?
                .map_or(Next::Done, |(file, at, pieces)| Next::Read(file, at, pieces)),
            Work::Flush => file.sync_step(done)?.map_or(Next::Done, Next::Sync),
            Work::Clear(ranges) => match ranges.get(done) {
                Some(&(offset, bytes)) => {
                    let (file, at) = file.clear_step(offset, bytes)?;
                    Next::Clear(file, at, bytes)
                }
                None => Next::Done,
            },
            Work::Write(..) | Work::Id(_) => return Err(io::ErrorKind::Unsupported.into()),
        })
    }

    /// A step of it was done, and moved so many bytes.
    pub fn moved(&mut self, bytes: usize) -> io::Result<()> {
        match &mut self.work {
            Work::Read(span) => span.moved(bytes),
            _ => Ok(()),
        }
    }

    /// Ends it; returns how many bytes were written to its chain.
    pub fn tell(&self, memory: &Memory, said: io::Result<()>, counters: &DeviceCounters) -> u32 {
        let said = said.map(|()| match &self.work {
            Work::Read(_) => {
                count(&counters.bytes_in, self.room as u64);
                self.room
            }
            Work::Write(_, bytes) => {
                count(&counters.bytes_out, *bytes);
                0
            }
            Work::Id(_) => self.room.min(ID_BYTES),
            Work::Flush | Work::Clear(_) => 0,
        });
        tell(memory, &self.status, self.room, said, counters)
    }
}

impl Work {
    fn of(memory: &Memory, mut buffers: Buffers) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let head = split(&mut buffers.readable, HEADER).ok_or_else(invalid)?;
        let mut header = [0; HEADER];
        gather(memory, &head, &mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..16].try_into().map_err(|_| invalid())?);
        let offset = sector.checked_mul(SECTOR).ok_or_else(invalid)?;
        match kind {
            IN => Ok(Self::Read(Span { offset, pieces: buffers.writable })),
            OUT => {
                let bytes = total(&buffers.readable) as u64;
                Ok(Self::Write(Span { offset, pieces: buffers.readable }, bytes))
            }
            FLUSH => Ok(Self::Flush),
            GET_ID => Ok(Self::Id(buffers.writable)),
            DISCARD | WRITE_ZEROES => ranges(memory, &buffers.readable).map(Self::Clear),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn carry_out(&mut self, file: &File, memory: &Memory) -> io::Result<()> {
        match self {
            Self::Read(span) => file.move_bytes(memory, Way::In, span),
            Self::Write(span, _) => file.move_bytes(memory, Way::Out, span),
            Self::Flush => file.flush(),
            Self::Id(pieces) => scatter(memory, pieces, &[0; ID_BYTES]).map(drop),
            Self::Clear(ranges) => {
                ranges.iter().try_for_each(|(from, bytes)| file.clear(*from, *bytes))
            }
        }
    }
}

/// Ranges to discard or to fill with zeros: what is discarded reads as zeros here.
fn ranges(memory: &Memory, pieces: &[Piece]) -> io::Result<Vec<(u64, u64)>> {
    let bytes = total(pieces);
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    if bytes == 0 || !bytes.is_multiple_of(RANGE) || bytes > RANGE * DISCARD_RANGES as usize {
        return Err(invalid());
    }
    let mut told = vec![0; bytes];
    gather(memory, pieces, &mut told)?;
    let mut ranges = Vec::with_capacity(bytes / RANGE);
    for range in told.chunks_exact(RANGE) {
        let sector = u64::from_le_bytes(range[..8].try_into().map_err(|_| invalid())?);
        let sectors = u32::from_le_bytes(range[8..12].try_into().map_err(|_| invalid())?);
        if sectors > DISCARD_SECTORS {
            return Err(invalid());
        }
        if sectors > 0 {
            let offset = sector.checked_mul(SECTOR).ok_or_else(invalid)?;
            ranges.push((offset, u64::from(sectors) * SECTOR));
        }
    }
    Ok(ranges)
}

/// Writes the status; returns how many bytes were written in all.
fn tell(
    memory: &Memory,
    status: &[Piece],
    room: usize,
    said: io::Result<usize>,
    counters: &DeviceCounters,
) -> u32 {
    let (said, written) = match said {
        Ok(written) => (OK, written),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => (UNSUPP, 0),
        Err(_) => (IOERR, 0),
    };
    if said != OK {
        count(&counters.errors, 1);
    }
    match scatter(memory, status, &[said]) {
        // Of a read that failed the guest must not believe a byte: all of its room counts.
        Ok(_) if said != OK => u32::try_from(room + 1).unwrap_or(1),
        Ok(_) => u32::try_from(written + 1).unwrap_or(1),
        Err(_) => 0,
    }
}
