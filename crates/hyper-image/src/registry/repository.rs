//! One repository of a registry, for the time of one pull or push.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::endpoint::Endpoint;
use super::fault::Fault;
use super::{Registries, challenge, token};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use crate::spec::{DOCKER_LIST, DOCKER_MANIFEST, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST};

/// Bytes of an error answer that are read.
const MAX_ERROR_BODY: usize = 16 << 10;
/// Deadline of a small request, whatever trickles in.
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Repository {
    pub(super) registries: Arc<Registries>,
    pub(super) reference: Reference,
    credentials: Credentials,
    access: Access,
    sites: Vec<Site>,
    /// The site that answered last: asked first.
    current: AtomicUsize,
}

/// What a repository is opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    /// Also reads these repositories of the same registry, whose blobs are mounted.
    Push {
        mounts: Vec<String>,
    },
}

impl Access {
    /// What to tell people who lack it.
    fn verb(&self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push { .. } => "push",
        }
    }

    /// The token scope that all requests need; for a pull, what the registry asks for is enough.
    fn scope(&self, repository: &str) -> Option<String> {
        let Self::Push { mounts } = self else { return None };
        let mut scope = format!("repository:{repository}:pull,push");
        for mount in mounts {
            scope.push_str(&format!(" repository:{mount}:pull"));
        }
        Some(scope)
    }
}

/// How a request is made for an URL; made again when authorization is asked for.
pub(super) type Build<'a> = dyn Fn(&Client, &str) -> RequestBuilder + Send + Sync + 'a;

/// An endpoint and what it accepted as proof.
#[derive(Debug)]
struct Site {
    endpoint: Endpoint,
    authorization: Mutex<Option<HeaderValue>>,
}

/// What to ask for.
pub(super) struct Ask<'a> {
    /// Behind `/v2/REPOSITORY/`.
    pub path: &'a str,
    pub accept: Option<&'static str>,
    /// First byte wanted.
    pub from: u64,
}

/// A manifest or index as it came.
#[derive(Debug)]
pub(crate) struct RawManifest {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

impl Repository {
    pub(crate) async fn new(
        registries: Arc<Registries>,
        reference: Reference,
        credentials: Credentials,
        access: Access,
    ) -> Result<Self, Error> {
        let sites = registries
            .endpoints(&reference, matches!(access, Access::Push { .. }))
            .await?
            .into_iter()
            .map(|endpoint| {
                let known = if endpoint.mirror { None } else { token::direct(&credentials) };
                Site { endpoint, authorization: Mutex::new(known) }
            })
            .collect();
        let current = AtomicUsize::new(0);
        Ok(Self { registries, reference, credentials, access, sites, current })
    }

    /// A manifest or index by tag or digest; a digest is checked.
    pub(crate) async fn manifest(&self, key: &str) -> Result<RawManifest, Error> {
        let accept = const_accept();
        let path = format!("manifests/{key}");
        let (bytes, media_type, url) = self.document(&path, Some(accept)).await?;
        let digest = Digest::of(&bytes);
        if let Ok(expected) = key.parse::<Digest>()
            && expected != digest
        {
            return Err(Error::DigestMismatch { what: url, expected, actual: digest });
        }
        Ok(RawManifest { bytes, media_type, digest })
    }

    /// A small blob, whole in memory and checked.
    pub(crate) async fn small_blob(&self, digest: Digest, size: u64) -> Result<Vec<u8>, Error> {
        self.whole_blob(digest, size, MAX_DOCUMENT).await
    }

    /// A blob of at most `limit` bytes, whole in memory and checked.
    pub(crate) async fn whole_blob(
        &self,
        digest: Digest,
        size: u64,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        let path = format!("blobs/{digest}");
        let (bytes, _, url) = self.bounded(&path, None, limit).await?;
        let actual = Digest::of(&bytes);
        if bytes.len() as u64 != size {
            return Err(Error::SizeMismatch {
                what: url,
                expected: size,
                actual: bytes.len() as u64,
            });
        }
        if actual != digest {
            return Err(Error::DigestMismatch { what: url, expected: digest, actual });
        }
        Ok(bytes)
    }

    /// A whole small answer, its media type and its URL; retried, and asked of every endpoint.
    pub(super) async fn document(
        &self,
        path: &str,
        accept: Option<&'static str>,
    ) -> Result<(Vec<u8>, String, String), Error> {
        self.bounded(path, accept, MAX_DOCUMENT).await
    }

    async fn bounded(
        &self,
        path: &str,
        accept: Option<&'static str>,
        limit: u64,
    ) -> Result<(Vec<u8>, String, String), Error> {
        let mut failures = 0;
        loop {
            let ask = Ask { path, accept, from: 0 };
            let attempt = async {
                let (response, site) = self.open(&ask).await?;
                let url = self.url(site, path);
                let header =
                    response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let media_type = header.unwrap_or_default().split(';').next().unwrap_or_default();
                let media_type = media_type.trim().to_owned();
                let endpoint = &self.sites[site].endpoint;
                let bytes = read_bounded(&self.registries, endpoint, response, &url, limit).await?;
                Ok::<_, Fault>((bytes, media_type, url))
            };
            let fault = match tokio::time::timeout(DOCUMENT_DEADLINE, attempt).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(fault)) => fault,
                Err(_) => Fault {
                    error: Error::Transfer {
                        url: self.url(self.current.load(Ordering::Relaxed), path),
                        received: 0,
                        source: format!("no answer in {} s", DOCUMENT_DEADLINE.as_secs()).into(),
                    },
                    transient: true,
                    elsewhere: false,
                    after: None,
                },
            };
            failures += 1;
            let retry = &self.registries.options.retry;
            if !fault.transient || failures >= retry.attempts.max(1) {
                return Err(fault.error);
            }
            let pause = fault.after.unwrap_or_else(|| retry.pause(failures));
            tracing::debug!(error = %fault.error, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// One attempt at each endpoint until one answers with success. Returns the answer and the number of its site.
    pub(super) async fn open(&self, ask: &Ask<'_>) -> Result<(Response, usize), Fault> {
        let build = |client: &Client, url: &str| {
            let mut request = client.get(url);
            if let Some(accept) = ask.accept {
                request = request.header(ACCEPT, accept);
            }
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            request
        };
        self.open_with(ask.path, &build).await
    }

    /// As [`open`](Self::open), for any request.
    pub(super) async fn open_with(
        &self,
        path: &str,
        build: &Build<'_>,
    ) -> Result<(Response, usize), Fault> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = None;
        for site in first..self.sites.len() {
            match self.ask(site, &self.url(site, path), build).await {
                Ok(response) => {
                    self.current.store(site, Ordering::Relaxed);
                    self.registries.answered(&self.sites[site].endpoint);
                    return Ok((response, site));
                }
                Err(fault) => {
                    let endpoint = &self.sites[site].endpoint;
                    if matches!(fault.error, Error::Unreachable { .. }) {
                        self.registries.failed(endpoint);
                    }
                    if !fault.elsewhere && !endpoint.mirror {
                        return Err(fault);
                    }
                    tracing::debug!(endpoint = endpoint.base, error = %fault.error, "endpoint failed");
                    // Of the two tries of an insecure registry, the one that got an answer has more to say.
                    let keep = matches!(&last, Some(Fault { error: Error::Tls { .. }, .. }))
                        && matches!(fault.error, Error::Unreachable { .. });
                    if !keep {
                        last = Some(fault);
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| Fault::fatal(Error::Cancelled)))
    }

    pub(super) fn url(&self, site: usize, path: &str) -> String {
        let base = self.sites.get(site).map_or("", |site| &site.endpoint.base);
        format!("{base}/v2/{}/{path}", self.reference.repository())
    }

    pub(super) fn first_site(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    pub(super) fn endpoint(&self, site: usize) -> &Endpoint {
        &self.sites[site].endpoint
    }

    /// One request to one endpoint, with authorization as asked for.
    pub(super) async fn ask(
        &self,
        number: usize,
        url: &str,
        build: &Build<'_>,
    ) -> Result<Response, Fault> {
        let site = &self.sites[number];
        let shown = site.authorization.lock().await.clone();
        let mut response = self.send(site, url, build, shown.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
            let joined: Vec<&str> = headers.filter_map(|value| value.to_str().ok()).collect();
            if let Some(challenge) = challenge::parse(&joined.join(", ")) {
                drop(response);
                let answer = self.authorize(site, &challenge, shown.as_ref()).await?;
                response = self.send(site, url, build, answer.as_ref()).await?;
            }
        }
        self.judge(site, url, response).await
    }

    /// Answers a challenge once for all requests that meet it at the same time.
    async fn authorize(
        &self,
        site: &Site,
        challenge: &challenge::Challenge,
        shown: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        let mut known = site.authorization.lock().await;
        if known.as_ref() != shown {
            return Ok(known.clone());
        }
        let anonymous = Credentials::Anonymous;
        let credentials = if site.endpoint.mirror { &anonymous } else { &self.credentials };
        *known = token::answer(
            &self.registries,
            &site.endpoint,
            challenge,
            credentials,
            &self.reference,
            self.access.scope(self.reference.repository()).as_deref(),
        )
        .await?;
        Ok(known.clone())
    }

    async fn send(
        &self,
        site: &Site,
        url: &str,
        build: &Build<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Fault> {
        let mut request = build(&site.endpoint.client, url);
        // An upload may be sent to another host by the registry's word: that one has its own way to know us.
        if let Some(authorization) = authorization.filter(|_| same_host(url, &site.endpoint.base)) {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        request
            .send()
            .await
            .map_err(|error| Fault::request(&self.registries, &site.endpoint, url, 0, error))
    }

    async fn judge(&self, site: &Site, url: &str, response: Response) -> Result<Response, Fault> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let seconds =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let after =
            seconds.map(|s| Duration::from_secs(s).min(self.registries.options.retry.longest));
        let message = body_text(response).await;
        let reference = self.reference.familiar();
        let mut transient = false;
        let error = match status {
            StatusCode::NOT_FOUND => Error::NotInRegistry { reference, url: url.to_owned() },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized {
                action: self.access.verb(),
                reference,
                registry: self.reference.registry().to_owned(),
                message,
            },
            _ => {
                transient = status.is_server_error()
                    || matches!(
                        status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    );
                // Go's answer when TLS was meant.
                let plain_to_tls = status == StatusCode::BAD_REQUEST && url.starts_with("http://");
                let hint = if plain_to_tls { " (does it expect https?)" } else { "" };
                Error::Registry {
                    status: status.as_u16(),
                    url: url.to_owned(),
                    message: message + hint,
                }
            }
        };
        // A server error may be the front of a mirror; the registry itself may be well.
        Err(Fault { error, transient, elsewhere: site.endpoint.mirror, after })
    }
}

fn same_host(url: &str, base: &str) -> bool {
    let origin = |text: &str| Url::parse(text).map(|url| url.origin());
    matches!((origin(url), origin(base)), (Ok(a), Ok(b)) if a == b)
}

/// All kinds of manifests.
fn const_accept() -> &'static str {
    static ACCEPT_ALL: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ACCEPT_ALL.get_or_init(|| [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", "))
}

/// A body of at most `limit` bytes.
pub(super) async fn read_bounded(
    registries: &Registries,
    endpoint: &Endpoint,
    mut response: Response,
    url: &str,
    limit: u64,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(bytes),
            Ok(Some(chunk)) if (bytes.len() + chunk.len()) as u64 > limit => {
                let reason = format!("it is larger than {limit} bytes");
                return Err(Fault::fatal(Error::Malformed { what: url.to_owned(), reason }));
            }
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Err(error) => {
                return Err(Fault::request(registries, endpoint, url, bytes.len() as u64, error));
            }
        }
    }
}

/// What an error answer says, for people: the registry's own messages, or the first line.
pub(super) async fn body_text(mut response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Option<Vec<Item>>,
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let mut bytes = Vec::new();
    while bytes.len() < MAX_ERROR_BODY {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            _ => break,
        }
    }
    let text = match serde_json::from_slice::<Body>(&bytes) {
        Ok(Body { errors: Some(errors), .. }) if !errors.is_empty() => {
            let line = |item: &Item| match (item.code.as_str(), item.message.as_str()) {
                (code, "") => code.to_owned(),
                (_, message) => message.to_owned(),
            };
            errors.iter().take(3).map(line).collect::<Vec<_>>().join("; ")
        }
        Ok(Body { details: Some(details), .. }) => details,
        _ => String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_owned(),
    };
    let clean: String = text.trim().chars().filter(|c| !c.is_control()).take(300).collect();
    if clean.is_empty() {
        status.canonical_reason().unwrap_or("no reason given").to_owned()
    } else {
        clean
    }
}
