//! Unix sockets whose path is longer than a socket address holds (108 bytes, unix(7)).
//!
//! containerd's bundle paths are that long. The directory is opened and the socket is named
//! through `/proc/self/fd`.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::net::{UnixListener, UnixStream};

const MAX_PATH: usize = 100;

/// Listens on `path`; an old socket there is replaced.
///
/// # Errors
/// The system's.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (short, _dir) = short(path)?;
    UnixListener::bind(short)
}

/// Connects to `path`.
///
/// # Errors
/// The system's.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (short, _dir) = short(path)?;
    UnixStream::connect(short).await
}

/// A name for `path` that fits, good as long as the descriptor lives.
fn short(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().len() <= MAX_PATH {
        return Ok((path.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((short, Some(dir)))
}
