//! The agent's end of a link.

use std::sync::{Arc, Weak};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    error::{LinkError, OpenError},
    handshake,
    message::{AgentHello, Event, Failure, FailureKind, MAX_MESSAGE, Reply, Request},
    mux::{Inbox, Mux, Side, StreamReader, StreamWriter},
    supervisor::{Answer, Call},
};

/// Requests the supervisor may be ahead of the agent; more ends the link.
const REQUESTS: usize = 4 << 10;

/// Introduces the agent on `io` and waits, for as long as it takes, for the supervisor's answer.
///
/// Must be called within a tokio runtime; any flavour will do.
///
/// # Errors
/// No common version, or a failing or misused carrier.
pub async fn accept<Io>(
    mut io: Io,
    hello: AgentHello,
) -> Result<(AgentLink, RequestReceiver), LinkError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let leftover = handshake::greet_supervisor(&mut io, &hello).await?;
    let (sender, requests) = mpsc::channel(REQUESTS);
    let mux = Arc::new(Mux::start(io, Side::Agent, leftover, Requests(sender)));
    let receiver = RequestReceiver { requests, mux: Arc::downgrade(&mux) };
    Ok((AgentLink { mux }, receiver))
}

/// A live link. Clones share it; with the last one it ends.
#[derive(Debug, Clone)]
pub struct AgentLink {
    mux: Arc<Mux>,
}

impl AgentLink {
    /// Reports `event`. Never waits; on a link that has ended it is lost.
    pub fn event(&self, event: Event) {
        send(&self.mux, &Answer::Event(event));
    }

    /// Takes the ends of the stream that a request names. Each stream can be taken once.
    ///
    /// # Errors
    /// The supervisor did not announce it, or it is taken.
    pub fn open(&self, id: u32) -> Result<(StreamReader, StreamWriter), OpenError> {
        self.mux.claim(id)
    }

    /// Resolves when all replies, events, and data with credit have been written to the carrier.
    ///
    /// # Errors
    /// The link ended before.
    pub async fn flushed(&self) -> Result<(), LinkError> {
        self.mux.flushed().await
    }

    /// Resolves when the link has ended, with the reason.
    pub async fn closed(&self) -> LinkError {
        self.mux.ended().await
    }
}

/// What the supervisor asks, in its order.
#[derive(Debug)]
pub struct RequestReceiver {
    requests: mpsc::Receiver<Call>,
    mux: Weak<Mux>,
}

impl RequestReceiver {
    /// The next request and where its answer goes; `None` when the link has ended.
    /// Cancellation safe.
    pub async fn recv(&mut self) -> Option<(Request, Replier)> {
        let Call { id, request } = self.requests.recv().await?;
        Some((request, Replier { mux: Weak::clone(&self.mux), id: Some(id) }))
    }
}

/// Answers one request. Dropped without an answer it says so to the supervisor.
#[derive(Debug)]
pub struct Replier {
    mux: Weak<Mux>,
    id: Option<u64>,
}

impl Replier {
    /// Answers. Never waits.
    pub fn send(mut self, reply: Reply) {
        self.answer(reply);
    }

    fn answer(&mut self, reply: Reply) {
        if let (Some(id), Some(mux)) = (self.id.take(), self.mux.upgrade()) {
            send(&mux, &Answer::Reply { id, reply });
        }
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        self.answer(Reply::Error(Failure {
            kind: FailureKind::Internal,
            message: "agent gave the request up without an answer".to_owned(),
        }));
    }
}

fn send(mux: &Mux, answer: &Answer) {
    let text = serde_json::to_vec(answer).unwrap_or_default();
    if !text.is_empty() && text.len() <= MAX_MESSAGE {
        mux.send_message(text, None);
    } else if let Answer::Reply { id, .. } = answer {
        let failure = Failure {
            kind: FailureKind::Internal,
            message: format!("reply of {} bytes is longer than a message may be", text.len()),
        };
        let reply = Answer::Reply { id: *id, reply: Reply::Error(failure) };
        mux.send_message(serde_json::to_vec(&reply).unwrap_or_default(), None);
    }
}

struct Requests(mpsc::Sender<Call>);

impl Inbox for Requests {
    fn message(&mut self, text: &[u8]) -> Result<(), LinkError> {
        let broken = |reason: String| LinkError::Message { len: text.len(), reason };
        let call = serde_json::from_slice(text).map_err(|error| broken(error.to_string()))?;
        match self.0.try_send(call) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(broken(format!("{REQUESTS} requests wait already")))
            }
        }
    }
}
