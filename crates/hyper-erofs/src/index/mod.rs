//! The index of one layer: every name and attribute, and where in the layer's blob each content lies.

mod codec;

pub use codec::IndexError;

use crate::BLOCK_SIZE;

/// A converted layer without its file contents. Immutable once made; the blob it belongs to is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerIndex {
    pub(crate) entries: Vec<Entry>,
    pub(crate) blob_blocks: u64,
}

impl LayerIndex {
    /// The entries in the order of the archive, or depth first and sorted if made from a directory.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Length of the layer's blob in bytes, a multiple of [`BLOCK_SIZE`]; 0 if the layer holds no content.
    #[must_use]
    pub fn blob_len(&self) -> u64 {
        self.blob_blocks * BLOCK_SIZE
    }

    /// Sum of the sizes of the files of this layer in bytes, what Docker calls a layer's size.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| match &entry.kind {
                Kind::File { data, .. } => data.size,
                _ => 0,
            })
            .sum()
    }
}

/// One name of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path in normal form (no leading or doubled `/`, no `.` or `..`); empty for the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// Owner, mode and so on.
        attributes: Attributes,
    },
    /// A regular file.
    File {
        /// Owner, mode and so on.
        attributes: Attributes,
        /// Where its content is.
        data: FileData,
    },
    /// A symbolic link.
    Symlink {
        /// Owner and so on; the mode is 0777.
        attributes: Attributes,
        /// Its target, 1 to 4095 bytes, never interpreted on the host.
        target: Vec<u8>,
    },
    /// A further name of a file of this layer or of one below.
    HardLink {
        /// The other name, a path in normal form.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Owner, mode and so on.
        attributes: Attributes,
        /// Major number, below 2^12.
        major: u32,
        /// Minor number, below 2^20.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Owner, mode and so on.
        attributes: Attributes,
        /// Major number, below 2^12.
        major: u32,
        /// Minor number, below 2^20.
        minor: u32,
    },
    /// A named pipe.
    Fifo {
        /// Owner, mode and so on.
        attributes: Attributes,
    },
    /// Whatever layers below have at this path is gone.
    Whiteout,
    /// Whatever layers below have inside this directory is gone.
    Opaque,
}

impl Kind {
    /// The attributes, of the kinds that have some.
    #[must_use]
    pub fn attributes(&self) -> Option<&Attributes> {
        match self {
            Self::Directory { attributes }
            | Self::File { attributes, .. }
            | Self::Symlink { attributes, .. }
            | Self::CharDevice { attributes, .. }
            | Self::BlockDevice { attributes, .. }
            | Self::Fifo { attributes } => Some(attributes),
            Self::HardLink { .. } | Self::Whiteout | Self::Opaque => None,
        }
    }
}

/// Attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits: `0o7777` at most.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name, no name twice.
    pub xattrs: Vec<Xattr>,
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 10^9.
    pub nanoseconds: u32,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Full name with its namespace: `security.capability`.
    pub name: Vec<u8>,
    /// Value, any bytes, 65535 at most.
    pub value: Vec<u8>,
}

/// Where the content of a file lies in its layer's blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileData {
    /// Size in bytes.
    pub size: u64,
    /// Block of the blob at which it starts, in units of [`BLOCK_SIZE`]; 0 if `size` is 0.
    pub block: u64,
}

impl FileData {
    /// Byte offset in the blob.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.block * BLOCK_SIZE
    }
}
