//! One streaming pass over a layer's tar stream: contents to the blob, everything else to the index.
//!
//! Rules of the OCI image specification ("Whiteouts") and of Docker where that is silent:
//! - `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all of a directory's content below. Other names that
//!   start with `.wh..wh.` are aufs' own and are left out.
//! - A character device 0:0 is overlayfs' whiteout, and becomes one.
//! - `trusted.overlay.*` and `user.overlay.*` xattrs are dropped: in the guest they would be orders to overlayfs.

use crate::BLOCK_SIZE;
use crate::blob::{BlobWriter, CopyError, MAX_BLOB_BLOCKS};
use crate::index::{Attributes, Entry, Kind, LayerIndex, Xattr};
use crate::limits::{LimitExceeded, Limits, MAX_PATH, MAX_XATTRS};
use crate::path::{self, PathError};
use crate::tar::{Header, HeaderKind, Reader, TarError};
use std::io::{Read, Write};
use thiserror::Error;

/// Why a layer could not be converted. `entry` is the name in the archive, as text.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The archive is malformed, truncated, or could not be read.
    #[error("cannot read the layer archive")]
    Tar(#[from] TarError),
    /// The blob could not be written.
    #[error("cannot write the layer blob")]
    Blob(#[source] std::io::Error),
    /// A name or a hard link target is not acceptable.
    #[error("archive entry {entry:?} has an unacceptable path")]
    Path {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The layer is too large in some respect.
    #[error("archive entry {entry:?} goes over a limit")]
    Limit {
        /// The entry.
        entry: String,
        /// Which limit.
        #[source]
        source: LimitExceeded,
    },
    /// An entry that has no meaning in a layer.
    #[error("archive entry {entry:?} is invalid: {what}")]
    Invalid {
        /// The entry.
        entry: String,
        /// Why.
        what: &'static str,
    },
}

/// Converts a layer.
///
/// Reads `tar` (already decompressed) to its end, what follows the end-of-archive mark included, so that a digest
/// taken by the reader covers the whole stream. Writes the blob to `blob`, sequentially and without seeking.
///
/// # Errors
/// [`LayerError`]; the blob is then incomplete and must be thrown away.
pub fn convert_layer<R: Read, W: Write>(
    tar: R,
    blob: W,
    limits: &Limits,
) -> Result<LayerIndex, LayerError> {
    let mut reader = Reader::new(tar, limits);
    let mut blob = BlobWriter::new(blob);
    let mut usage = Usage::new(limits);
    let mut entries = Vec::new();
    while let Some(header) = reader.next_entry()? {
        let name = header.path.clone();
        let converted = convert_entry(header, &mut reader, &mut blob, &mut usage);
        if let Some(entry) = converted.map_err(|error| error.of(&name))? {
            entries.push(entry);
        }
    }
    let blob_blocks = blob.finish().map_err(LayerError::Blob)?;
    Ok(LayerIndex { entries, blob_blocks })
}

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// An error of one entry, before its name is added.
enum EntryError {
    Tar(TarError),
    Blob(std::io::Error),
    Path(PathError),
    Limit(LimitExceeded),
    Invalid(&'static str),
}

impl EntryError {
    fn of(self, name: &[u8]) -> LayerError {
        let entry = String::from_utf8_lossy(name).into_owned();
        match self {
            Self::Tar(error) => LayerError::Tar(error),
            Self::Blob(error) => LayerError::Blob(error),
            Self::Path(source) => LayerError::Path { entry, source },
            Self::Limit(source) => LayerError::Limit { entry, source },
            Self::Invalid(what) => LayerError::Invalid { entry, what },
        }
    }
}

impl From<PathError> for EntryError {
    fn from(error: PathError) -> Self {
        Self::Path(error)
    }
}

impl From<LimitExceeded> for EntryError {
    fn from(error: LimitExceeded) -> Self {
        Self::Limit(error)
    }
}

fn convert_entry<R: Read, W: Write>(
    header: Header,
    reader: &mut Reader<R>,
    blob: &mut BlobWriter<W>,
    usage: &mut Usage<'_>,
) -> Result<Option<Entry>, EntryError> {
    let path = path::normalise(&header.path, usage.limits.max_depth)?;
    usage.entry(path.len())?;
    let (parent, name) = path::split_last(&path).unwrap_or_default();
    // Content of aufs' own directories is left out with them.
    if name != OPAQUE && path::components(&path).any(|component| component.starts_with(AUFS)) {
        return Ok(None);
    }
    if path::components(parent).any(|component| component.starts_with(WHITEOUT)) {
        return Err(EntryError::Invalid("it lies inside a whiteout"));
    }
    if name == OPAQUE {
        return Ok(Some(Entry { path: parent.to_vec(), kind: Kind::Opaque }));
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryError::Invalid(
                "a whiteout of nothing, of its directory or of its parent",
            ));
        }
        let separator: &[u8] = if parent.is_empty() { b"" } else { b"/" };
        return Ok(Some(Entry {
            path: [parent, separator, hidden].concat(),
            kind: Kind::Whiteout,
        }));
    }
    if path.is_empty() && header.kind != HeaderKind::Directory {
        return Err(EntryError::Invalid("the root must be a directory"));
    }
    let attributes = Attributes {
        mode: header.mode,
        uid: header.uid,
        gid: header.gid,
        mtime: header.mtime,
        xattrs: usage.xattrs(header.xattrs)?,
    };
    let kind = match header.kind {
        HeaderKind::File { size } => {
            usage.data(size)?;
            let data =
                blob.append(size, |buffer| reader.read_data(buffer)).map_err(
                    |error| match error {
                        CopyError::Read(error) => EntryError::Tar(error),
                        CopyError::Write(error) => EntryError::Blob(error),
                        CopyError::Short => {
                            EntryError::Invalid("its content is shorter than its size")
                        }
                    },
                )?;
            Kind::File { attributes, data }
        }
        HeaderKind::Directory => Kind::Directory { attributes },
        HeaderKind::Symlink { target } => {
            if target.is_empty() || target.contains(&0) {
                return Err(EntryError::Invalid("a symbolic link to nothing"));
            }
            LimitExceeded::check("bytes in a symbolic link", target.len() as u64, MAX_PATH as u64)?;
            usage.bytes(target.len())?;
            // Linux has no other mode for them, whatever the archive says.
            Kind::Symlink { attributes: Attributes { mode: 0o777, ..attributes }, target }
        }
        HeaderKind::HardLink { target } => {
            let target = path::normalise(&target, usage.limits.max_depth)?;
            if target.is_empty() {
                return Err(EntryError::Invalid("a hard link to the root"));
            }
            usage.bytes(target.len())?;
            Kind::HardLink { target }
        }
        HeaderKind::CharDevice { major: 0, minor: 0 } => Kind::Whiteout,
        HeaderKind::CharDevice { major, minor } => {
            check_device(major, minor)?;
            Kind::CharDevice { attributes, major, minor }
        }
        HeaderKind::BlockDevice { major, minor } => {
            check_device(major, minor)?;
            Kind::BlockDevice { attributes, major, minor }
        }
        HeaderKind::Fifo => Kind::Fifo { attributes },
    };
    Ok(Some(Entry { path, kind }))
}

/// Linux's device numbers have 12 and 20 bits.
fn check_device(major: u32, minor: u32) -> Result<(), EntryError> {
    if major >> 12 == 0 && minor >> 20 == 0 {
        Ok(())
    } else {
        Err(EntryError::Invalid("a device number Linux does not have"))
    }
}

/// What a layer has used of its limits so far.
pub(crate) struct Usage<'l> {
    pub(crate) limits: &'l Limits,
    entries: u64,
    index_bytes: u64,
    data_bytes: u64,
    blocks: u64,
}

impl<'l> Usage<'l> {
    pub(crate) fn new(limits: &'l Limits) -> Self {
        Self { limits, entries: 0, index_bytes: 0, data_bytes: 0, blocks: 0 }
    }

    pub(crate) fn entry(&mut self, path_len: usize) -> Result<(), LimitExceeded> {
        self.entries += 1;
        LimitExceeded::check("entries", self.entries, self.limits.max_entries)?;
        self.bytes(path_len)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<(), LimitExceeded> {
        self.index_bytes += len as u64;
        LimitExceeded::check(
            "bytes of names and xattrs",
            self.index_bytes,
            self.limits.max_index_bytes,
        )
    }

    pub(crate) fn data(&mut self, size: u64) -> Result<(), LimitExceeded> {
        self.data_bytes = self.data_bytes.saturating_add(size);
        self.blocks = self.blocks.saturating_add(size.div_ceil(BLOCK_SIZE));
        LimitExceeded::check(
            "bytes of file contents",
            self.data_bytes,
            self.limits.max_data_bytes,
        )?;
        LimitExceeded::check("blocks in a blob", self.blocks, MAX_BLOB_BLOCKS)
    }

    /// Sorts by name, keeps the last of several with one name, drops overlayfs' own, and counts.
    pub(crate) fn xattrs(&mut self, mut xattrs: Vec<Xattr>) -> Result<Vec<Xattr>, LimitExceeded> {
        if xattrs.is_empty() {
            return Ok(xattrs);
        }
        xattrs.reverse();
        xattrs.sort_by(|one, other| one.name.cmp(&other.name));
        xattrs.dedup_by(|later, kept| later.name == kept.name);
        xattrs.retain(|xattr| overlay_attribute(&xattr.name).is_none());
        LimitExceeded::check("xattrs of one entry", xattrs.len() as u64, MAX_XATTRS as u64)?;
        let bytes: usize = xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum();
        LimitExceeded::check(
            "bytes of xattrs of one entry",
            bytes as u64,
            self.limits.xattr_bytes(),
        )?;
        self.bytes(bytes)?;
        Ok(xattrs)
    }
}

/// The part after `trusted.overlay.` or `user.overlay.`, of names that start so.
pub(crate) fn overlay_attribute(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."))
}
