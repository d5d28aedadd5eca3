//! A container's tree: read, written and looked at without trusting it. The agent uses this inside
//! its guest, and the supervisor of a container that runs on the host's kernel on the host.
//!
//! ```text
//!  tree, pack    a path, or the whole root, to tar          path    what is at a path
//!  changes       what an overlay's upper has, to tar        user    users and groups by name
//!  unpack        tar to files                               volume  an image's directory to a volume
//!  directory     steps of a walk                omitted what no archive can hold
//!  hosts         lines of /etc/hosts
//! ```
//! Invariants: no path or link of the tree leads out of the root that is given, nor a tar's; what
//! was changed is read through descriptors, never following a link; blocks, so knows no runtime.
#![forbid(unsafe_code)]

pub mod changes;
mod directory;
pub mod failure;
pub mod hosts;
mod omitted;
mod pack;
pub mod path;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod unpack;
pub mod user;
pub mod volume;

use hyper_link::message::{Failure, FailureKind};
use rustix::io::Errno;

use failure::failure;
pub use omitted::Omitted;

/// Bytes taken at a time.
const BLOCK: usize = 64 << 10;
/// Deepest directory that is walked; two descriptors are open for each level.
pub const MAX_DEPTH: usize = 512;

/// A failed system call on a file, sorted by what the user can do about it.
pub(crate) fn wrong(action: &str, path: &[u8], error: Errno) -> Failure {
    let shown = String::from_utf8_lossy(path);
    let kind = match error {
        Errno::NOENT => FailureKind::NotFound,
        Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV | Errno::INVAL => {
            FailureKind::InvalidArgument
        }
        Errno::ROFS => FailureKind::ReadOnly,
        Errno::NOSPC | Errno::DQUOT => {
            return failure(
                FailureKind::NoSpace,
                format!("{action} {shown}: no space left on the container's writable disk"),
            );
        }
        _ => FailureKind::Internal,
    };
    failure(kind, format!("{action} {shown}: {}", std::io::Error::from(error)))
}

/// The same for an error of the standard library.
pub(crate) fn wrong_io(action: &str, path: &[u8], error: &std::io::Error) -> Failure {
    match Errno::from_io_error(error) {
        Some(errno) => wrong(action, path, errno),
        None => failure(
            FailureKind::Internal,
            format!("{action} {}: {error}", String::from_utf8_lossy(path)),
        ),
    }
}
