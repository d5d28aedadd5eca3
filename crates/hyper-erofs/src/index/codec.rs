//! The index file: `magic, version, payload length, CRC-32C of the payload, payload`.
//!
//! ```text
//!  0        8        12       16              24     28
//!  │HYPERLX1│version │ crc32c │ payload length│ ─ ─ ─ payload
//!  payload: blob blocks, number of entries, entries
//!  entry:   kind, length of the prefix shared with the path before, rest of the path, what the kind has
//! ```
//! Numbers in the payload are LEB128; there is one way to encode each index, so equal indexes are equal bytes.

use super::{Attributes, Entry, FileData, Kind, LayerIndex, Timestamp, Xattr};
use crate::BLOCK_SIZE;
use crate::blob::MAX_BLOB_BLOCKS;
use crate::limits::{LimitExceeded, Limits, MAX_PATH, MAX_XATTR_NAME, MAX_XATTR_VALUE, MAX_XATTRS};
use crate::path;
use thiserror::Error;

const MAGIC: &[u8; 8] = b"HYPERLX1";
const VERSION: u32 = 1;
const HEAD: usize = 24;
/// No entry is shorter: kind, prefix, rest, and one number.
const MIN_ENTRY: u64 = 3;

/// Why bytes are not an index.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IndexError {
    /// Not an index file at all.
    #[error("not a layer index: wrong magic bytes")]
    Magic,
    /// Written by another version of this program; convert the layer again.
    #[error("layer index has version {found}, this program reads {expected}")]
    Version {
        /// In the file.
        found: u32,
        /// Known here.
        expected: u32,
    },
    /// Shorter or longer than its head says, or its checksum is wrong.
    #[error("layer index is damaged: {0}")]
    Damaged(&'static str),
    /// A value no index written by this program can have.
    #[error("layer index entry {entry} is invalid: {what}")]
    Invalid {
        /// Number of the entry, from 0.
        entry: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Too large.
    #[error("layer index is too large")]
    Limit(#[from] LimitExceeded),
}

impl LayerIndex {
    /// The bytes of the index file. The same index gives the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        put_number(&mut out, self.blob_blocks);
        put_number(&mut out, self.entries.len() as u64);
        let mut previous: &[u8] = b"";
        for entry in &self.entries {
            put_entry(&mut out, entry, previous);
            previous = &entry.path;
        }
        let payload = &out[HEAD..];
        let (len, checksum) = (payload.len() as u64, crc32c::crc32c(payload));
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&checksum.to_le_bytes());
        out[16..24].copy_from_slice(&len.to_le_bytes());
        out
    }

    /// Reads an index file, checking its checksum and every invariant of [`Entry`].
    ///
    /// # Errors
    /// [`IndexError`]: none of them is worth retrying; the layer has to be converted again.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, IndexError> {
        let (head, payload) = bytes
            .split_first_chunk::<HEAD>()
            .ok_or(IndexError::Damaged("shorter than its head"))?;
        if &head[..8] != MAGIC {
            return Err(IndexError::Magic);
        }
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(8) != VERSION {
            return Err(IndexError::Version { found: word(8), expected: VERSION });
        }
        let len = u64::from(word(16)) | u64::from(word(20)) << 32;
        if len != payload.len() as u64 {
            return Err(IndexError::Damaged("its length is not what its head says"));
        }
        if word(12) != crc32c::crc32c(payload) {
            return Err(IndexError::Damaged("its checksum is wrong"));
        }
        let mut decoder = Decoder { rest: payload, entry: 0, limits, bytes: 0 };
        let index = decoder.index()?;
        if decoder.rest.is_empty() {
            Ok(index)
        } else {
            Err(decoder.invalid("bytes after the last entry"))
        }
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry, previous: &[u8]) {
    out.push(match entry.kind {
        Kind::Directory { .. } => 1,
        Kind::File { .. } => 2,
        Kind::Symlink { .. } => 3,
        Kind::HardLink { .. } => 4,
        Kind::CharDevice { .. } => 5,
        Kind::BlockDevice { .. } => 6,
        Kind::Fifo { .. } => 7,
        Kind::Whiteout => 8,
        Kind::Opaque => 9,
    });
    let shared = entry.path.iter().zip(previous).take_while(|(new, old)| new == old).count();
    put_number(out, shared as u64);
    put_bytes(out, &entry.path[shared..]);
    if let Some(attributes) = entry.kind.attributes() {
        put_attributes(out, attributes);
    }
    match &entry.kind {
        Kind::File { data, .. } => {
            put_number(out, data.size);
            put_number(out, data.block);
        }
        Kind::Symlink { target, .. } | Kind::HardLink { target } => put_bytes(out, target),
        Kind::CharDevice { major, minor, .. } | Kind::BlockDevice { major, minor, .. } => {
            put_number(out, u64::from(*major));
            put_number(out, u64::from(*minor));
        }
        Kind::Directory { .. } | Kind::Fifo { .. } | Kind::Whiteout | Kind::Opaque => {}
    }
}

fn put_attributes(out: &mut Vec<u8>, attributes: &Attributes) {
    put_number(out, u64::from(attributes.mode));
    put_number(out, u64::from(attributes.uid));
    put_number(out, u64::from(attributes.gid));
    let seconds = attributes.mtime.seconds;
    put_number(out, (seconds << 1 ^ seconds >> 63).cast_unsigned());
    put_number(out, u64::from(attributes.mtime.nanoseconds));
    put_number(out, attributes.xattrs.len() as u64);
    for xattr in &attributes.xattrs {
        put_bytes(out, &xattr.name);
        put_bytes(out, &xattr.value);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low seven bits are what is meant"
        )]
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.push(number as u8);
}

struct Decoder<'a> {
    rest: &'a [u8],
    entry: u64,
    limits: &'a Limits,
    /// Bytes of names and xattrs so far: shared prefixes let a small file ask for a lot of memory.
    bytes: u64,
}

impl Decoder<'_> {
    fn index(&mut self) -> Result<LayerIndex, IndexError> {
        let blob_blocks = self.number()?;
        LimitExceeded::check("blocks in a blob", blob_blocks, MAX_BLOB_BLOCKS)?;
        let count = self.number()?;
        LimitExceeded::check("entries", count, self.limits.max_entries)?;
        if count > self.rest.len() as u64 / MIN_ENTRY {
            return Err(IndexError::Damaged("more entries than bytes"));
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        for number in 0..count {
            self.entry = number;
            let previous = entries.last().map_or(&b""[..], |entry| &entry.path);
            let entry = self.entry(previous, blob_blocks)?;
            entries.push(entry);
        }
        Ok(LayerIndex { entries, blob_blocks })
    }

    fn entry(&mut self, previous: &[u8], blob_blocks: u64) -> Result<Entry, IndexError> {
        let kind = self.byte()?;
        let shared = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let shared = previous
            .get(..shared)
            .ok_or_else(|| self.invalid("prefix longer than the path before"))?;
        let path = [shared, self.bytes(MAX_PATH)?].concat();
        self.check_path(&path)?;
        self.account(path.len())?;
        let kind = match kind {
            1 => Kind::Directory { attributes: self.attributes()? },
            2 => Kind::File { attributes: self.attributes()?, data: self.data(blob_blocks)? },
            3 => {
                let attributes = self.attributes()?;
                let target = self.bytes(MAX_PATH)?.to_vec();
                if target.is_empty() || target.contains(&0) {
                    return Err(self.invalid("impossible symbolic link target"));
                }
                self.account(target.len())?;
                Kind::Symlink { attributes, target }
            }
            4 => {
                let target = self.bytes(MAX_PATH)?.to_vec();
                self.check_path(&target)?;
                self.account(target.len())?;
                Kind::HardLink { target }
            }
            5 | 6 => {
                let attributes = self.attributes()?;
                let (major, minor) = (self.number()?, self.number()?);
                let (Some(major), Some(minor)) = (below(major, 12), below(minor, 20)) else {
                    return Err(self.invalid("device number too large"));
                };
                if kind == 5 {
                    Kind::CharDevice { attributes, major, minor }
                } else {
                    Kind::BlockDevice { attributes, major, minor }
                }
            }
            7 => Kind::Fifo { attributes: self.attributes()? },
            8 => Kind::Whiteout,
            9 => Kind::Opaque,
            _ => return Err(self.invalid("unknown kind")),
        };
        let may_be_root = matches!(kind, Kind::Directory { .. } | Kind::Opaque);
        if path.is_empty() && !may_be_root {
            return Err(self.invalid("the root is not a directory"));
        }
        Ok(Entry { path, kind })
    }

    fn attributes(&mut self) -> Result<Attributes, IndexError> {
        let mode = below(self.number()?, 12).ok_or_else(|| self.invalid("mode too large"))?;
        let (uid, gid) = (self.number()?, self.number()?);
        let (Some(uid), Some(gid)) = (below(uid, 32), below(gid, 32)) else {
            return Err(self.invalid("user or group id too large"));
        };
        let seconds = self.number()?;
        let seconds = (seconds >> 1).cast_signed() ^ -(seconds & 1).cast_signed();
        let nanoseconds = below(self.number()?, 30)
            .filter(|nanoseconds| *nanoseconds < 1_000_000_000)
            .ok_or_else(|| self.invalid("more than a second of nanoseconds"))?;
        let count = self.number()?;
        LimitExceeded::check("xattrs of one entry", count, MAX_XATTRS as u64)?;
        let mut xattrs: Vec<Xattr> = Vec::new();
        let before = self.bytes;
        for _ in 0..count {
            let name = self.bytes(MAX_XATTR_NAME)?.to_vec();
            let value = self.bytes(MAX_XATTR_VALUE)?.to_vec();
            if name.is_empty() || name.contains(&0) {
                return Err(self.invalid("impossible xattr name"));
            }
            if xattrs.last().is_some_and(|last| last.name >= name) {
                return Err(self.invalid("xattrs out of order"));
            }
            self.account(name.len() + value.len())?;
            let allowed = self.limits.xattr_bytes();
            LimitExceeded::check("bytes of xattrs of one entry", self.bytes - before, allowed)?;
            xattrs.push(Xattr { name, value });
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 2^12")]
        Ok(Attributes {
            mode: mode as u16,
            uid,
            gid,
            mtime: Timestamp { seconds, nanoseconds },
            xattrs,
        })
    }

    fn data(&mut self, blob_blocks: u64) -> Result<FileData, IndexError> {
        let data = FileData { size: self.number()?, block: self.number()? };
        let end = data.block.checked_add(data.size.div_ceil(BLOCK_SIZE));
        if end.is_none_or(|end| end > blob_blocks) || (data.size == 0 && data.block != 0) {
            return Err(self.invalid("content outside of the blob"));
        }
        Ok(data)
    }

    fn check_path(&self, path: &[u8]) -> Result<(), IndexError> {
        match path::normalise(path, self.limits.max_depth) {
            Ok(normal) if normal == path => Ok(()),
            _ => Err(self.invalid("path not in normal form")),
        }
    }

    fn account(&mut self, len: usize) -> Result<(), IndexError> {
        self.bytes += len as u64;
        Ok(LimitExceeded::check(
            "bytes of names and xattrs",
            self.bytes,
            self.limits.max_index_bytes,
        )?)
    }

    fn bytes(&mut self, max: usize) -> Result<&[u8], IndexError> {
        let len = self.number()?;
        if len > max as u64 {
            return Err(self.invalid("name or value too long"));
        }
        let (bytes, rest) = usize::try_from(len)
            .ok()
            .and_then(|len| self.rest.split_at_checked(len))
            .ok_or_else(|| self.invalid("cut off"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, IndexError> {
        let (byte, rest) = self.rest.split_first().ok_or_else(|| self.invalid("cut off"))?;
        self.rest = rest;
        Ok(*byte)
    }

    /// LEB128, refusing what a shorter encoding would say too.
    fn number(&mut self) -> Result<u64, IndexError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (shift == 63 && bits > 1) || (shift > 0 && byte == 0) {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.invalid("a number too long"))
    }

    fn invalid(&self, what: &'static str) -> IndexError {
        IndexError::Invalid { entry: self.entry, what }
    }
}

/// The number if it has at most `bits` bits.
fn below(number: u64, bits: u32) -> Option<u32> {
    if number >> bits == 0 { u32::try_from(number).ok() } else { None }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
