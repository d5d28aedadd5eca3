//! How a link, a call or a stream can fail.

use std::{io, sync::Arc, time::Duration};

use crate::{frame::FrameError, message::Failure};

/// Why a link ended (or never began). Cheap to clone: every waiter gets the same reason.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the byte stream.
    #[error("link closed by the peer")]
    Closed,
    /// The last handle on this side was dropped.
    #[error("link given up on this side")]
    Dropped,
    #[error("link carrier failed")]
    Io(#[source] Arc<io::Error>),
    /// No agent introduced itself in time.
    #[error("no agent on the link after {0:?}")]
    NoAgent(Duration),
    /// What came first was neither the preface nor bearable noise.
    #[error("no preface in the first {0} bytes of the link")]
    NoPreface(usize),
    /// The two ends share no protocol version.
    #[error("no common link version: agent speaks {min} to {max}, supervisor {ours}")]
    Version { min: u16, max: u16, ours: u16 },
    #[error("malformed frame on the link")]
    Frame(#[from] FrameError),
    /// A well-formed frame that the rules forbid here.
    #[error("{frame} frame of {len} bytes for stream {stream} breaks a link rule: {rule}")]
    Violation { frame: &'static str, stream: u32, len: usize, rule: &'static str },
    /// A control message that is too long or is not what the protocol says.
    #[error("control message of {len} bytes: {reason}")]
    Message { len: usize, reason: String },
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl From<LinkError> for io::Error {
    fn from(error: LinkError) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, error)
    }
}

/// Why a call brought no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The agent answered, and the answer is no.
    #[error("agent refused {request}")]
    Refused {
        request: &'static str,
        #[source]
        failure: Failure,
    },
    #[error("no answer to {request} within {deadline:?}")]
    TimedOut { request: &'static str, deadline: Duration },
    #[error("{request} of {len} bytes is longer than a message may be")]
    TooLong { request: &'static str, len: usize },
    #[error("link ended before {request} was answered")]
    Link {
        request: &'static str,
        #[source]
        error: LinkError,
    },
}

impl CallError {
    /// The agent's refusal, if that is what it was.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Refused { failure, .. } => Some(failure),
            _ => None,
        }
    }
}

/// Why the agent's end could not open a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("stream {0} was not announced by the supervisor")]
    Unknown(u32),
    #[error("stream {0} is in use")]
    Claimed(u32),
}
