//! Connections that stop being HTTP: attach and exec.
//!
//! ```text
//!   client ──raw bytes──▶ detach keys? ──frames──▶ supervisor
//!          ◀── frames (multiplexed) or payloads (terminal) ──
//! ```
//! The answer is `101 UPGRADED`. A client that ends its sending side ends the process's stdin where
//! that is wanted, and still gets all output. A client without `Upgrade` header gets the output as
//! an ordinary body.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_engine::Attached;
use hyper_stdio::attach::{Frame, FrameReader, FrameWriter};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::detach::Detector;
use crate::error::{ApiError, ApiResult};
use crate::request::Version;

/// Some clients lose bytes that come in one packet with the header of the 101.
const AFTER_HEADER: Duration = Duration::from_millis(1);
const CHUNK: usize = 64 << 10;
/// Of hyper's upgrade, after the 101 was sent.
const UPGRADE: Duration = Duration::from_secs(10);
/// First version with a content type of its own for multiplexed streams.
const MULTIPLEXED: Version = Version(1, 42);

/// How a process's streams go to a client.
#[derive(Debug)]
pub(crate) struct Carry {
    /// One stream without headers.
    pub terminal: bool,
    /// Bytes of the client are the process's input.
    pub stdin: bool,
    /// The end of the client's bytes is the end of the process's stdin.
    pub close_stdin: bool,
    pub detach: Option<Detector>,
}

/// How the carrying ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// The process has no more output, or the client is gone.
    Over,
    /// The client typed the detach keys.
    Detached,
}

/// The upgrade that a request asks for, if it does.
pub(crate) struct Upgrade(pub Option<OnUpgrade>);

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        let asked = parts.headers.contains_key(header::UPGRADE);
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        Ok(Self(if asked { upgrade } else { None }))
    }
}

/// The 101 with the content type for this client.
pub(crate) fn switching(version: Version, terminal: bool) -> Response {
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "tcp"),
            (header::CONTENT_TYPE, content_type(version, terminal)),
        ],
    )
        .into_response()
}

/// Of a stream of a container's output.
pub(crate) fn content_type(version: Version, terminal: bool) -> &'static str {
    if terminal || version < MULTIPLEXED {
        "application/vnd.docker.raw-stream"
    } else {
        "application/vnd.docker.multiplexed-stream"
    }
}

/// The client's side, once the 101 is sent.
pub(crate) async fn upgraded(
    upgrade: OnUpgrade,
) -> io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let upgraded = tokio::time::timeout(UPGRADE, upgrade)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        .map_err(io::Error::other)?;
    tokio::time::sleep(AFTER_HEADER).await;
    Ok(TokioIo::new(upgraded))
}

/// Carries bytes both ways until the process's output ends, or the client goes or detaches.
pub(crate) async fn carry(
    client: impl AsyncRead + AsyncWrite + Unpin,
    mut attached: Attached,
    mut how: Carry,
) -> Carried {
    let (from_client, mut to_client) = tokio::io::split(client);
    // The rest of `attached` goes with this function's end: until then the pod keeps the output.
    let (output, input) = &mut attached.streams;
    let terminal = how.terminal;
    let sending = async {
        let result = send(output, &mut to_client, terminal).await;
        if let Err(error) = result {
            tracing::debug!(%error, "attached client");
        }
        Carried::Over
    };
    let receiving = async {
        match receive(from_client, input, &mut how).await {
            Ok(Carried::Detached) => Carried::Detached,
            Ok(Carried::Over) => std::future::pending().await,
            Err(error) => {
                // The process may have ended, or its stdin: the output tells the rest.
                tracing::debug!(%error, "input of attached client");
                std::future::pending().await
            }
        }
    };
    tokio::select! { carried = sending => carried, carried = receiving => carried }
}

/// Ends the connection.
pub(crate) async fn close(mut client: impl AsyncWrite + Unpin) {
    // It may be gone.
    let _ = client.shutdown().await;
}

/// Output only, as the body of an ordinary answer.
pub(crate) fn body(attached: Attached, terminal: bool) -> Body {
    let stream = futures_util::stream::try_unfold(attached, move |mut attached| async move {
        let frame = attached.streams.0.next().await?;
        Ok::<_, io::Error>(frame.map(|frame| {
            let bytes = if terminal { frame.data } else { Bytes::from(framed(&frame)) };
            (bytes, attached)
        }))
    });
    Body::from_stream(stream)
}

/// A text as the process's stderr would come (stdout of a terminal).
pub(crate) async fn tell(client: &mut (impl AsyncWrite + Unpin), terminal: bool, text: &str) {
    let data = Bytes::from(format!("{text}\r\n"));
    let bytes = if terminal { data.to_vec() } else { framed(&Frame { stream: 2, data }) };
    // A client that is gone does not want to know.
    let _ = client.write_all(&bytes).await;
    let _ = client.shutdown().await;
}

async fn send(
    output: &mut FrameReader<OwnedReadHalf>,
    client: &mut (impl AsyncWrite + Unpin),
    terminal: bool,
) -> io::Result<()> {
    while let Some(frame) = output.next().await? {
        if terminal {
            client.write_all(&frame.data).await?;
        } else {
            let header = header(&frame);
            let mut both = bytes::Buf::chain(&header[..], frame.data);
            client.write_all_buf(&mut both).await?;
        }
        client.flush().await?;
    }
    Ok(())
}

async fn receive(
    mut client: impl AsyncRead + Unpin,
    input: &mut FrameWriter<OwnedWriteHalf>,
    how: &mut Carry,
) -> io::Result<Carried> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = client.read(&mut chunk).await?;
        if read == 0 {
            if how.stdin && how.close_stdin {
                input.end_stdin().await?;
            }
            return Ok(Carried::Over);
        }
        if !how.stdin {
            continue;
        }
        match &mut how.detach {
            None => input.stdin(&chunk[..read]).await?,
            Some(detector) => {
                let (passed, detached) = detector.feed(&chunk[..read]);
                input.stdin(&passed).await?;
                if detached {
                    return Ok(Carried::Detached);
                }
            }
        }
    }
}

/// Docker's stdcopy header.
fn header(frame: &Frame) -> [u8; 8] {
    // A frame holds at most 64 KiB.
    let length = u32::try_from(frame.data.len()).unwrap_or(u32::MAX);
    let [a, b, c, d] = length.to_be_bytes();
    [frame.stream, 0, 0, 0, a, b, c, d]
}

pub(crate) fn framed(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + frame.data.len());
    bytes.extend_from_slice(&header(frame));
    bytes.extend_from_slice(&frame.data);
    bytes
}
