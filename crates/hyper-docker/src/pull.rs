//! `POST /images/create` and `/images/load`: progress as a stream of JSON lines.
//!
//! Nothing is sent before the registry knows the image, so an unknown one is an ordinary error.
//! Afterwards errors are lines: `{"errorDetail":{"message":…},"error":…}`. A client that goes away
//! ends its pull.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use hyper_engine::Error;
use hyper_image::{Auth, Digest, Event, Image, LayerState, Progress, Reference};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::Query;

pub(crate) async fn create(State(app): State<App>, query: Query, headers: HeaderMap) -> ApiResult {
    if query.text("fromSrc").is_some() {
        return Err(ApiError::unsupported(
            "importing a root file system is not supported in this version: load an image instead",
        ));
    }
    let reference = reference(&query)?;
    let auth = match headers.get("x-registry-auth") {
        None => Auth::default(),
        Some(value) => {
            let text = value.to_str().map_err(|_| ApiError::invalid("invalid X-Registry-Auth"))?;
            Auth::from_header(text).map_err(|e| ApiError::invalid(e.chain()))?
        }
    };
    let platform = query.text("platform").map(str::to_owned);
    let (progress, mut events) = Progress::channel();
    let engine = app.engine.clone();
    let pulled = reference.clone();
    let mut pulling =
        Box::pin(async move { engine.pull(&pulled, platform.as_deref(), &auth, progress).await });
    // Until the manifest is known, a failure is an ordinary error.
    let mut first = Vec::new();
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => {
                    let resolved = !matches!(event, Event::Resolving { .. });
                    first.push(event);
                    if resolved {
                        break;
                    }
                }
                None => break,
            },
            result = &mut pulling => {
                let image = result?;
                while let Ok(event) = events.try_recv() {
                    first.push(event);
                }
                let lines = lines(&reference, first, Some(&Ok(image)));
                return Ok(answer(futures_util::stream::iter([Ok(lines)])));
            }
        }
    }
    let state = Pulling { reference, first, events, pulling: Some(pulling) };
    Ok(answer(futures_util::stream::unfold(state, Pulling::next)))
}

struct Pulling<F> {
    reference: Reference,
    first: Vec<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    pulling: Option<F>,
}

type Line = std::io::Result<Bytes>;

impl<F: Future<Output = Result<Image, Error>> + Unpin> Pulling<F> {
    async fn next(mut self) -> Option<(Line, Self)> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            return Some((Ok(lines(&self.reference, first, None)), self));
        }
        let pulling = self.pulling.as_mut()?;
        let (events, result) = tokio::select! {
            biased;
            Some(event) = self.events.recv() => (vec![event], None),
            result = pulling => (Vec::new(), Some(result)),
        };
        let mut events = events;
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        if result.is_some() {
            self.pulling = None;
        }
        let bytes = lines(&self.reference, events, result.as_ref());
        Some((Ok(bytes), self))
    }
}

fn reference(query: &Query) -> ApiResult<Reference> {
    let image = query.text("fromImage").ok_or_else(|| ApiError::invalid("fromImage is missing"))?;
    let text = match query.text("tag") {
        Some(digest) if digest.contains(':') => format!("{image}@{digest}"),
        Some(tag) => format!("{image}:{tag}"),
        None => image.to_owned(),
    };
    let reference: Reference = text
        .parse()
        .map_err(|e| ApiError::invalid(format!("invalid reference format `{text}`: {e}")))?;
    Ok(reference.or_latest())
}

fn answer(stream: impl Stream<Item = Line> + Send + 'static) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, Body::from_stream(stream)).into_response()
}

fn lines(
    reference: &Reference,
    events: Vec<Event>,
    result: Option<&Result<Image, Error>>,
) -> Bytes {
    let mut text = String::new();
    let mut line = |value: Value| {
        text.push_str(&value.to_string());
        text.push_str("\r\n");
    };
    for event in events {
        for value in shown(reference, event) {
            line(value);
        }
    }
    if let Some(Err(error)) = result {
        line(error_line(&error.chain()));
    }
    Bytes::from(text)
}

fn error_line(message: &str) -> Value {
    json!({ "errorDetail": { "message": message }, "error": message })
}

/// An event as the docker CLI shows it.
fn shown(reference: &Reference, event: Event) -> Vec<Value> {
    match event {
        Event::Resolved { reference, layers, .. } => {
            let tag = reference.digest().map_or_else(
                || reference.tag().unwrap_or("latest").to_owned(),
                |digest| digest.to_string(),
            );
            let name = reference.repository();
            let mut all = vec![json!({ "status": format!("Pulling from {name}"), "id": tag })];
            all.extend(layers.iter().map(|layer| status(layer, "Pulling fs layer")));
            all
        }
        Event::Layer { digest, state } => layer(&digest, &state),
        Event::Done { digest, up_to_date, .. } => {
            let what = if up_to_date { "Image is up to date" } else { "Downloaded newer image" };
            let name = reference.familiar();
            vec![
                json!({ "status": format!("Digest: {digest}") }),
                json!({ "status": format!("Status: {what} for {name}") }),
            ]
        }
        _ => Vec::new(),
    }
}

fn layer(digest: &Digest, state: &LayerState) -> Vec<Value> {
    let progress = |word: &str, current: u64, total: u64| {
        let mut line = status(digest, word);
        line["progressDetail"] = json!({ "current": current, "total": total });
        line
    };
    let word = match state {
        LayerState::Waiting => "Waiting",
        LayerState::Exists => "Already exists",
        LayerState::Verifying => "Verifying Checksum",
        LayerState::Complete => "Pull complete",
        LayerState::Downloading { current, total } => {
            return vec![progress("Downloading", *current, *total)];
        }
        LayerState::Extracting { current, total } => {
            return vec![progress("Extracting", *current, *total)];
        }
        LayerState::Retrying { after, reason } => {
            let word = format!("Retrying in {} seconds: {reason}", after.as_secs().max(1));
            return vec![status(digest, &word)];
        }
        _ => return Vec::new(),
    };
    vec![status(digest, word)]
}

fn status(digest: &Digest, word: &str) -> Value {
    json!({ "status": word, "progressDetail": {}, "id": digest.short() })
}

pub(crate) async fn load(State(app): State<App>, body: Body) -> ApiResult {
    let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let loaded = app.engine.load(Box::pin(reader), Progress::none()).await?;
    let mut text = String::new();
    for one in loaded {
        let lines = if one.names.is_empty() {
            vec![format!("Loaded image ID: {}", one.image.id)]
        } else {
            one.names.iter().map(|name| format!("Loaded image: {name}")).collect()
        };
        for line in lines {
            text.push_str(&json!({ "stream": format!("{line}\n") }).to_string());
            text.push_str("\r\n");
        }
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}
