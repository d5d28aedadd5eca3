//! Clients that join a container's streams, before it is started or while it runs.
//!
//! ```text
//!   Waiting [client …] ──── start: every client is connected, then the process runs ───▶ Ready
//!        ▲                                                                                │
//!        └──────────────────────────── the process has ended ─────────────────────────────┘
//! ```
//! A client that waits gets its streams before the first byte of output exists; if the start
//! fails, its wait ends without streams.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper_stdio::Wanted;
use tokio::sync::oneshot;

use crate::supervisor::{AttachGuard, Pod, PodStreams};
use crate::{Error, Result};

/// Streams of a container's first process or of an exec.
#[derive(Debug)]
pub struct Attached {
    pub streams: PodStreams,
    /// The pod is kept until it is dropped.
    _guard: AttachGuard,
    /// Tells by being dropped that the streams are no longer read.
    closed_on_drop: Option<oneshot::Sender<Infallible>>,
}

impl Attached {
    pub(crate) fn new(streams: PodStreams, guard: AttachGuard) -> Self {
        Self { streams, _guard: guard, closed_on_drop: None }
    }

    /// Resolves (to an error) when the streams are no longer read.
    pub(crate) fn over(&mut self) -> oneshot::Receiver<Infallible> {
        let (sender, receiver) = oneshot::channel();
        self.closed_on_drop = Some(sender);
        receiver
    }
}

/// Streams that may come later.
#[derive(Debug)]
pub struct Attaching(pub(crate) oneshot::Receiver<Attached>);

impl Attaching {
    /// The streams; `None` if the container was not started after all.
    pub async fn streams(self) -> Option<Attached> {
        self.0.await.ok()
    }
}

/// The meeting place of one container's clients and its pod.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<Meeting>);

#[derive(Debug)]
enum Meeting {
    Waiting(Vec<Client>),
    Ready(Arc<Pod>),
}

impl Default for Meeting {
    fn default() -> Self {
        Self::Waiting(Vec::new())
    }
}

#[derive(Debug)]
struct Client {
    wanted: Wanted,
    reply: oneshot::Sender<Attached>,
}

/// Clients that may wait for one container.
const MAX_WAITING: usize = 256;

impl Slot {
    /// Joins now, or when the container is started.
    pub async fn join(&self, wanted: Wanted) -> Result<Attaching> {
        let (reply, streams) = oneshot::channel();
        let client = Client { wanted, reply };
        let pod = match &mut *self.meeting() {
            Meeting::Ready(pod) => Some(pod.clone()),
            Meeting::Waiting(clients) => {
                clients.retain(|client| !client.reply.is_closed());
                if clients.len() >= MAX_WAITING {
                    return Err(Error::Conflict(format!(
                        "{MAX_WAITING} clients wait for this container already"
                    )));
                }
                clients.push(client);
                return Ok(Attaching(streams));
            }
        };
        if let Some(pod) = pod {
            serve(&pod, client).await?;
        }
        Ok(Attaching(streams))
    }

    /// The container exists in its guest and does not run yet: everybody gets their streams.
    pub async fn ready(&self, pod: &Arc<Pod>) -> Result<()> {
        let before = std::mem::replace(&mut *self.meeting(), Meeting::Ready(pod.clone()));
        if let Meeting::Waiting(clients) = before {
            for client in clients.into_iter().filter(|client| !client.reply.is_closed()) {
                serve(pod, client).await?;
            }
        }
        Ok(())
    }

    /// The process has ended, or was never started: those who come now wait for the next start.
    pub fn reset(&self) {
        *self.meeting() = Meeting::default();
    }

    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(pod: &Pod, client: Client) -> Result<()> {
    let (streams, guard) = pod.attach(None, client.wanted).await?;
    // A client that is gone by now needs no streams.
    let _ = client.reply.send(Attached::new(streams, guard));
    Ok(())
}
