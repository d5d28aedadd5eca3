//! A client of the Docker Engine API on a Unix socket.
//!
//! Own and thin, because attach and exec need the raw connection: half-close of stdin, and no
//! guessing of the framing from the first byte (bollard's decoder guesses).

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// API version in every path; hyperd speaks it and older ones.
const VERSION: &str = "v1.47";
/// Longest answer body that is read whole.
const MAX_BODY: usize = 256 << 20;

/// Where hyperd listens.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connect to hyperd at `{}`", socket.display())]
    Connect {
        socket: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{method} {path}")]
    Http {
        method: Method,
        path: String,
        #[source]
        source: hyper::Error,
    },
    /// hyperd answered with an error.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error("{method} {path} answered something that is not JSON")]
    NotJson {
        method: Method,
        path: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} did not switch to a raw stream")]
    NotUpgraded { path: String },
}

/// A hijacked connection.
#[derive(Debug)]
pub struct Hijacked {
    pub stream: UnixStream,
    /// Bytes that arrived together with the answer's head.
    pub early: Bytes,
    /// The stream is framed (stdcopy), not a terminal's raw bytes.
    pub framed: bool,
}

impl Client {
    /// A client of the hyperd that listens on `socket`; does not connect yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends a request and returns the answer's head and stream; error answers become errors.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let response = self.exchange(method, path, body, false).await?;
        if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    /// Sends a request and parses the whole answer; an empty one is `Null`.
    pub async fn json(&self, method: Method, path: &str, body: Body) -> Result<Value, ClientError> {
        let response = self.send(method.clone(), path, body).await?;
        let bytes = http_body_util::Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|error| ClientError::Refused {
                status: StatusCode::BAD_GATEWAY,
                message: format!("{method} {path}: answer cut short: {error}"),
            })?
            .to_bytes();
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|source| ClientError::NotJson {
            method,
            path: path.to_owned(),
            source,
        })
    }

    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.json(Method::GET, path, Body::None).await
    }

    pub async fn post(&self, path: &str, body: Body) -> Result<Value, ClientError> {
        self.json(Method::POST, path, body).await
    }

    /// Takes the connection over after the server's `101`.
    pub async fn hijack(&self, path: &str, body: Body) -> Result<Hijacked, ClientError> {
        let response = self.exchange(Method::POST, path, body, true).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            if response.status().is_success() {
                return Err(ClientError::NotUpgraded { path: path.to_owned() });
            }
            return Err(refusal(response).await);
        }
        let framed = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().ends_with(b"multiplexed-stream"));
        let not_upgraded = || ClientError::NotUpgraded { path: path.to_owned() };
        let upgraded = hyper::upgrade::on(response).await.map_err(|_| not_upgraded())?;
        let parts = upgraded.downcast::<TokioIo<UnixStream>>().map_err(|_| not_upgraded())?;
        Ok(Hijacked { stream: parts.io.into_inner(), early: parts.read_buf, framed })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Body,
        upgrade: bool,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        let failed =
            |source| ClientError::Http { method: method.clone(), path: path.to_owned(), source };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with the answer's body, or hands the socket over on upgrade.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await
                && !error.is_canceled()
                && !error.is_incomplete_message()
            {
                eprintln!("hyper: connection to hyperd: {error}");
            }
        });
        let mut request = Request::builder()
            .method(&method)
            .uri(format!("/{VERSION}{path}"))
            .header(header::HOST, "hyperd")
            .header(header::USER_AGENT, concat!("hyper/", env!("CARGO_PKG_VERSION")));
        if upgrade {
            request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
        }
        let body = match body {
            Body::None => Full::default().boxed(),
            Body::Json(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Full::new(Bytes::from(value.to_string())).boxed()
            }
            Body::Auth(auth) => {
                request = request.header("X-Registry-Auth", auth);
                Full::default().boxed()
            }
            Body::Tar(chunks) => {
                request = request.header(header::CONTENT_TYPE, "application/x-tar");
                ChannelBody(chunks).boxed()
            }
            Body::Context(chunks, credentials) => {
                request = request
                    .header(header::CONTENT_TYPE, "application/x-tar")
                    .header("X-Registry-Config", credentials);
                ChannelBody(chunks).boxed()
            }
        };
        let request = request.body(body).map_err(|error| ClientError::Refused {
            status: StatusCode::BAD_REQUEST,
            message: format!("`{path}` cannot be sent: {error}"),
        })?;
        sender.send_request(request).await.map_err(failed)
    }
}

/// What a request carries.
#[derive(Debug)]
pub enum Body {
    None,
    Json(Value),
    /// Base64 of registry credentials, as a header.
    Auth(String),
    /// A tar stream, chunk by chunk.
    Tar(tokio::sync::mpsc::Receiver<Bytes>),
    /// A build context, and base64 of the credentials of its registries.
    Context(tokio::sync::mpsc::Receiver<Bytes>, String),
}

/// A request body fed by a channel; ends when the sender is dropped.
struct ChannelBody(tokio::sync::mpsc::Receiver<Bytes>);

impl hyper::body::Body for ChannelBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|bytes| Ok(hyper::body::Frame::data(bytes))))
    }
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let bytes = http_body_util::Limited::new(response.into_body(), 1 << 20)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let message = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|value| Some(value.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("hyperd answered {status}"));
    ClientError::Refused { status, message }
}

/// Percent-encodes one query value.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
