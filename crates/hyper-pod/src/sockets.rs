//! Sockets of the host in containers: the supervisor connects for whoever does so in the guest.
//!
//! ```text
//!  guest: a process connects ── agent ── number ──► serve() ── connect ──► the host's server
//!                                          stream ◄═══ bytes ═══►
//! ```
//! A guest reaches what was asked for and nothing else: the directory is held from the start, the name in
//! it is no link, and what it is has the owner that it had. So a server that is started anew is found, and
//! nobody who may write to the directory can put another's socket there.
//!
//! At most [`AT_ONCE`] connections of a socket are carried at a time, others wait in the guest.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_link::sockets::{carry, read_connected, write_answer};
use hyper_link::{Link, StreamReader, StreamWriter, message};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use crate::PodError;

/// Connections of one socket at a time. Each may hold two windows of the link.
const AT_ONCE: usize = 64;
/// How long a server may keep its queue full.
const CONNECT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A stream socket of the host, and where a container is to have it.
#[derive(Debug, Clone)]
pub(crate) struct HostSocket {
    directory: Arc<OwnedFd>,
    name: OsString,
    owner: u32,
    /// For texts.
    source: PathBuf,
    place: Place,
}

#[derive(Debug, Clone)]
struct Place {
    path: String,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Connections that are carried for a container; they end with it.
#[derive(Debug, Default)]
pub(crate) struct Carrying(Vec<AbortHandle>);

impl Drop for Carrying {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl HostSocket {
    /// The socket at `source`, for `destination`. Blocking.
    pub(crate) fn find(source: &Path, destination: &str) -> Result<Self, PodError> {
        let wrong = || PodError::file("open bind mount source", source);
        let whole = std::fs::canonicalize(source).map_err(wrong())?;
        let meta = std::fs::symlink_metadata(&whole).map_err(wrong())?;
        let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Err(PodError::Invalid(format!("`{}` is no socket", source.display())));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            openat(CWD, parent, flags, Mode::empty()).map_err(|error| wrong()(error.into()))?;
        let socket = Self {
            directory: Arc::new(directory),
            name: name.to_owned(),
            owner: meta.uid(),
            source: source.to_owned(),
            place: Place {
                path: destination.to_owned(),
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
            },
        };
        socket.refuse_datagrams()?;
        Ok(socket)
    }

    /// To connect a socket of datagrams tells the other end nothing, and fails where that is none.
    fn refuse_datagrams(&self) -> Result<(), PodError> {
        let fails = PodError::file("open bind mount source", &self.source);
        let held = self.hold().map_err(fails)?;
        let datagrams = std::os::unix::net::UnixDatagram::unbound()
            .and_then(|socket| socket.connect(name_of(&held)));
        if datagrams.is_ok() {
            return Err(PodError::Unsupported(format!(
                "host socket `{}` cannot be mounted at `{}`: it takes datagrams, and only streams are \
                 carried into a guest",
                self.source.display(),
                self.place.path
            )));
        }
        Ok(())
    }

    /// Serves it on a new stream of `link`, and says where it is to be for the agent.
    pub(crate) fn serve(self, link: &Link, carrying: &mut Carrying) -> message::HostSocket {
        let (stream, connected, answers) = link.open();
        let Place { path, mode, uid, gid } = self.place.clone();
        let task = tokio::spawn(serve(self, link.clone(), connected, answers));
        carrying.0.push(task.abort_handle());
        message::HostSocket { path, mode, uid, gid, stream }
    }

    /// What has the name now, if it is what it was.
    fn hold(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = openat(&*self.directory, &self.name, flags, Mode::empty())?;
        let stat = fstat(&held)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != self.owner {
            return Err(io::Error::other("it is no socket any more, or another's"));
        }
        Ok(held)
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let trying = async {
            loop {
                // Opened and looked at anew: a server may be started anew meanwhile.
                let held = self.hold()?;
                match UnixStream::connect(name_of(&held)).await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(POLL).await;
                    }
                    connected => return connected,
                }
            }
        };
        tokio::time::timeout(CONNECT, trying).await.map_err(io::Error::from)?
    }
}

/// Until the agent has done with it, or its owner.
async fn serve(socket: HostSocket, link: Link, mut connected: StreamReader, answers: StreamWriter) {
    let (socket, room) = (Arc::new(socket), Arc::new(Semaphore::new(AT_ONCE)));
    let answers = Arc::new(Mutex::new(answers));
    let mut tasks = JoinSet::new();
    while let Ok(Some(number)) = read_connected(&mut connected).await {
        while tasks.try_join_next().is_some() {}
        // Not reading on is what stops a guest that connects too often.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (socket, answers, link) = (socket.clone(), answers.clone(), link.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let opened = match socket.connect().await {
                Ok(stream) => {
                    let (id, reader, writer) = link.open();
                    Some((id, stream, reader, writer))
                }
                Err(error) => {
                    let path = socket.source.display();
                    tracing::warn!(%path, %error, "a container cannot connect to the host's socket");
                    None
                }
            };
            let id = opened.as_ref().map(|(id, ..)| *id);
            if write_answer(&mut *answers.lock().await, number, id).await.is_err() {
                return;
            }
            if let Some((_, stream, reader, writer)) = opened {
                carry(stream, reader, writer).await;
            }
        });
    }
}

/// A name for a descriptor that a socket can be connected by; `unix(7)` takes no descriptors.
fn name_of(held: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", held.as_raw_fd())
}

#[cfg(test)]
mod test {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_started_anew_is_found_and_what_took_its_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("s"), dir.path().join("l"));
        let first = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let socket = HostSocket::find(&link, "/s").unwrap();
        socket.connect().await.unwrap();
        drop(first);
        assert!(socket.connect().await.is_err(), "nobody listens");
        std::fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        socket.connect().await.unwrap();
        // A link to a socket that somebody else could only name.
        std::fs::remove_file(&path).unwrap();
        let other = dir.path().join("other");
        let _other = UnixListener::bind(&other).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        let error = socket.connect().await.unwrap_err();
        assert!(error.to_string().contains("another's"), "{error}");
    }

    #[test]
    fn datagrams_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let _log = UnixDatagram::bind(&path).unwrap();
        let error = HostSocket::find(&path, "/dev/log").unwrap_err().to_string();
        assert!(error.contains("datagrams") && error.contains("/dev/log"), "{error}");
    }
}
