//! What can be wrong with an archive.

use crate::limits::LimitExceeded;
use thiserror::Error;

/// Why an archive cannot be read on. `entry` is a name as it stands in the archive, made printable.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TarError {
    /// The underlying reader failed.
    #[error("cannot read the archive after entry {entry:?}")]
    Io {
        /// The entry being read, or the last one.
        entry: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The stream ended inside an entry.
    #[error(
        "the archive ends in the middle of entry {entry:?}, {missing} bytes or more are missing"
    )]
    Truncated {
        /// The entry.
        entry: String,
        /// How much of the part being read is missing.
        missing: u64,
    },
    /// A header's checksum is wrong: the archive is damaged, or is none.
    #[error("wrong checksum in the header at byte {offset}, after entry {entry:?}")]
    Checksum {
        /// The entry before the damage.
        entry: String,
        /// Offset of the header in the stream.
        offset: u64,
    },
    /// A field or an extended header that means nothing.
    #[error("entry {entry:?} has {what}")]
    Malformed {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An entry type outside of what layers hold (multi-volume parts, for example).
    #[error("entry {entry:?} has the unsupported type {flag:?}")]
    UnsupportedType {
        /// The entry.
        entry: String,
        /// The type flag as a character.
        flag: char,
    },
    /// The archive goes over a limit.
    #[error("entry {entry:?} goes over a limit")]
    Limit {
        /// The entry.
        entry: String,
        /// Which one.
        #[source]
        source: LimitExceeded,
    },
}
