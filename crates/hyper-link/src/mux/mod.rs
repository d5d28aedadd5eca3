//! Many streams and one control stream over one carrier.
//!
//! Two tasks own the carrier: one reads frames and files them, one writes what is due. Everything
//! they and the stream handles share is one [`State`] behind a lock that is never held across an
//! await. Each direction of a stream ends exactly once:
//!
//! ```text
//!  open ── shutdown or drop ──► Eof sent
//!    └──── reset(), or Stop received ──► Reset sent
//! ```
//!
//! and a stream is forgotten when both directions have ended and both handles are gone.
//! Memory is bounded: per stream [`WINDOW`] bytes in, [`SEND_BUFFER`] bytes out; at most
//! [`MAX_STREAMS`] streams; one control message of at most `MAX_MESSAGE` being put together.

mod inbound;
mod outbound;
mod state;
mod stream;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit},
    task::AbortHandle,
};

use self::state::State;
pub use self::stream::{StreamReader, StreamWriter};
use crate::{
    error::{LinkError, OpenError},
    handshake::Leftover,
};

/// Bytes a sender may have under way on one stream before the receiver took any.
pub const WINDOW: u32 = 256 << 10;
/// Bytes a stream holds for the carrier before its writer must wait.
const SEND_BUFFER: usize = 128 << 10;
/// Streams that may exist at a time.
const MAX_STREAMS: usize = 1 << 14;

/// Takes whole control messages from the reading task.
pub(crate) trait Inbox: Send + 'static {
    /// # Errors
    /// Ends the link.
    fn message(&mut self, text: &[u8]) -> Result<(), LinkError>;
}

/// Which end this is: only the supervisor announces streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Supervisor,
    Agent,
}

/// Shared by the tasks and all handles of one link.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something is due to be written.
    due: Notify,
    /// The link ended, or all that was due has been written.
    settled: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves counters that are still consistent enough to end the link.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: LinkError) {
        let wakers = self.lock().fail(error);
        wakers.into_iter().for_each(std::task::Waker::wake);
        self.due.notify_one();
        self.settled.notify_waiters();
    }

    async fn ended(&self) -> LinkError {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if let Some(error) = &self.lock().error {
                return error.clone();
            }
            settled.await;
        }
    }
}

/// Owner of a link's tasks; they end with it.
pub(crate) struct Mux {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").finish_non_exhaustive()
    }
}

impl Mux {
    /// Must be called within a tokio runtime.
    pub(crate) fn start<Io>(io: Io, side: Side, leftover: Leftover, inbox: impl Inbox) -> Self
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(side)),
            due: Notify::new(),
            settled: Notify::new(),
        });
        let (read, write) = tokio::io::split(io);
        let reading = tokio::spawn(inbound::run(Arc::clone(&shared), read, leftover, inbox));
        let writing = tokio::spawn(outbound::run(Arc::clone(&shared), write));
        Self { shared, tasks: [reading.abort_handle(), writing.abort_handle()] }
    }

    /// Queues a control message; `permit` is given back when it is on the carrier.
    pub(crate) fn send_message(&self, text: Vec<u8>, permit: Option<OwnedSemaphorePermit>) {
        self.shared.lock().queue_message(text, permit);
        self.shared.due.notify_one();
    }

    /// Supervisor: announces a new stream. On a link that has ended, its ends say so.
    pub(crate) fn open(&self) -> (u32, StreamReader, StreamWriter) {
        let id = self.shared.lock().announce();
        self.shared.due.notify_one();
        (id, StreamReader::new(&self.shared, id), StreamWriter::new(&self.shared, id))
    }

    /// Agent: takes the ends of a stream the supervisor announced.
    pub(crate) fn claim(&self, id: u32) -> Result<(StreamReader, StreamWriter), OpenError> {
        self.shared.lock().claim(id)?;
        Ok((StreamReader::new(&self.shared, id), StreamWriter::new(&self.shared, id)))
    }

    /// Resolves when the link has ended.
    pub(crate) async fn ended(&self) -> LinkError {
        self.shared.ended().await
    }

    /// Resolves when all that could be sent is on the carrier.
    pub(crate) async fn flushed(&self) -> Result<(), LinkError> {
        loop {
            let mut settled = std::pin::pin!(self.shared.settled.notified());
            settled.as_mut().enable();
            {
                let state = self.shared.lock();
                if let Some(error) = &state.error {
                    return Err(error.clone());
                }
                if state.is_idle() {
                    return Ok(());
                }
            }
            settled.await;
        }
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.shared.fail(LinkError::Dropped);
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}
