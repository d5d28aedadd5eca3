//! Fresh writable disks for containers.
//!
//! ```text
//! fresh_ext4(path, bytes) ── template of that size? ──no──► mke2fs into a new file ─► rename
//!                                  │ yes ◄──────────────────────────────────────────────┘
//!                                  └─► sparse copy: data extents only (0.3 MiB of 10 GiB)
//! ```
//! Invariants
//! - The host writes a file system only before a guest has seen it, and never reads one after.
//! - A template is complete when it has its name; callers in any number of processes may race.
//! - `path` either holds the whole file system or does not exist.
//!
//! Blocking: call it off an async runtime.
#![forbid(unsafe_code)]

mod sparse;
mod template;

use std::path::{Path, PathBuf};

pub use sparse::copy_sparse;

/// Where templates are kept unless told otherwise.
pub const TEMPLATES: &str = "/var/lib/hyper/templates";
/// Smallest disk in bytes: ext4 with a journal.
pub const MIN_BYTES: u64 = 16 << 20;

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("disk size {0} is not a multiple of 4096 of at least {MIN_BYTES} bytes")]
    Size(u64),
    /// `mke2fs` is not on this host.
    #[error("`mke2fs` not found in PATH, /sbin or /usr/sbin: install e2fsprogs")]
    NoMke2fs,
    #[error("`mke2fs` for {bytes} bytes: {detail}")]
    Mke2fs { bytes: u64, detail: String },
}

impl DiskError {
    fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// Makes `path`, which must not exist, a sparse file of `bytes` with an empty ext4; templates are
/// kept in [`TEMPLATES`].
///
/// # Errors
/// [`DiskError`]; `path` is then not there.
pub fn fresh_ext4(path: &Path, bytes: u64) -> Result<(), DiskError> {
    fresh_ext4_from(Path::new(TEMPLATES), path, bytes)
}

/// [`fresh_ext4`] with another directory of templates.
///
/// # Errors
/// [`DiskError`]; `path` is then not there.
pub fn fresh_ext4_from(templates: &Path, path: &Path, bytes: u64) -> Result<(), DiskError> {
    if bytes < MIN_BYTES || !bytes.is_multiple_of(4096) {
        return Err(DiskError::Size(bytes));
    }
    let template = template::ensure(templates, bytes)?;
    copy_sparse(&template, path).map_err(DiskError::io("make disk", path))
}
