//! One streaming pass over a layer's tar stream: contents to the blob, everything else to the index.
use crate::{LayerIndex, LimitExceeded, Limits, PathError, tar::TarError};
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
pub fn convert_layer<R: Read, W: Write>(tar: R, blob: W, limits: &Limits) -> Result<LayerIndex, LayerError> {
    let _ = (tar, blob, limits);
    todo!()
}
