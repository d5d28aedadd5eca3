//! `POST /build`: Docker's classic builder API.
//!
//! ```text
//!  body (tar) ─► Context ─► Dockerfile ─┬─ wrong: an ordinary error
//!                                       └─ build ─► JSON lines: stream, status, aux, errorDetail
//! ```
//! A client that goes away cancels its build, and so does the end of hyperd.

pub(crate) mod prune;

use std::collections::{BTreeMap, HashMap};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bollard_stubs::models::{ContainerCreateBody, HostConfig, ResourcesUlimits};
use bytes::Bytes;
use hyper_build::{BuildError, Context, Dockerfile, Event, Request, Scratch};
use hyper_engine::spec::HostSpec;
use hyper_image::{Credentials, Image, Reference};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::DropGuard;

use crate::app::App;
use crate::container::create::translate;
use crate::error::{ApiError, ApiResult};
use crate::request::Query;
use crate::upload::with_body;
use crate::{progress, pull};

/// For clients that want BuildKit.
pub(crate) const NO_BUILDKIT: &str = "this engine has Docker's classic builder, not BuildKit: run \
    `DOCKER_BUILDKIT=0 docker build`, or point buildx at a buildkitd of its own";
/// Events between the build and its client.
const EVENTS: usize = 64;
/// Most text of a quiet build that is kept for the case of an error, in bytes.
const QUIET: usize = 1 << 20;

type Pairs = axum::extract::Query<Vec<(String, String)>>;

pub(crate) async fn build(
    State(app): State<App>,
    query: Query,
    pairs: Pairs,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    let (asked, context, file) = with_body(body, |reader| async {
        let asked = asked(&query, &pairs.0, &headers)?;
        let store = app.engine.image_store();
        let scratch = Scratch {
            directory: app.engine.config().layout.data_root.clone(),
            unpacker: store.unpacker().clone(),
        };
        // The body's end, or its client's, is the end of this thread.
        let stream = SyncIoBridge::new(reader);
        let dockerfile = asked.dockerfile.clone();
        let received = tokio::task::spawn_blocking(move || {
            let context = Context::receive(stream, &scratch)?;
            let file = Dockerfile::parse(&context.dockerfile(&dockerfile)?)?;
            Ok::<_, BuildError>((context, file))
        })
        .await
        .map_err(|_| ApiError::from(hyper_engine::Error::ShuttingDown))?;
        let (context, file) = received.map_err(refusal)?;
        Ok::<_, ApiError>((asked, context, file))
    })
    .await?;
    let request = asked.request(context);
    let (events, receiver) = mpsc::channel(EVENTS);
    let cancel = app.closing.child_token();
    let guard = cancel.clone().drop_guard();
    let engine = app.engine.clone();
    // Not dropped with its client: it has a container to remove.
    let task = app
        .tasks
        .spawn(async move { hyper_build::build(&engine, request, file, events, cancel).await });
    let telling =
        Telling { receiver, task: Some(task), quiet: asked.quiet.then(String::new), _guard: guard };
    let stream = futures_util::stream::unfold(telling, Telling::next);
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, Body::from_stream(stream)).into_response())
}

fn refusal(error: BuildError) -> ApiError {
    match error {
        BuildError::Engine(error) => error.into(),
        error if error.is_invalid() => ApiError::invalid(error.chain()),
        error => {
            let message = error.chain();
            tracing::warn!(error = message, "build");
            ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, message)
        }
    }
}

/// What a request asks for, before its context was read.
struct Asked {
    dockerfile: String,
    arguments: BTreeMap<String, Option<String>>,
    labels: BTreeMap<String, String>,
    tags: Vec<Reference>,
    target: Option<String>,
    platform: Option<String>,
    no_cache: bool,
    cache_from: Vec<String>,
    pull: bool,
    keep: bool,
    quiet: bool,
    host: HostSpec,
    auth: BTreeMap<String, Credentials>,
}

impl Asked {
    fn request(&self, context: Context) -> Request {
        Request {
            context,
            dockerfile: self.dockerfile.clone(),
            arguments: self.arguments.clone(),
            labels: self.labels.clone(),
            tags: self.tags.clone(),
            target: self.target.clone(),
            platform: self.platform.clone(),
            no_cache: self.no_cache,
            cache_from: self.cache_from.clone(),
            pull: self.pull,
            keep: self.keep,
            host: self.host.clone(),
            auth: self.auth.clone(),
        }
    }
}

fn asked(query: &Query, pairs: &[(String, String)], headers: &HeaderMap) -> ApiResult<Asked> {
    if query.text("version") == Some("2") || query.text("session").is_some() {
        return Err(ApiError::invalid(NO_BUILDKIT));
    }
    let no = |option: &str, value: &str, why: &str| {
        ApiError::unsupported(format!("{option} \"{value}\" is not supported: {why}"))
    };
    if let Some(remote) = query.text("remote") {
        return Err(no("remote", remote, "download the context and send it as the request's body"));
    }
    if query.flag("squash") {
        return Err(no("squash", "true", "build in stages and COPY --from the one before"));
    }
    if let Some(outputs) = query.text("outputs").filter(|text| *text != "[]") {
        return Err(no("outputs", outputs, "it needs BuildKit"));
    }
    if let Some(isolation) = query.text("isolation").filter(|text| *text != "default") {
        return Err(no("isolation", isolation, "every step has a kernel of its own"));
    }
    let tags = pairs.iter().filter(|(key, value)| key == "t" && !value.is_empty());
    let tags = tags.map(|(_, name)| tag(name)).collect::<ApiResult<Vec<_>>>()?;
    let arguments: Option<BTreeMap<String, Option<String>>> = parsed(query, "buildargs")?;
    let labels: Option<BTreeMap<String, String>> = parsed(query, "labels")?;
    let cache_from: Option<Vec<String>> = parsed(query, "cachefrom")?;
    Ok(Asked {
        dockerfile: query.text("dockerfile").unwrap_or("Dockerfile").to_owned(),
        arguments: arguments.unwrap_or_default(),
        labels: labels.unwrap_or_default(),
        tags,
        target: query.text("target").map(str::to_owned),
        platform: query.text("platform").map(str::to_owned),
        no_cache: query.flag("nocache"),
        cache_from: cache_from.unwrap_or_default(),
        pull: query.flag("pull"),
        keep: !query.flag_or("rm", true) && !query.flag("forcerm"),
        quiet: query.flag("q"),
        host: host(query)?,
        auth: credentials(headers)?,
    })
}

fn tag(name: &str) -> ApiResult<Reference> {
    let reference: Reference = name
        .parse()
        .map_err(|e| ApiError::invalid(format!("invalid reference format: `{name}`: {e}")))?;
    if reference.digest().is_some() {
        return Err(ApiError::invalid(format!(
            "refusing to create a tag with a digest reference: {name}"
        )));
    }
    Ok(reference.or_latest())
}

fn parsed<T: DeserializeOwned>(query: &Query, key: &str) -> ApiResult<Option<T>> {
    let parse = |text| {
        serde_json::from_str::<Option<T>>(text)
            .map_err(|e| ApiError::invalid(format!("invalid {key}: {e}")))
    };
    query.text(key).map(parse).transpose().map(Option::flatten)
}

/// Limits and network of `RUN`s, with the rules of `docker run`.
fn host(query: &Query) -> ApiResult<HostSpec> {
    let ulimits: Option<Vec<ResourcesUlimits>> = parsed(query, "ulimits")?;
    let extra_hosts = match query.text("extrahosts") {
        // A list, or one after the other with commas.
        Some(text) if text.starts_with('[') => parsed(query, "extrahosts")?,
        Some(text) => Some(text.split(',').map(str::to_owned).collect()),
        None => None,
    };
    let text = |key| query.text(key).map(str::to_owned);
    let config = HostConfig {
        memory: query.number("memory")?,
        memory_swap: query.number("memswap")?,
        cpu_shares: query.number("cpushares")?,
        cpu_period: query.number("cpuperiod")?,
        cpu_quota: query.number("cpuquota")?,
        cpuset_cpus: text("cpusetcpus"),
        cpuset_mems: text("cpusetmems"),
        cgroup_parent: text("cgroupparent"),
        shm_size: query.number("shmsize")?,
        network_mode: text("networkmode"),
        security_opt: parsed(query, "securityopt")?,
        ulimits,
        extra_hosts,
        ..HostConfig::default()
    };
    let body = ContainerCreateBody { host_config: Some(config), ..ContainerCreateBody::default() };
    let (request, _) = translate(&body, &Query::default())?;
    Ok(request.host)
}

/// `X-Registry-Config`: credentials of every registry the client knows.
fn credentials(headers: &HeaderMap) -> ApiResult<BTreeMap<String, Credentials>> {
    let Some(value) = headers.get("x-registry-config") else { return Ok(BTreeMap::new()) };
    let bad = || ApiError::invalid("invalid X-Registry-Config: not base64 of a JSON object");
    let bytes = value.as_bytes();
    let decoded = URL_SAFE.decode(bytes).or_else(|_| STANDARD.decode(bytes)).map_err(|_| bad())?;
    let all: Option<HashMap<String, Value>> =
        serde_json::from_slice(&decoded).map_err(|_| bad())?;
    let one = |(registry, auth): (String, Value)| {
        let auth = Credentials::from_header(&URL_SAFE.encode(auth.to_string())).map_err(|e| {
            ApiError::invalid(format!("X-Registry-Config of {registry}: {}", e.chain()))
        })?;
        Ok((registry, auth))
    };
    all.unwrap_or_default().into_iter().map(one).collect()
}

type Line = std::io::Result<Bytes>;

/// The answer's body.
struct Telling {
    receiver: mpsc::Receiver<Event>,
    task: Option<tokio::task::JoinHandle<Result<Image, BuildError>>>,
    /// What a quiet build would have said.
    quiet: Option<String>,
    /// Cancels the build when the client is gone.
    _guard: DropGuard,
}

impl Telling {
    async fn next(mut self) -> Option<(Line, Self)> {
        loop {
            let Some(event) = self.receiver.recv().await else {
                let done = self.task.take()?.await;
                let lines = self.last(done.unwrap_or(Err(BuildError::Cancelled)));
                return Some((Ok(lines), self));
            };
            let mut lines = String::new();
            self.tell(event, &mut lines);
            // One piece for all that is there already.
            while let Ok(event) = self.receiver.try_recv() {
                self.tell(event, &mut lines);
            }
            if !lines.is_empty() {
                return Some((Ok(Bytes::from(lines)), self));
            }
        }
    }

    fn tell(&mut self, event: Event, lines: &mut String) {
        match (event, &mut self.quiet) {
            (Event::Text(text), Some(kept)) => {
                kept.push_str(&text);
                if kept.len() > QUIET {
                    let from = kept.ceil_char_boundary(kept.len() - QUIET / 2);
                    kept.drain(..from);
                }
            }
            (Event::Text(text), None) => line(lines, &json!({ "stream": text })),
            (Event::Pull(..), Some(_)) => {}
            (Event::Pull(reference, event), None) => {
                for value in pull::shown(&reference, *event) {
                    line(lines, &value);
                }
            }
            (Event::Built(id), _) => line(lines, &json!({ "aux": { "ID": id.to_string() } })),
        }
    }

    fn last(&mut self, done: Result<Image, BuildError>) -> Bytes {
        let mut lines = String::new();
        match (done, self.quiet.take()) {
            (Ok(image), Some(_)) => {
                line(&mut lines, &json!({ "stream": format!("{}\n", image.id) }));
            }
            (Ok(_), None) => {}
            (Err(error), kept) => {
                if let Some(text) = kept.filter(|text| !text.is_empty()) {
                    line(&mut lines, &json!({ "stream": text }));
                }
                let mut value = progress::error_line(&error.chain());
                if let BuildError::Command { code, .. } = error {
                    value["errorDetail"]["code"] = json!(code);
                }
                line(&mut lines, &value);
            }
        }
        Bytes::from(lines)
    }
}

fn line(lines: &mut String, value: &Value) {
    lines.push_str(&value.to_string());
    lines.push_str("\r\n");
}

#[cfg(test)]
mod test {
    use super::*;
    use axum::extract::FromRequestParts as _;

    async fn asked_for(query: &str) -> ApiResult<Asked> {
        let request = axum::http::Request::get(format!("/build?{query}")).body(()).unwrap();
        let (mut parts, ()) = request.into_parts();
        let map = Query::from_request_parts(&mut parts, &()).await?;
        let pairs = Pairs::from_request_parts(&mut parts, &()).await.unwrap();
        asked(&map, &pairs.0, &parts.headers)
    }

    #[tokio::test]
    async fn what_docker_build_sends() {
        let asked = asked_for(
            "buildargs=%7B%22A%22%3A%221%22%2C%22B%22%3Anull%7D&cachefrom=%5B%5D&cgroupparent=&cpuperiod=0\
             &cpuquota=0&cpusetcpus=&cpusetmems=&cpushares=0&dockerfile=Dockerfile&labels=%7B%7D\
             &memory=67108864&memswap=0&networkmode=default&rm=1&shmsize=0&t=a&t=b%3A2&target=x\
             &ulimits=null&version=1",
        )
        .await
        .unwrap();
        let tags: Vec<String> = asked.tags.iter().map(Reference::familiar).collect();
        assert_eq!(tags, ["a:latest", "b:2"]);
        assert_eq!(asked.arguments["A"].as_deref(), Some("1"));
        assert_eq!(asked.arguments["B"], None);
        assert_eq!((asked.host.limits.memory_bytes, asked.keep), (64 << 20, false));
        assert_eq!(asked.target.as_deref(), Some("x"));
    }

    #[tokio::test]
    async fn refusals_name_what_is_refused() {
        for (query, words) in [
            ("version=2", "DOCKER_BUILDKIT=0"),
            ("remote=https%3A%2F%2Fx", "remote \"https://x\""),
            ("squash=1", "squash"),
            ("cpusetmems=0", "CpusetMems"),
            ("isolation=hyperv", "hyperv"),
            ("t=A", "`A`"),
            ("buildargs=%5B", "buildargs"),
        ] {
            let error = asked_for(query).await.err().unwrap();
            assert!(error.message.contains(words), "{query}: {}", error.message);
        }
    }
}
