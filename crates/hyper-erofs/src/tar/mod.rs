//! A streaming tar reader for hostile archives.
//!
//! Reads ustar, GNU (long names, sparse) and PAX (binary-safe records, sub-second times, xattrs, sparse 0.0, 0.1, 1.0).
//! Where writers disagree it reads what Go's `archive/tar` reads, since that is what Docker and containerd use:
//! links, devices and directories have no content whatever their size field says; a GNU long name wins over a PAX
//! path; a stream may end without the two zero blocks, or inside the last entry's padding. Names are returned as they
//! are: judging them is the caller's part.
//!
//! ```text
//!  ┌► header ─┬─ x g L K V ─► remember ─┐
//!  │          └─ entry ─► content (read_data, any part of it) ─► rest and padding skipped ─┐
//!  └──────────┴─────────────────────────┴────────────────────────────────────────────────────┘   two zero blocks or end: None
//! ```

mod error;
mod header;
mod input;
mod pax;
mod sparse;
pub mod write;

pub use error::TarError;

use crate::index::{Timestamp, Xattr};
use crate::limits::{LimitExceeded, Limits};
use header::{BLOCK, BadNumber, RawHeader, until_nul};
use input::Input;
use pax::Pax;
use sparse::{Run, Segment, SparseMap};
use std::io::Read;

/// An entry's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name as in the archive, without NUL, otherwise any bytes: absolute, with `..`, empty, anything.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: HeaderKind,
    /// `0o7777` at most.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// In the order of the archive, a name possibly more than once (the last one counts).
    pub xattrs: Vec<Xattr>,
}

/// What an archive entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKind {
    /// A regular file with `size` bytes to be had from [`Reader::read_data`], holes included.
    File {
        /// In bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// As in the archive.
        target: Vec<u8>,
    },
    /// Another name of an earlier entry.
    HardLink {
        /// As in the archive.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// The reader; see the module's head.
pub struct Reader<R> {
    input: Input<R>,
    limits: Limits,
    global: Pax,
    content: Content,
    holes: u64,
    ended: bool,
}

/// Where in the current entry's content the reader stands.
#[derive(Default)]
struct Content {
    /// Bytes in the stream not read yet.
    stored: u64,
    /// Zeros up to the next header.
    padding: u64,
    /// Bytes of the file already returned, and its size.
    position: u64,
    size: u64,
    map: Option<SparseMap>,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Reader")
            .field("position", &self.input.position)
            .field("entry", &self.input.entry)
            .finish_non_exhaustive()
    }
}

impl<R: Read> Reader<R> {
    /// Reads an archive, already decompressed, from `input` (buffered here).
    pub fn new(input: R, limits: &Limits) -> Self {
        Self {
            input: Input::new(input, limits.max_stream_bytes),
            limits: *limits,
            global: Pax::default(),
            content: Content::default(),
            holes: 0,
            ended: false,
        }
    }

    /// The next entry, skipping what is left of the current one; `None` at the end, once the whole stream was read.
    ///
    /// # Errors
    /// [`TarError`]; the reader is of no use afterwards.
    pub fn next_entry(&mut self) -> Result<Option<Header>, TarError> {
        self.input.skip(self.content.stored)?;
        // Some writers (umoci insert 0.4.7) end the stream inside the padding of the last entry.
        if !self.input.skip_padding(self.content.padding)? {
            self.ended = true;
        }
        self.content = Content::default();
        let mut local = Pax::default();
        let (mut long_name, mut long_link) = (None, None);
        while let Some(raw) = self.next_header()? {
            match raw.type_flag() {
                flag @ (b'x' | b'g' | b'L' | b'K') => {
                    let bytes = self.extension(&raw)?;
                    match flag {
                        b'L' => long_name = Some(until_nul(&bytes).to_vec()),
                        b'K' => long_link = Some(until_nul(&bytes).to_vec()),
                        b'g' => {
                            let merged =
                                self.global.parse(&bytes).and_then(|()| self.global.check_global());
                            merged.map_err(|what| self.malformed(what))?;
                        }
                        _ => {
                            local = Pax::default();
                            local.parse(&bytes).map_err(|what| self.malformed(what))?;
                        }
                    }
                }
                // A volume label says nothing about any file.
                b'V' => {
                    let size = raw.size().map_err(|BadNumber| self.malformed(BAD_NUMBER))?;
                    self.input.skip(size)?;
                    self.input.skip(padding(size))?;
                }
                _ => return self.entry(&raw, &local, long_name, long_link).map(Some),
            }
        }
        Ok(None)
    }

    /// Reads content of the current entry; 0 at its end. Holes read as zeros.
    ///
    /// # Errors
    /// [`TarError`], if the stream ends early or fails.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let left = self.content.size - self.content.position;
        let run = match &self.content.map {
            Some(map) => map.run(self.content.position),
            None => Run::Content(left),
        };
        let (Run::Content(len) | Run::Hole(len)) = run;
        let count = usize::try_from(len.min(left)).unwrap_or(usize::MAX).min(buffer.len());
        if count == 0 {
            return Ok(0);
        }
        let count = match run {
            Run::Hole(_) => {
                buffer[..count].fill(0);
                count
            }
            Run::Content(_) => {
                let count = self.input.read(&mut buffer[..count])?;
                if count == 0 {
                    return Err(self.input.truncated(self.content.stored));
                }
                self.content.stored -= count as u64;
                count
            }
        };
        self.content.position += count as u64;
        Ok(count)
    }

    /// The next header block with a good checksum; `None` at the end of the archive.
    fn next_header(&mut self) -> Result<Option<RawHeader>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let offset = self.input.position;
        let mut raw = RawHeader([0; BLOCK]);
        let mut present = self.input.read_block(&mut raw.0)?;
        if present && raw.is_zero() {
            present = self.input.read_block(&mut raw.0)?;
            if present && !raw.is_zero() {
                return Err(self.malformed("a single zero block after it"));
            }
            present = false;
        }
        if !present {
            self.ended = true;
            self.input.drain()?;
            return Ok(None);
        }
        if !raw.checksum_holds() {
            return Err(TarError::Checksum { entry: self.input.entry.clone(), offset });
        }
        self.input.entry = String::from_utf8_lossy(&raw.name()).into_owned();
        Ok(Some(raw))
    }

    /// Content of a header that describes the next one.
    fn extension(&mut self, raw: &RawHeader) -> Result<Vec<u8>, TarError> {
        let size = raw.size().map_err(|BadNumber| self.malformed(BAD_NUMBER))?;
        LimitExceeded::check("bytes in an extended header", size, self.limits.max_extension_bytes)
            .map_err(|source| self.over_limit(source))?;
        let bytes = self.input.read_vec(size)?;
        self.input.skip(padding(size))?;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        raw: &RawHeader,
        local: &Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Header, TarError> {
        let path = long_name
            .or(local.sparse.name.clone())
            .or(local.path.clone())
            .unwrap_or_else(|| raw.name());
        self.input.entry = String::from_utf8_lossy(&path).into_owned();
        let bad =
            |BadNumber| TarError::Malformed { entry: self.input.entry.clone(), what: BAD_NUMBER };
        let target = long_link.or(local.link_path.clone()).unwrap_or_else(|| raw.link_name());
        let stored = local.size.map_or_else(|| raw.size(), Ok).map_err(bad)?;
        let kind = match raw.type_flag() {
            // Before there was a flag for directories.
            0 if path.ends_with(b"/") => HeaderKind::Directory,
            b'0' | 0 | b'7' | b'S' => HeaderKind::File { size: stored },
            b'1' => HeaderKind::HardLink { target },
            b'2' => HeaderKind::Symlink { target },
            flag @ (b'3' | b'4') => {
                let (major, minor) = raw.device().map_err(bad)?;
                if flag == b'3' {
                    HeaderKind::CharDevice { major, minor }
                } else {
                    HeaderKind::BlockDevice { major, minor }
                }
            }
            b'5' => HeaderKind::Directory,
            b'6' => HeaderKind::Fifo,
            flag => {
                let entry = self.input.entry.clone();
                return Err(TarError::UnsupportedType { entry, flag: char::from(flag) });
            }
        };
        let mut header = Header {
            path,
            kind,
            mode: raw.mode().map_err(bad)?,
            uid: local.uid.or(self.global.uid).map_or_else(|| raw.uid(), Ok).map_err(bad)?,
            gid: local.gid.or(self.global.gid).map_or_else(|| raw.gid(), Ok).map_err(bad)?,
            mtime: local
                .mtime
                .or(self.global.mtime)
                .map_or_else(|| raw.mtime(), Ok)
                .map_err(bad)?,
            xattrs: self
                .global
                .xattrs
                .iter()
                .cloned()
                .chain(local.xattrs.iter().cloned())
                .collect(),
        };
        if matches!(raw.type_flag(), b'0' | 0 | b'7' | b'S') {
            self.content = Content { stored, padding: padding(stored), ..Content::default() };
        }
        if let HeaderKind::File { size } = &mut header.kind {
            self.content.size = stored;
            if let Some(map) = self.sparse_map(raw, local)? {
                self.holes = self.holes.saturating_add(map.holes());
                LimitExceeded::check("bytes of holes", self.holes, self.limits.max_hole_bytes)
                    .map_err(|source| self.over_limit(source))?;
                self.content.size = map.real_size;
                self.content.map = Some(map);
            }
            *size = self.content.size;
        }
        Ok(header)
    }

    /// The map of a sparse file; takes map blocks stored before the content out of the stream.
    fn sparse_map(&mut self, raw: &RawHeader, pax: &Pax) -> Result<Option<SparseMap>, TarError> {
        let (segments, real_size) = match (raw.type_flag(), pax.sparse.major, pax.sparse.minor) {
            (b'S', ..) => self.gnu_sparse_map(raw)?,
            (_, Some(1), Some(0)) => (self.sparse_map_in_content()?, pax.sparse.real_size),
            (_, None | Some(0), None | Some(0 | 1)) => match &pax.sparse.map {
                Some(segments) => (segments.clone(), pax.sparse.real_size),
                None => return Ok(None),
            },
            _ => return Err(self.malformed("a sparse map in an unknown format")),
        };
        let real_size =
            real_size.ok_or_else(|| self.malformed("a sparse map without the size of the file"))?;
        SparseMap::new(segments, real_size, self.content.stored)
            .map(Some)
            .map_err(|what| self.malformed(what))
    }

    fn gnu_sparse_map(&mut self, raw: &RawHeader) -> Result<(Vec<Segment>, Option<u64>), TarError> {
        let (real_size, mut segments, mut more) =
            raw.gnu_sparse().map_err(|BadNumber| self.malformed(BAD_NUMBER))?;
        while more {
            let mut block = RawHeader([0; BLOCK]);
            if !self.input.read_block(&mut block.0)? {
                return Err(self.input.truncated(BLOCK as u64));
            }
            let further;
            (further, more) =
                block.gnu_sparse_more().map_err(|BadNumber| self.malformed(BAD_NUMBER))?;
            segments.extend(further);
            sparse::check_count(segments.len()).map_err(|source| self.over_limit(source))?;
        }
        Ok((segments, Some(real_size)))
    }

    /// Format 1.0: decimal numbers, each on a line, the number of segments first, padded to a block.
    fn sparse_map_in_content(&mut self) -> Result<Vec<Segment>, TarError> {
        let mut bytes = Vec::new();
        let mut line_start = 0;
        let mut numbers = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let Some(newline) = bytes[line_start..].iter().position(|byte| *byte == b'\n') else {
                self.take_map_block(&mut bytes, &mut line_start)?;
                continue;
            };
            let number = pax::decimal(&bytes[line_start..line_start + newline])
                .map_err(|what| self.malformed(what))?;
            line_start += newline + 1;
            if numbers.is_empty() {
                let count = usize::try_from(number).unwrap_or(usize::MAX);
                sparse::check_count(count).map_err(|source| self.over_limit(source))?;
                wanted = 1 + 2 * count;
            }
            numbers.push(number);
        }
        Ok(numbers[1..]
            .chunks_exact(2)
            .map(|pair| Segment { offset: pair[0], len: pair[1] })
            .collect())
    }

    /// Moves one block of the stored content to `bytes`, dropping the lines already read from its front.
    fn take_map_block(
        &mut self,
        bytes: &mut Vec<u8>,
        line_start: &mut usize,
    ) -> Result<(), TarError> {
        bytes.drain(..*line_start);
        *line_start = 0;
        // A line is a number of at most 20 digits.
        if bytes.len() > 20 || self.content.stored < BLOCK as u64 {
            return Err(self.malformed("a sparse map that does not end"));
        }
        let block = self.input.read_vec(BLOCK as u64)?;
        bytes.extend_from_slice(&block);
        self.content.stored -= BLOCK as u64;
        Ok(())
    }

    fn malformed(&self, what: &'static str) -> TarError {
        TarError::Malformed { entry: self.input.entry.clone(), what }
    }

    fn over_limit(&self, source: LimitExceeded) -> TarError {
        TarError::Limit { entry: self.input.entry.clone(), source }
    }
}

/// [`Reader::read_data`] for whoever needs the standard trait; the error is a [`TarError`] inside.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.read_data(buffer).map_err(std::io::Error::other)
    }
}

const BAD_NUMBER: &str = "a number that is not one, or is too large for its meaning";

/// Bytes up to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
