//! What a layer may cost: bounds checked before memory or disk is taken for anything an archive claims.

use thiserror::Error;

/// Longest name of one path component in bytes (`NAME_MAX`, and `EROFS_NAME_LEN`).
pub const MAX_NAME: usize = 255;
/// Longest path, and longest symbolic link target, in bytes (`PATH_MAX`, whose 4096 include the final NUL).
pub const MAX_PATH: usize = 4095;
/// Longest xattr value in bytes: EROFS stores its size in 16 bits.
pub const MAX_XATTR_VALUE: usize = 65535;
/// Longest xattr name in bytes, prefix included (`XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME: usize = 255;
/// Most xattrs of one inode; with the bound below, what EROFS adds to each (7 bytes at most) fits as well.
pub const MAX_XATTRS: usize = 1024;
/// Most bytes of xattrs an EROFS inode can hold inline (16-bit count of 4-byte units), less its header.
pub const MAX_INODE_XATTR_BYTES: usize = 240 * 1024;

/// Bounds for one layer. The defaults let every image seen in the field pass and keep a hostile one
/// to a bounded amount of memory (`max_index_bytes`) and disk (`max_data_bytes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of one layer (directories, files, links, whiteouts).
    pub max_entries: u64,
    /// Path components of one entry.
    pub max_depth: usize,
    /// Bytes of one PAX extended header or GNU long name record.
    pub max_extension_bytes: u64,
    /// Bytes of all xattr names and values of one entry; more than 240 KiB cannot be stored whatever is set.
    pub max_xattr_bytes: usize,
    /// Bytes of names, link targets and xattrs of one layer, which are held in memory.
    pub max_index_bytes: u64,
    /// Bytes of file contents of one layer after sparse files are expanded.
    pub max_data_bytes: u64,
    /// Bytes of holes of one layer: a sparse file is written out with zeros, and a hole costs an attacker nothing.
    pub max_hole_bytes: u64,
    /// Bytes read from one archive stream, padding and what follows its end included.
    pub max_stream_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 4_000_000,
            max_depth: 512,
            max_extension_bytes: 1 << 20,
            max_xattr_bytes: 128 << 10,
            max_index_bytes: 512 << 20,
            max_data_bytes: 256 << 30,
            max_hole_bytes: 4 << 30,
            max_stream_bytes: 300 << 30,
        }
    }
}

impl Limits {
    /// Bytes of xattrs of one entry that are both allowed and possible.
    pub(crate) fn xattr_bytes(&self) -> u64 {
        self.max_xattr_bytes.min(MAX_INODE_XATTR_BYTES) as u64
    }
}

/// A bound of [`Limits`] or of the format that an input went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("more than {limit} {what}")]
pub struct LimitExceeded {
    /// What is counted, for the reader of the message: `entries`, `bytes of xattrs of one entry`.
    pub what: &'static str,
    /// The bound itself.
    pub limit: u64,
}

impl LimitExceeded {
    /// `Ok` while `value` is at most `limit`.
    pub(crate) fn check(what: &'static str, value: u64, limit: u64) -> Result<(), Self> {
        if value > limit { Err(Self { what, limit }) } else { Ok(()) }
    }
}
