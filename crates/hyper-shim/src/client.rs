//! A client of containerd's Task API, of either version that shims speak.
//!
//! Versions 2 and 3 differ in the service's name only, which the generated client has built in; so
//! calls are made here, with the generated messages.

use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::Address;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    #[error("no answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The supervisor's own words.
    #[error("{message}")]
    Refused { why: Refusal, message: String },
    /// The connection is broken: the supervisor has ended, or is ending.
    #[error("{0}")]
    Gone(String),
}

/// What the caller can do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Ask in another state.
    State,
    /// Ask for something else.
    Argument,
    Unsupported,
    Other,
}

/// One connection.
pub struct TaskClient {
    client: Client,
    service: &'static str,
    closed: watch::Receiver<bool>,
}

impl std::fmt::Debug for TaskClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskClient").field("service", &self.service).finish_non_exhaustive()
    }
}

impl TaskClient {
    /// Connects.
    ///
    /// # Errors
    /// The system's, or an address of another kind.
    pub async fn connect(address: &Address) -> std::io::Result<Self> {
        let path = address.address.strip_prefix("unix://").ok_or_else(|| {
            std::io::Error::other(format!("address `{}` is not unix://", address.address))
        })?;
        let stream = hyper_stdio::socket::connect(path.as_ref()).await?;
        let (closing, closed) = watch::channel(false);
        let client = Client::new(Socket::new(Watched { stream, closing }));
        let service = match address.version {
            ..=2 => "containerd.task.v2.Task",
            3.. => "containerd.task.v3.Task",
        };
        Ok(Self { client, service, closed })
    }

    /// Calls `method`; without `within` for as long as the connection lives.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn call<Q: Message, R: Message>(
        &self,
        method: &'static str,
        request: &Q,
        within: Option<Duration>,
    ) -> Result<R, TaskError> {
        let gone = |e: &dyn std::fmt::Display| TaskError::Gone(e.to_string());
        let mut call = ttrpc::Request::new();
        call.service = self.service.to_owned();
        call.method = method.to_owned();
        call.payload = request.write_to_bytes().map_err(|e| gone(&e))?;
        let answer = match within {
            None => self.client.request(call).await,
            Some(within) => {
                call.timeout_nano = i64::try_from(within.as_nanos()).unwrap_or(i64::MAX);
                tokio::time::timeout(within, self.client.request(call))
                    .await
                    .map_err(|_| TaskError::Deadline(within))?
            }
        };
        match answer {
            Ok(answer) => R::parse_from_bytes(&answer.payload).map_err(|e| gone(&e)),
            Err(ttrpc::Error::RpcStatus(status)) => match (status.code(), within) {
                (ttrpc::Code::DEADLINE_EXCEEDED, Some(within)) => Err(TaskError::Deadline(within)),
                (code, _) => {
                    let why = match code {
                        ttrpc::Code::FAILED_PRECONDITION => Refusal::State,
                        ttrpc::Code::INVALID_ARGUMENT => Refusal::Argument,
                        ttrpc::Code::UNIMPLEMENTED => Refusal::Unsupported,
                        _ => Refusal::Other,
                    };
                    Err(TaskError::Refused { why, message: status.message })
                }
            },
            Err(error) => Err(gone(&error)),
        }
    }

    /// The shim has closed the connection.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until the supervisor has closed the connection.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the connection's task is gone, and the stream with it.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

/// A stream that tells when its reading end is over.
struct Watched {
    stream: UnixStream,
    closing: watch::Sender<bool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let polled = std::pin::Pin::new(&mut self.stream).poll_read(cx, buf);
        let over = match &polled {
            std::task::Poll::Ready(Ok(())) => room > 0 && buf.filled().len() == before,
            std::task::Poll::Ready(Err(_)) => true,
            std::task::Poll::Pending => false,
        };
        if over {
            self.closing.send_replace(true);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
