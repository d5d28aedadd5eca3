//! The byte stream under the reader: counts what is read and holds it to the limit.

use super::error::TarError;
use crate::limits::LimitExceeded;
use std::io::{BufRead, BufReader, ErrorKind, Read};

pub(super) struct Input<R> {
    reader: BufReader<R>,
    /// Bytes consumed so far.
    pub(super) position: u64,
    max_bytes: u64,
    /// Name of the entry being read, for messages.
    pub(super) entry: String,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R, max_bytes: u64) -> Self {
        Self {
            reader: BufReader::with_capacity(128 << 10, reader),
            position: 0,
            max_bytes,
            entry: String::new(),
        }
    }

    /// Reads up to `buffer.len()` bytes; 0 is the end of the stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.reader.read(buffer) {
                Ok(count) => return self.advance(count as u64).map(|()| count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(source)),
            }
        }
    }

    /// Fills `buffer`, or says `false` if the stream ended before its first byte.
    pub(super) fn read_block(&mut self, buffer: &mut [u8]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(self.truncated((buffer.len() - filled) as u64)),
                count => filled += count,
            }
        }
        Ok(true)
    }

    /// Reads exactly `len` bytes; the caller has checked that `len` is reasonable.
    pub(super) fn read_vec(&mut self, len: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| self.truncated(len))?];
        if !bytes.is_empty() && !self.read_block(&mut bytes)? {
            return Err(self.truncated(len));
        }
        Ok(bytes)
    }

    pub(super) fn skip(&mut self, len: u64) -> Result<(), TarError> {
        match self.skip_some(len)? {
            0 => Ok(()),
            missing => Err(self.truncated(missing)),
        }
    }

    /// Skips what carries no data: `false` if the stream ended in it.
    pub(super) fn skip_padding(&mut self, len: u64) -> Result<bool, TarError> {
        Ok(self.skip_some(len)? == 0)
    }

    /// Skips `len` bytes; returns how many the stream did not have.
    fn skip_some(&mut self, mut len: u64) -> Result<u64, TarError> {
        while len > 0 {
            let available = self.fill()?;
            if available == 0 {
                return Ok(len);
            }
            let count = len.min(available as u64);
            #[expect(clippy::cast_possible_truncation, reason = "count is at most `available`")]
            self.reader.consume(count as usize);
            self.advance(count)?;
            len -= count;
        }
        Ok(0)
    }

    /// Reads what is left, so that a digest taken below covers the whole stream.
    pub(super) fn drain(&mut self) -> Result<(), TarError> {
        loop {
            let available = self.fill()?;
            if available == 0 {
                return Ok(());
            }
            self.reader.consume(available);
            self.advance(available as u64)?;
        }
    }

    fn fill(&mut self) -> Result<usize, TarError> {
        loop {
            match self.reader.fill_buf() {
                Ok(bytes) => return Ok(bytes.len()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(source)),
            }
        }
    }

    fn advance(&mut self, count: u64) -> Result<(), TarError> {
        self.position += count;
        LimitExceeded::check("bytes in one archive", self.position, self.max_bytes)
            .map_err(|source| TarError::Limit { entry: self.entry.clone(), source })
    }

    fn io(&self, source: std::io::Error) -> TarError {
        TarError::Io { entry: self.entry.clone(), source }
    }

    pub(super) fn truncated(&self, missing: u64) -> TarError {
        TarError::Truncated { entry: self.entry.clone(), missing }
    }
}
