//! Files of the kernel's own file systems: written in one call, and never made by writing.

use std::{fs::OpenOptions, io, io::Write as _, path::Path};

/// Writes `value` to the file `path`.
///
/// # Errors
/// `NotFound` where creating would say that it is not permitted; else what the kernel says of
/// the value.
pub(crate) fn put(path: impl AsRef<Path>, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
