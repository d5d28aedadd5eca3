//! The first words on a link, before there is a mux.
//!
//! The agent speaks first, because a terminal that is not raw yet would echo what the supervisor
//! says, and because a console may carry the kernel's or the firmware's noise before it.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{
    error::LinkError,
    frame::{self, HEADER, Kind, MAX_PAYLOAD},
    message::{AgentHello, SupervisorHello},
};

/// Version of the protocol spoken by this build.
pub(crate) const VERSION: u16 = 1;
/// Begins a link. Bytes that neither text nor a terminal produces by itself.
pub(crate) const PREFACE: [u8; 8] = *b"\x00\xffHyLk\xfe\x01";
/// Bytes of noise borne before the preface.
pub(crate) const MAX_NOISE: usize = 64 << 10;

/// Bytes read from the carrier and not yet used.
pub(crate) type Leftover = Vec<u8>;

/// Supervisor: waits for the preface and the agent's hello, then answers.
pub(crate) async fn greet_agent<Io: AsyncRead + AsyncWrite + Unpin>(
    io: &mut Io,
    mut bytes: Leftover,
    deadline: Duration,
) -> Result<(AgentHello, Leftover), LinkError> {
    let greeting = async {
        let start = preface(io, &mut bytes).await?;
        bytes.drain(..start);
        let hello: AgentHello = read_hello(io, &mut bytes).await?;
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            let (min, max) = (hello.min_version, hello.max_version);
            return Err(LinkError::Version { min, max, ours: VERSION });
        }
        write_hello(io, Vec::new(), &SupervisorHello { version: VERSION }).await?;
        Ok((hello, bytes))
    };
    tokio::time::timeout(deadline, greeting).await.unwrap_or(Err(LinkError::NoAgent(deadline)))
}

/// Supervisor: waits for the preface and the agent's hello, and does not answer. All that was read.
pub(crate) async fn hear_agent<Io: AsyncRead + Unpin>(
    io: &mut Io,
    deadline: Duration,
) -> Result<Leftover, LinkError> {
    let hearing = async {
        let mut bytes = Leftover::new();
        let start = preface(io, &mut bytes).await?;
        while frame::parse_frame(&bytes[start..])?.is_none() {
            read_more(io, &mut bytes).await?;
        }
        Ok(bytes)
    };
    tokio::time::timeout(deadline, hearing).await.unwrap_or(Err(LinkError::NoAgent(deadline)))
}

/// Reads until the preface is there; returns where it ends.
async fn preface<Io: AsyncRead + Unpin>(
    io: &mut Io,
    bytes: &mut Leftover,
) -> Result<usize, LinkError> {
    loop {
        if let Some(at) = bytes.windows(PREFACE.len()).position(|w| w == PREFACE) {
            return Ok(at + PREFACE.len());
        }
        if bytes.len() > MAX_NOISE + PREFACE.len() {
            return Err(LinkError::NoPreface(bytes.len()));
        }
        read_more(io, bytes).await?;
    }
}

/// Agent: introduces itself and waits, for as long as it takes, for the supervisor.
pub(crate) async fn greet_supervisor<Io: AsyncRead + AsyncWrite + Unpin>(
    io: &mut Io,
    hello: &AgentHello,
) -> Result<Leftover, LinkError> {
    write_hello(io, PREFACE.to_vec(), hello).await?;
    let mut bytes = Leftover::new();
    let answer: SupervisorHello = read_hello(io, &mut bytes).await?;
    if !(hello.min_version..=hello.max_version).contains(&answer.version) {
        let (min, max) = (hello.min_version, hello.max_version);
        return Err(LinkError::Version { min, max, ours: answer.version });
    }
    Ok(bytes)
}

async fn write_hello<Io: AsyncWrite + Unpin>(
    io: &mut Io,
    mut out: Vec<u8>,
    hello: &impl Serialize,
) -> Result<(), LinkError> {
    let text = serde_json::to_vec(hello)
        .map_err(|error| LinkError::Message { len: 0, reason: error.to_string() })?;
    if text.len() > MAX_PAYLOAD {
        let reason = "a hello must fit one frame".to_owned();
        return Err(LinkError::Message { len: text.len(), reason });
    }
    frame::put_header(&mut out, 0, Kind::Message, text.len());
    out.extend_from_slice(&text);
    io.write_all(&out).await?;
    io.flush().await?;
    Ok(())
}

async fn read_hello<Io: AsyncRead + Unpin, Hello: DeserializeOwned>(
    io: &mut Io,
    bytes: &mut Leftover,
) -> Result<Hello, LinkError> {
    loop {
        if let Some((frame, used)) = frame::parse_frame(bytes)? {
            let len = frame.payload.len();
            if frame.kind != Kind::Message {
                let rule = "the first frame is a hello";
                let (frame, stream) = (frame.kind.name(), frame.stream);
                return Err(LinkError::Violation { frame, stream, len, rule });
            }
            let hello = serde_json::from_slice(frame.payload)
                .map_err(|error| LinkError::Message { len, reason: error.to_string() })?;
            bytes.drain(..used);
            return Ok(hello);
        }
        read_more(io, bytes).await?;
    }
}

/// At most a frame's worth at a time, so that what is buffered here stays bounded.
async fn read_more<Io: AsyncRead + Unpin>(
    io: &mut Io,
    bytes: &mut Leftover,
) -> Result<(), LinkError> {
    bytes.reserve(512);
    let limit = (HEADER + MAX_PAYLOAD) as u64;
    match (&mut *io).take(limit).read_buf(bytes).await? {
        0 => Err(LinkError::Closed),
        _ => Ok(()),
    }
}
