//! A directory of the host, typically an overlayfs layer directory of containerd, as a layer.
use crate::{LayerIndex, LimitExceeded, Limits};
use std::{io::Write, path::{Path, PathBuf}};
use thiserror::Error;

/// Why a directory could not be converted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Below the directory, or the directory itself.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The blob could not be written.
    #[error("cannot write the layer blob")]
    Blob(#[source] std::io::Error),
    /// The tree was changed while it was read.
    #[error("{path:?} changed while it was read")]
    Changed {
        /// What.
        path: PathBuf,
    },
    /// Overlayfs features whose layers mean nothing without the layers below.
    #[error("{path:?} has the overlayfs attribute {xattr:?}, whose meaning this program does not know")]
    Overlay {
        /// Where.
        path: PathBuf,
        /// Which.
        xattr: String,
    },
    /// The tree is too large in some respect.
    #[error("{path:?} goes over a limit")]
    Limit {
        /// Where.
        path: PathBuf,
        /// Which limit.
        #[source]
        source: LimitExceeded,
    },
}

/// Converts a directory tree of the host as [`convert_layer`](crate::convert_layer) does an archive.
///
/// Overlayfs marks become what they mean: a character device 0:0 (or an empty file with the xattr
/// `trusted.overlay.whiteout`) is a whiteout, `trusted.overlay.opaque=y` and `user.overlay.opaque=y` make a directory opaque. Sockets are skipped.
/// Symbolic links are never followed, other file systems mounted inside are left out (their mount point stays).
///
/// # Errors
/// [`DirectoryError`]; the blob is then incomplete and must be thrown away.
pub fn convert_directory<W: Write>(root: &Path, blob: W, limits: &Limits) -> Result<LayerIndex, DirectoryError> {
    let _ = (root, blob, limits);
    todo!()
}
