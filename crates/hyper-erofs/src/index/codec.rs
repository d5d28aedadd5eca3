//! The index file.
use super::LayerIndex;
use crate::limits::{LimitExceeded, Limits};
use thiserror::Error;

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
        todo!()
    }

    /// Reads an index file, checking its checksum and every invariant of [`Entry`](super::Entry).
    ///
    /// # Errors
    /// [`IndexError`]: none of them is worth retrying; the layer has to be converted again.
    pub fn decode(_bytes: &[u8], _limits: &Limits) -> Result<Self, IndexError> {
        todo!()
    }
}
