//! A descriptor chain as pieces of memory that system calls can read and write.
//!
//! Every address and length is checked against guest memory before a pointer is made of it.

use std::io;
use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryMmap};

use super::Interrupt;
use crate::memory::Memory;

/// Most pieces of a chain; Linux's drivers make none longer than their queue and 2.
const MAX_PIECES: usize = 1026;

/// The next chain that the driver has offered. An index that no driver could have written is an
/// error: it would otherwise be offered again and again.
pub(super) fn next(
    queue: &mut Queue,
    memory: &Memory,
) -> io::Result<Option<DescriptorChain<Memory>>> {
    if !queue.ready() {
        return Ok(None);
    }
    let mut chains = queue.iter(Arc::clone(memory)).map_err(io::Error::other)?;
    Ok(chains.next())
}

/// Gives a chain back, `length` bytes of which were written.
pub(super) fn used(
    queue: &mut Queue,
    memory: &Memory,
    interrupt: &Interrupt,
    head: u16,
    length: u32,
) -> io::Result<()> {
    queue.add_used(&**memory, head, length).map_err(io::Error::other)?;
    if queue.needs_notification(&**memory).map_err(io::Error::other)? {
        interrupt.used();
    }
    Ok(())
}

/// Asks for kicks; whether something has come in the meantime.
pub(super) fn listen(queue: &mut Queue, memory: &Memory) -> io::Result<bool> {
    if !queue.ready() {
        return Ok(false);
    }
    queue.enable_notification(&**memory).map_err(io::Error::other)
}

/// Part of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub at: GuestAddress,
    pub bytes: usize,
}

/// A chain's pieces in order: those the device reads, then those it writes.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub readable: Vec<Piece>,
    pub writable: Vec<Piece>,
}

impl Buffers {
    /// Takes a chain apart. `None` when it breaks a rule: too many pieces, memory that is not
    /// there, something to read behind something to write.
    pub fn of(memory: &GuestMemoryMmap, chain: DescriptorChain<Memory>) -> Option<Self> {
        let mut buffers = Self::default();
        for descriptor in chain {
            let piece = Piece { at: descriptor.addr(), bytes: descriptor.len() as usize };
            if buffers.readable.len() + buffers.writable.len() >= MAX_PIECES {
                return None;
            }
            if piece.bytes == 0 {
                continue;
            }
            memory.get_slice(piece.at, piece.bytes).ok()?;
            if descriptor.is_write_only() {
                buffers.writable.push(piece);
            } else if buffers.writable.is_empty() {
                buffers.readable.push(piece);
            } else {
                return None;
            }
        }
        Some(buffers)
    }
}

/// Bytes of all pieces.
pub(super) fn total(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.bytes).sum()
}

/// Takes `bytes` from the front.
pub(super) fn split(pieces: &mut Vec<Piece>, bytes: usize) -> Option<Vec<Piece>> {
    let mut front = Vec::new();
    let mut missing = bytes;
    while missing > 0 {
        let first = pieces.first_mut()?;
        if first.bytes > missing {
            front.push(Piece { at: first.at, bytes: missing });
            first.at = GuestAddress(first.at.0.checked_add(missing as u64)?);
            first.bytes -= missing;
            missing = 0;
        } else {
            missing -= first.bytes;
            front.push(pieces.remove(0));
        }
    }
    Some(front)
}

/// Takes `bytes` from the end.
pub(super) fn split_end(pieces: &mut Vec<Piece>, bytes: usize) -> Option<Vec<Piece>> {
    let keep = total(pieces).checked_sub(bytes)?;
    let front = split(pieces, keep)?;
    Some(std::mem::replace(pieces, front))
}

/// Copies `pieces` to `out`; returns how many bytes there were for it.
pub(super) fn gather(
    memory: &GuestMemoryMmap,
    pieces: &[Piece],
    out: &mut [u8],
) -> io::Result<usize> {
    let mut done = 0;
    for piece in pieces {
        let length = piece.bytes.min(out.len() - done);
        memory.read_slice(&mut out[done..done + length], piece.at).map_err(io::Error::other)?;
        done += length;
    }
    Ok(done)
}

/// Copies `bytes` to `pieces`; returns how many found room.
pub(super) fn scatter(
    memory: &GuestMemoryMmap,
    pieces: &[Piece],
    bytes: &[u8],
) -> io::Result<usize> {
    let mut done = 0;
    for piece in pieces {
        let length = piece.bytes.min(bytes.len() - done);
        memory.write_slice(&bytes[done..done + length], piece.at).map_err(io::Error::other)?;
        done += length;
    }
    Ok(done)
}

/// What a system call does with pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the file to the guest.
    In,
    /// That, as far as nothing has to be waited for: what is in the page cache. Else, and where
    /// the file system cannot say so, the error is `WouldBlock`.
    InNow,
    /// From the guest to the file.
    Out,
}

/// Most vectors of one system call (`UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// Pieces as addresses of this process, as many as one system call takes. They are good for as long as
/// the memory is mapped.
pub(super) fn vectors(memory: &GuestMemoryMmap, pieces: &[Piece]) -> io::Result<Vec<libc::iovec>> {
    let one = |piece: &Piece| {
        let slice = memory.get_slice(piece.at, piece.bytes).map_err(io::Error::other)?;
        let first = slice.ptr_guard_mut().as_ptr();
        Ok(libc::iovec { iov_base: first.cast(), iov_len: piece.bytes })
    };
    pieces.iter().take(MAX_VECTORS).map(one).collect()
}

/// Moves bytes between a file and guest memory without a copy here, from `offset` of the file on,
/// or from where a stream is when that is `None`. Returns what the system call moved.
pub(super) fn transfer(
    memory: &GuestMemoryMmap,
    file: std::os::fd::BorrowedFd<'_>,
    way: Way,
    offset: Option<u64>,
    pieces: &[Piece],
) -> io::Result<usize> {
    use std::os::fd::AsRawFd as _;
    let vectors = vectors(memory, pieces)?;
    let count = i32::try_from(vectors.len()).map_err(io::Error::other)?;
    let (fd, list) = (file.as_raw_fd(), vectors.as_ptr());
    let at = offset.map(libc::off_t::try_from).transpose().map_err(io::Error::other)?;
    loop {
        // SAFETY: every vector is a range of guest memory, checked by `get_slice`, mapped for as
        // long as `memory` lives, and never referenced from Rust: the guest itself may write to
        // it at any time. The descriptor is open.
        let moved = unsafe {
            match (way, at) {
                (Way::In, Some(at)) => libc::preadv(fd, list, count, at),
                (Way::Out, Some(at)) => libc::pwritev(fd, list, count, at),
                (Way::In, None) => libc::readv(fd, list, count),
                // Where the stream is: -1.
                (Way::InNow, at) => {
                    libc::preadv2(fd, list, count, at.unwrap_or(-1), libc::RWF_NOWAIT)
                }
                (Way::Out, None) => libc::writev(fd, list, count),
            }
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = io::Error::last_os_error();
                if way == Way::InNow && error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn piece(at: u64, bytes: usize) -> Piece {
        Piece { at: GuestAddress(at), bytes }
    }

    #[test]
    fn pieces_are_split_anywhere() {
        let mut pieces = vec![piece(0, 10), piece(100, 10)];
        assert_eq!(split(&mut pieces, 15).unwrap(), [piece(0, 10), piece(100, 5)]);
        assert_eq!(pieces, [piece(105, 5)]);
        assert!(split(&mut pieces, 6).is_none());
        let mut pieces = vec![piece(0, 10), piece(100, 10)];
        assert_eq!(split_end(&mut pieces, 1).unwrap(), [piece(109, 1)]);
        assert_eq!(pieces, [piece(0, 10), piece(100, 9)]);
        assert!(split_end(&mut pieces, 20).is_none());
        assert_eq!(total(&pieces), 19);
    }

    #[test]
    fn bytes_travel_between_files_and_memory() {
        use std::io::{Read as _, Seek as _, Write as _};
        use std::os::fd::AsFd as _;
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let pieces = [piece(0x1000, 3), piece(0x3000, 4)];
        let moved = transfer(&memory, file.as_fd(), Way::In, Some(2), &pieces).unwrap();
        let mut seen = [0; 7];
        assert_eq!((moved, gather(&memory, &pieces, &mut seen).unwrap()), (7, 7));
        assert_eq!(&seen, b"2345678");
        assert_eq!(scatter(&memory, &pieces, b"abcdefgh").unwrap(), 7);
        transfer(&memory, file.as_fd(), Way::Out, Some(0), &pieces).unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdefg789");
        let outside = [piece(0xffff_f000, 4096)];
        assert!(transfer(&memory, file.as_fd(), Way::In, Some(0), &outside).is_err());
    }
}
