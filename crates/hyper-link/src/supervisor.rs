//! The supervisor's end of a link. Everything the agent says is an attacker's word.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc, oneshot},
};

use crate::{
    error::{CallError, LinkError},
    handshake,
    message::{AgentHello, Event, MAX_MESSAGE, Reply, Request},
    mux::{Inbox, Mux, Side, StreamReader, StreamWriter},
};

/// Events the agent may be ahead of the supervisor; more ends the link.
const EVENTS: usize = 16 << 10;
/// Bytes of requests that wait for the carrier.
const REQUEST_BYTES: usize = 4 * MAX_MESSAGE;

/// What the supervisor writes on stream 0.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) request: Request,
}

/// What the agent writes on stream 0.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Reply { id: u64, reply: Reply },
    Event(Event),
}

/// Meets the agent on `io`: waits for its hello, skipping at most 64 KiB of noise before it.
///
/// Must be called within a tokio runtime. Nothing is sent before the agent has spoken.
///
/// # Errors
/// No hello within `deadline`, no common version, or a failing or misused carrier.
pub async fn connect<Io>(io: Io, deadline: Duration) -> Result<(Link, EventReceiver), LinkError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    connect_to(io, &Greeting(Vec::new()), deadline).await
}

/// What an agent has said before it was answered: kept with a guest that is saved at that point,
/// for those who meet its copies.
#[derive(Debug, Clone)]
pub struct Greeting(Vec<u8>);

impl Greeting {
    /// To be kept; [`From`] takes them back.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes that were kept. Whether they are a greeting shows at [`connect_to`].
impl From<Vec<u8>> for Greeting {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// Waits for the agent's hello and leaves it unanswered; the agent waits, for as long as it takes.
///
/// # Errors
/// No hello within `deadline`, or a failing or misused carrier.
pub async fn hear<Io>(io: &mut Io, deadline: Duration) -> Result<Greeting, LinkError>
where
    Io: AsyncRead + Unpin,
{
    handshake::hear_agent(io, deadline).await.map(Greeting)
}

/// Meets an agent whose greeting was [`hear`]d already, from this guest or from the one it is a
/// copy of; else as [`connect`].
///
/// # Errors
/// As [`connect`].
pub async fn connect_to<Io>(
    mut io: Io,
    greeting: &Greeting,
    deadline: Duration,
) -> Result<(Link, EventReceiver), LinkError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let said = greeting.0.clone();
    let (hello, leftover) = handshake::greet_agent(&mut io, said, deadline).await?;
    let calls = Arc::new(Mutex::new(Calls::default()));
    let (events, receiver) = mpsc::channel(EVENTS);
    let inbox = Answers { calls: Arc::clone(&calls), events };
    let mux = Mux::start(io, Side::Supervisor, leftover, inbox);
    let room = Arc::new(Semaphore::new(REQUEST_BYTES));
    Ok((Link { inner: Arc::new(Inner { mux, hello, calls, room }) }, EventReceiver(receiver)))
}

/// A live link. Clones share it; with the last one it ends.
#[derive(Debug, Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mux: Mux,
    hello: AgentHello,
    calls: Arc<Mutex<Calls>>,
    room: Arc<Semaphore>,
}

impl Link {
    /// How the agent introduced itself.
    pub fn hello(&self) -> &AgentHello {
        &self.inner.hello
    }

    /// Asks the agent and waits for its answer; any number of calls may be under way.
    ///
    /// Dropping the future gives up the answer, not the request: the agent may still carry it out.
    ///
    /// # Errors
    /// [`CallError::Refused`] with the agent's reason, or why there was no answer.
    pub async fn call(&self, request: Request, deadline: Duration) -> Result<Reply, CallError> {
        let name = request.name();
        let link_error = |error| CallError::Link { request: name, error };
        let (sender, receiver) = oneshot::channel();
        let pending = Pending::new(&self.inner.calls, sender);
        // A request has no map with keys other than strings, the one thing JSON cannot write.
        let text = serde_json::to_vec(&Call { id: pending.id, request }).map_err(|error| {
            link_error(LinkError::Message { len: 0, reason: error.to_string() })
        })?;
        if text.len() > MAX_MESSAGE {
            return Err(CallError::TooLong { request: name, len: text.len() });
        }
        let answer = async {
            let size = u32::try_from(text.len()).unwrap_or(u32::MAX);
            let permit = Arc::clone(&self.inner.room).acquire_many_owned(size).await;
            self.inner.mux.send_message(text, permit.ok());
            receiver.await
        };
        let answer = async {
            tokio::select! {
                biased;
                Ok(reply) = answer => Ok(reply),
                error = self.inner.mux.ended() => Err(link_error(error)),
            }
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(Reply::Error(failure))) => Err(CallError::Refused { request: name, failure }),
            Ok(answer) => answer,
            Err(_elapsed) => Err(CallError::TimedOut { request: name, deadline }),
        }
    }

    /// A new stream: its id, to be named in a request, and its ends.
    ///
    /// On a link that has ended, the ends fail at their first use.
    pub fn open(&self) -> (u32, StreamReader, StreamWriter) {
        self.inner.mux.open()
    }

    /// Resolves when the link has ended, with the reason.
    pub async fn closed(&self) -> LinkError {
        self.inner.mux.ended().await
    }
}

/// What the agent reports on its own, in its order.
#[derive(Debug)]
pub struct EventReceiver(mpsc::Receiver<Event>);

impl EventReceiver {
    /// The next event; `None` when the link has ended and all were taken. Cancellation safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call's entry in the table, removed whatever becomes of the call.
struct Pending<'a> {
    calls: &'a Mutex<Calls>,
    id: u64,
}

impl<'a> Pending<'a> {
    fn new(calls: &'a Mutex<Calls>, sender: oneshot::Sender<Reply>) -> Self {
        let mut table = lock(calls);
        let id = table.next;
        table.next += 1;
        table.waiting.insert(id, sender);
        Self { calls, id }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        lock(self.calls).waiting.remove(&self.id);
    }
}

struct Answers {
    calls: Arc<Mutex<Calls>>,
    events: mpsc::Sender<Event>,
}

impl Inbox for Answers {
    fn message(&mut self, text: &[u8]) -> Result<(), LinkError> {
        let broken = |reason: String| LinkError::Message { len: text.len(), reason };
        match serde_json::from_slice(text).map_err(|error| broken(error.to_string()))? {
            Answer::Reply { id, reply } => {
                let mut calls = lock(&self.calls);
                if id >= calls.next {
                    return Err(broken(format!("it answers call {id}, which was not made")));
                }
                // Absent when the caller gave up.
                if let Some(sender) = calls.waiting.remove(&id) {
                    let _gave_up = sender.send(reply);
                }
                Ok(())
            }
            Answer::Event(event) => match self.events.try_send(event) {
                // Nobody listens: then there is nobody to keep it for.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    Err(broken(format!("{EVENTS} events wait already")))
                }
            },
        }
    }
}
