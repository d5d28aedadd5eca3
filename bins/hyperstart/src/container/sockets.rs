//! Sockets of the host in a container: listened on by the agent, answered by the supervisor.
//!
//! ```text
//!  a process ──connect──► /run/sockets/ID/N, bound over the container's root
//!                            │ accepted here ── number ──► supervisor ── connects on the host
//!                            └ bytes ◄═════ stream ═════►─┘
//! ```

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_link::{
    AgentLink, StreamReader, StreamWriter,
    message::HostSocket,
    sockets::{carry, read_answer, write_connected},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinSet},
};

use crate::failure::{Doing as _, Outcome, invalid};

const DIRECTORY: &str = "/run/sockets";
/// Connections that nobody has answered yet; more wait in the kernel's queue.
const UNANSWERED: usize = 32;

/// The listening ends of a container's sockets. They and their connections end when it is dropped.
#[derive(Debug)]
pub(super) struct Sockets {
    directory: PathBuf,
    tasks: Vec<AbortHandle>,
}

impl Sockets {
    /// Listens for all that `wanted` names.
    pub(super) fn listen(
        link: &AgentLink,
        container: &str,
        wanted: &[HostSocket],
    ) -> Outcome<Self> {
        let mut sockets =
            Self { directory: Path::new(DIRECTORY).join(container), tasks: Vec::new() };
        if wanted.is_empty() {
            return Ok(sockets);
        }
        fs::create_dir_all(&sockets.directory).doing(|| format!("make {DIRECTORY}/{container}"))?;
        for (number, socket) in wanted.iter().enumerate() {
            let describe = || format!("listen on {} in container {container}", socket.path);
            let (answers, connected) =
                link.open(socket.stream).map_err(|error| invalid(error.to_string()))?;
            let listener = listen(&path(container, number), socket).doing(describe)?;
            let serving = serve(listener, answers, connected, link.clone());
            sockets.tasks.push(tokio::task::spawn_local(serving).abort_handle());
        }
        Ok(sockets)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // Not there where no socket was wanted.
        let _gone = fs::remove_dir_all(&self.directory);
    }
}

/// Where socket `number` of a container is, outside of it. `container` is a checked id.
pub(super) fn path(container: &str, number: usize) -> PathBuf {
    Path::new(DIRECTORY).join(container).join(number.to_string())
}

fn listen(path: &Path, socket: &HostSocket) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    chown(path, Some(socket.uid), Some(socket.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(socket.mode & 0o7777))?;
    Ok(listener)
}

/// A connection that the supervisor has not answered yet.
struct Unanswered {
    socket: UnixStream,
    _room: OwnedSemaphorePermit,
}

/// Serves one socket until the supervisor has done with it.
async fn serve(
    listener: UnixListener,
    mut answers: StreamReader,
    mut connected: StreamWriter,
    link: AgentLink,
) {
    let unanswered = RefCell::new(BTreeMap::<u32, Unanswered>::new());
    let accepting = async {
        let room = std::sync::Arc::new(Semaphore::new(UNANSWERED));
        let mut number = 0u32;
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, _)) => {
                    number = number.wrapping_add(1);
                    let waiting = Unanswered { socket, _room: permit };
                    unanswered.borrow_mut().insert(number, waiting);
                    if write_connected(&mut connected, number).await.is_err() {
                        return;
                    }
                }
                // Out of descriptors, or the client has gone already.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let answering = async {
        let mut carried = JoinSet::new();
        while let Ok((number, id)) = read_answer(&mut answers).await {
            while carried.try_join_next().is_some() {}
            let socket = unanswered.borrow_mut().remove(&number).map(|waiting| waiting.socket);
            // What is not taken ends, for both.
            let ends = id.and_then(|id| link.open(id).ok());
            if let (Some(socket), Some((reader, writer))) = (socket, ends) {
                carried.spawn_local(carry(socket, reader, writer));
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = answering => {}
    }
}
