//! One request of a block driver (virtio 1.2, 5.2.6): header, data, a byte for the status.

use std::io;

use virtio_queue::DescriptorChain;

use super::super::buffers::{Buffers, Piece, Way, gather, scatter, split, split_end, total};
use super::{DISCARD_RANGES, DISCARD_SECTORS, File, SECTOR};
use crate::memory::Memory;
use crate::metrics::{DeviceCounters, count};

const HEADER: usize = 16;
const RANGE: usize = 16;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const ID_BYTES: usize = 20;

/// Carries it out and returns how many bytes were written to the chain. A chain without room for
/// the status gets none.
pub(super) fn carry_out(
    file: &File,
    memory: &Memory,
    chain: DescriptorChain<Memory>,
    counters: &DeviceCounters,
) -> u32 {
    let Some(mut buffers) = Buffers::of(memory, chain) else {
        count(&counters.errors, 1);
        return 0;
    };
    let Some(status) = split_end(&mut buffers.writable, 1) else {
        count(&counters.errors, 1);
        return 0;
    };
    let room = total(&buffers.writable);
    let (said, written) = match request(file, memory, buffers, counters) {
        Ok(written) => (OK, written),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => (UNSUPP, 0),
        Err(_) => (IOERR, 0),
    };
    if said != OK {
        count(&counters.errors, 1);
    }
    match scatter(memory, &status, &[said]) {
        // Of a read that failed the guest must not believe a byte: all of its room counts.
        Ok(_) if said != OK => u32::try_from(room + 1).unwrap_or(1),
        Ok(_) => u32::try_from(written + 1).unwrap_or(1),
        Err(_) => 0,
    }
}

fn request(
    file: &File,
    memory: &Memory,
    mut buffers: Buffers,
    counters: &DeviceCounters,
) -> io::Result<usize> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let head = split(&mut buffers.readable, HEADER).ok_or_else(invalid)?;
    let mut header = [0; HEADER];
    gather(memory, &head, &mut header)?;
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = u64::from_le_bytes(header[8..16].try_into().map_err(|_| invalid())?);
    let offset = sector.checked_mul(SECTOR).ok_or_else(invalid)?;
    match kind {
        IN => {
            let bytes = total(&buffers.writable);
            file.move_bytes(memory, Way::In, offset, buffers.writable)?;
            count(&counters.bytes_in, bytes as u64);
            Ok(bytes)
        }
        OUT => {
            let bytes = total(&buffers.readable);
            file.move_bytes(memory, Way::Out, offset, buffers.readable)?;
            count(&counters.bytes_out, bytes as u64);
            Ok(0)
        }
        FLUSH => file.flush().map(|()| 0),
        GET_ID => scatter(memory, &buffers.writable, &[0; ID_BYTES]),
        DISCARD | WRITE_ZEROES => clear(file, memory, &buffers.readable).map(|()| 0),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Ranges to discard or to fill with zeros: what is discarded reads as zeros here.
fn clear(file: &File, memory: &Memory, pieces: &[Piece]) -> io::Result<()> {
    let bytes = total(pieces);
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    if bytes == 0 || !bytes.is_multiple_of(RANGE) || bytes > RANGE * DISCARD_RANGES as usize {
        return Err(invalid());
    }
    let mut ranges = vec![0; bytes];
    gather(memory, pieces, &mut ranges)?;
    for range in ranges.chunks_exact(RANGE) {
        let sector = u64::from_le_bytes(range[..8].try_into().map_err(|_| invalid())?);
        let sectors = u32::from_le_bytes(range[8..12].try_into().map_err(|_| invalid())?);
        if sectors > DISCARD_SECTORS {
            return Err(invalid());
        }
        if sectors > 0 {
            let offset = sector.checked_mul(SECTOR).ok_or_else(invalid)?;
            file.clear(offset, u64::from(sectors) * SECTOR)?;
        }
    }
    Ok(())
}
