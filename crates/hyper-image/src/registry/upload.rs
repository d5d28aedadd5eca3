//! Blobs and manifests to a registry.
//!
//! ```text
//!  HEAD ─ 200: there ─────────────────────────────────────────────────────────────► Exists
//!    └ 404 ─► POST (mount=, from=) ─ 201 ───────────────────────────────────────────► Mounted
//!              └ 202 ─► PATCH from here ─► PUT ?digest= ─ 201 ──────────────────────► Pushed
//!                        ▲        └ broken ─► pause ─► GET: how far? ─┐
//!                        └────────────────────────────────────────────┘
//! ```
//! Source: OCI distribution-spec, "Pushing blobs" and "Pushing manifests".

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::Stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Body, Client, Response, StatusCode, Url};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::fault::Fault;
use super::{Repository, Retry};
use crate::digest::Digest;
use crate::error::Error;
use crate::progress::{LayerState, Progress};

/// Bytes read and sent at once.
const PIECE: usize = 256 << 10;
/// Between two reports of the same blob.
const REPORT: Duration = Duration::from_millis(100);
/// Deadline of a request without a large body.
const SMALL_DEADLINE: Duration = Duration::from_secs(60);
/// Deadline of taking an upload back.
const FAREWELL: Duration = Duration::from_secs(5);
/// A registry hashes and moves a blob after its last byte, and only then answers.
const SETTLE: Duration = Duration::from_secs(600);

/// A blob of the store on its way.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub path: PathBuf,
}

/// How a blob came to be in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uploaded {
    Exists,
    Mounted(String),
    Pushed,
}

/// An upload that the registry has begun.
#[derive(Debug, Clone)]
struct Session {
    url: Url,
    site: usize,
    /// Bytes the registry has.
    offset: u64,
}

/// The session of an upload that is under way; one that is given up is taken back.
struct Open {
    repository: Arc<Repository>,
    session: Option<Session>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let repository = Arc::clone(&self.repository);
        let shared = Arc::clone(&repository.registries);
        shared.later(async move {
            let build = |client: &Client, url: &str| {
                client.delete(url).timeout(FAREWELL).header(CONTENT_LENGTH, 0)
            };
            let taken = repository.ask(session.site, session.url.as_str(), &build).await;
            if let Err(fault) = taken {
                // The registry throws it away in its own time.
                tracing::debug!(error = %fault.error, "an upload was not taken back");
            }
        });
    }
}

/// Pauses between attempts, and when to give up.
struct Backoff {
    retry: Retry,
    failures: u32,
}

impl Backoff {
    /// How long to wait for the next attempt and why, or the error that no attempt would mend.
    fn after(&mut self, fault: Fault, progressed: bool) -> Result<(Duration, String), Error> {
        self.failures = if progressed { 1 } else { self.failures + 1 };
        if !fault.transient || self.failures >= self.retry.attempts.max(1) {
            return Err(fault.error);
        }
        let after = fault.after.unwrap_or_else(|| self.retry.pause(self.failures));
        Ok((after, fault.error.chain()))
    }
}

impl Repository {
    /// Makes sure that the registry has a blob. `from` is a repository of the same registry that should have it.
    pub(crate) async fn upload(
        self: &Arc<Self>,
        blob: &Blob,
        from: Option<&str>,
        progress: &Progress,
    ) -> Result<Uploaded, Error> {
        let mut backoff = self.backoff();
        let mut open = Open { repository: Arc::clone(self), session: None };
        let mut from = from;
        loop {
            let before = open.session.as_ref().map_or(0, |session| session.offset);
            let fault = match self.attempt(blob, from, &mut open.session, progress).await {
                Ok(done) => {
                    open.session = None;
                    return Ok(done);
                }
                Err(fault) => fault,
            };
            // A registry that stumbles over a mount gets the bytes.
            from = None;
            let progressed = open.session.as_ref().is_some_and(|session| session.offset > before);
            let (after, reason) = backoff.after(fault, progressed)?;
            tracing::debug!(digest = %blob.digest, ?after, reason, "upload interrupted");
            progress.layer(blob.digest, LayerState::Retrying { after, reason });
            tokio::time::sleep(after).await;
        }
    }

    /// Puts a manifest or index by tag or digest, byte for byte. Returns whether the registry took note of its subject.
    pub(crate) async fn put_manifest(
        &self,
        key: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<bool, Error> {
        let mut backoff = self.backoff();
        let path = format!("manifests/{key}");
        let build = |client: &Client, url: &str| {
            client
                .put(url)
                .timeout(SMALL_DEADLINE)
                .header(CONTENT_TYPE, media_type)
                .body(bytes.to_vec())
        };
        loop {
            let fault = match self.open_with(&path, &build).await {
                Ok((response, _)) => return Ok(response.headers().contains_key("oci-subject")),
                Err(fault) => fault,
            };
            let (after, reason) = backoff.after(fault, false)?;
            tracing::debug!(key, ?after, reason, "putting a manifest again");
            tokio::time::sleep(after).await;
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff { retry: self.registries.options.retry, failures: 0 }
    }

    /// One attempt; a session that broke off is left for the next one.
    async fn attempt(
        &self,
        blob: &Blob,
        from: Option<&str>,
        session: &mut Option<Session>,
        progress: &Progress,
    ) -> Result<Uploaded, Fault> {
        if let Some(open) = session.clone() {
            *session = self.resume(open).await;
        }
        if session.is_none() {
            if self.has(blob).await? {
                return Ok(Uploaded::Exists);
            }
            match self.begin(blob, from).await? {
                Some(begun) => *session = Some(begun),
                None => return Ok(Uploaded::Mounted(from.unwrap_or_default().to_owned())),
            }
        }
        let Some(open) = session else { return Err(Fault::fatal(Error::Cancelled)) };
        if open.offset < blob.size {
            let response = self.patch(blob, open, progress).await?;
            open.url = self.location(open.site, &open.url, &response).map_err(Fault::fatal)?;
            open.offset = blob.size;
        }
        let mut url = open.url.clone();
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let build =
            |client: &Client, url: &str| client.put(url).timeout(SETTLE).header(CONTENT_LENGTH, 0);
        match self.ask(open.site, url.as_str(), &build).await {
            Ok(_) => Ok(Uploaded::Pushed),
            Err(fault) => {
                // Whatever it holds, it is not this blob.
                *session = None;
                Err(fault)
            }
        }
    }

    async fn has(&self, blob: &Blob) -> Result<bool, Fault> {
        let build = |client: &Client, url: &str| client.head(url).timeout(SMALL_DEADLINE);
        match self.open_with(&format!("blobs/{}", blob.digest), &build).await {
            Ok(_) => Ok(true),
            Err(Fault { error: Error::NotInRegistry { .. }, .. }) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Begins an upload; `None` if the registry took the blob from another repository instead.
    async fn begin(&self, blob: &Blob, from: Option<&str>) -> Result<Option<Session>, Fault> {
        let build = |client: &Client, url: &str| {
            let mut target = url.to_owned();
            if let Some(from) = from {
                target.push_str(&format!("?mount={}&from={from}", blob.digest));
            }
            client.post(target).timeout(SMALL_DEADLINE).header(CONTENT_LENGTH, 0)
        };
        let (response, site) = self.open_with("blobs/uploads/", &build).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let base = self.url(site, "blobs/uploads/");
        let base = Url::parse(&base).map_err(|_| Fault::fatal(self.bad_location(&base)))?;
        let url = self.location(site, &base, &response).map_err(Fault::fatal)?;
        Ok(Some(Session { url, site, offset: 0 }))
    }

    /// How far an interrupted upload came; `None` if the registry no longer knows it.
    async fn resume(&self, session: Session) -> Option<Session> {
        let build = |client: &Client, url: &str| client.get(url).timeout(SMALL_DEADLINE);
        let response = self.ask(session.site, session.url.as_str(), &build).await.ok()?;
        let url = self.location(session.site, &session.url, &response).ok()?;
        let range = response.headers().get(RANGE)?.to_str().ok()?;
        let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
        // `0-0` is what registries say of none and of one byte.
        let offset = if last == 0 { 0 } else { last + 1 };
        Some(Session { url, offset, ..session })
    }

    /// Sends the bytes from the session's offset on.
    async fn patch(
        &self,
        blob: &Blob,
        session: &Session,
        progress: &Progress,
    ) -> Result<Response, Fault> {
        let sent = Arc::new(AtomicU64::new(session.offset));
        let (from, size) = (session.offset, blob.size);
        let build = |client: &Client, url: &str| {
            sent.store(from, Ordering::Relaxed);
            let body = stream(blob.clone(), from, Arc::clone(&sent), progress.clone());
            let mut request = client
                .patch(url)
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, size - from)
                .body(Body::wrap_stream(body));
            if from > 0 {
                request = request.header(CONTENT_RANGE, format!("{from}-{}", size - 1));
            }
            request
        };
        let sending = self.ask(session.site, session.url.as_str(), &build);
        tokio::pin!(sending);
        let silence = self.registries.options.retry.silence;
        let mut seen = (from, Instant::now());
        loop {
            tokio::select! {
                result = &mut sending => return result,
                () = tokio::time::sleep(silence.min(Duration::from_secs(1))) => {}
            }
            let now = sent.load(Ordering::Relaxed);
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            let patience = if now >= size { SETTLE } else { silence };
            if seen.1.elapsed() >= patience {
                let error = Error::Transfer {
                    url: session.url.to_string(),
                    received: now,
                    source: format!("no byte was taken for {} s", patience.as_secs()).into(),
                };
                return Err(Fault { error, transient: true, elsewhere: false, after: None });
            }
        }
    }

    /// Where the registry wants the next request of an upload.
    fn location(&self, site: usize, base: &Url, response: &Response) -> Result<Url, Error> {
        let header = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let Some(header) = header else {
            return if response.status().is_success() && response.status() != StatusCode::ACCEPTED {
                Ok(base.clone())
            } else {
                Err(self.bad_location("none"))
            };
        };
        let url = base.join(header).map_err(|_| self.bad_location(header))?;
        let open = url.scheme() == "http" && self.endpoint(site).base.starts_with("https://");
        if open || !matches!(url.scheme(), "http" | "https") {
            return Err(self.bad_location(header));
        }
        Ok(url)
    }

    fn bad_location(&self, location: &str) -> Error {
        let location: String = location.chars().take(200).collect();
        Error::Malformed {
            what: format!("the answer of {} to an upload", self.reference.registry()),
            reason: format!("its Location is `{location}`"),
        }
    }
}

/// The bytes of a blob's file from an offset on.
fn stream(
    blob: Blob,
    from: u64,
    sent: Arc<AtomicU64>,
    progress: Progress,
) -> impl Stream<Item = std::io::Result<BytesMut>> + Send + 'static {
    struct State {
        file: Option<tokio::fs::File>,
        left: u64,
        reported: Instant,
    }
    let state = State { file: None, left: blob.size - from, reported: Instant::now() };
    futures_util::stream::try_unfold(state, move |mut state| {
        let (blob, sent, progress) = (blob.clone(), Arc::clone(&sent), progress.clone());
        async move {
            if state.left == 0 {
                progress.layer(
                    blob.digest,
                    LayerState::Pushing { current: blob.size, total: blob.size },
                );
                return Ok(None);
            }
            let file = match &mut state.file {
                Some(file) => file,
                none => {
                    let mut file = tokio::fs::File::open(&blob.path).await?;
                    file.set_max_buf_size(PIECE);
                    file.seek(std::io::SeekFrom::Start(from)).await?;
                    none.insert(file)
                }
            };
            let mut piece = BytesMut::with_capacity(PIECE);
            let read = file.read_buf(&mut piece).await? as u64;
            if read == 0 || read > state.left {
                let text = format!("{} is not as long as it was", blob.path.display());
                return Err(std::io::Error::other(text));
            }
            state.left -= read;
            let current = blob.size - state.left;
            sent.store(current, Ordering::Relaxed);
            if state.reported.elapsed() >= REPORT {
                state.reported = Instant::now();
                progress.layer(blob.digest, LayerState::Pushing { current, total: blob.size });
            }
            Ok(Some((piece, state)))
        }
    })
}
