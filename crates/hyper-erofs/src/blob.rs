//! Writes a layer's blob: file contents one after the other, each starting on a 4 KiB boundary, padded with zeros.
//!
//! Contents are read straight into one large buffer that is written when full, so that many small files
//! cost few system calls and no content is copied twice.

use crate::BLOCK_SIZE;
use crate::index::FileData;
use std::io::{self, Write};

/// Most blocks a blob may have: EROFS addresses blocks with 32 bits.
pub(crate) const MAX_BLOB_BLOCKS: u64 = u32::MAX as u64;

const BUFFER: usize = 512 << 10;

pub(crate) struct BlobWriter<W> {
    out: W,
    buffer: Box<[u8]>,
    filled: usize,
    blocks: u64,
}

/// Which side of a copy failed.
pub(crate) enum CopyError<E> {
    Read(E),
    Write(io::Error),
    /// The source ended early.
    Short,
}

impl<W: Write> BlobWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, buffer: vec![0; BUFFER].into_boxed_slice(), filled: 0, blocks: 0 }
    }

    /// Appends one content of exactly `size` bytes, taken from `read`, which returns 0 at its end.
    pub(crate) fn append<E>(
        &mut self,
        size: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<FileData, CopyError<E>> {
        if size == 0 {
            return Ok(FileData::default());
        }
        let data = FileData { size, block: self.blocks };
        let mut left = size;
        while left > 0 {
            let room = &mut self.buffer[self.filled..];
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            let count = read(&mut room[..want]).map_err(CopyError::Read)?;
            if count == 0 {
                return Err(CopyError::Short);
            }
            left -= count as u64;
            self.filled += count;
            self.write_if_full().map_err(CopyError::Write)?;
        }
        let aligned = self.filled.next_multiple_of(BLOCK_SIZE as usize);
        self.buffer[self.filled..aligned].fill(0);
        self.filled = aligned;
        self.write_if_full().map_err(CopyError::Write)?;
        self.blocks += size.div_ceil(BLOCK_SIZE);
        Ok(data)
    }

    /// Writes what is left; returns the length in blocks.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.out.write_all(&self.buffer[..self.filled])?;
        self.out.flush()?;
        Ok(self.blocks)
    }

    fn write_if_full(&mut self) -> io::Result<()> {
        if self.filled == self.buffer.len() {
            self.out.write_all(&self.buffer)?;
            self.filled = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn contents_are_aligned_and_padded() {
        let mut out = Vec::new();
        let mut writer = BlobWriter::new(&mut out);
        let contents: Vec<Vec<u8>> = [1usize, 4096, 0, 4097, BUFFER - 4096, BUFFER * 2 + 5]
            .iter()
            .enumerate()
            .map(|(number, size)| vec![u8::try_from(number).unwrap() + 1; *size])
            .collect();
        let mut places = Vec::new();
        for content in &contents {
            let mut source = &content[..];
            let place = writer.append(content.len() as u64, |buffer| source.read(buffer));
            places.push(place.ok().unwrap());
        }
        let blocks = writer.finish().unwrap();
        assert_eq!(out.len() as u64, blocks * BLOCK_SIZE);
        for (content, place) in contents.iter().zip(places) {
            let start = usize::try_from(place.offset()).unwrap();
            assert_eq!(&out[start..start + content.len()], content);
            let end = start + content.len();
            assert!(out[end..end.next_multiple_of(4096)].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let mut writer = BlobWriter::new(Vec::new());
        let mut source = &b"abc"[..];
        assert!(matches!(writer.append(4, |buffer| source.read(buffer)), Err(CopyError::Short)));
    }
}
