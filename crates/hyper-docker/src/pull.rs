//! `POST /images/create` and `/images/load`: progress as a stream of JSON lines.
//!
//! Nothing is sent before the registry knows the image, so an unknown one is an ordinary error.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse as _;
use hyper_image::{Credentials, Digest, Event, Image, LayerState, Progress, Reference};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::import::import;
use crate::progress::{Step, respond};
use crate::request::Query;
use crate::upload::with_body;

pub(crate) async fn create(
    State(app): State<App>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    if let Some(source) = query.text("fromSrc") {
        return import(&app, source, &query, body).await;
    }
    let reference = reference(&query)?;
    let auth = auth(&headers)?;
    let platform = query.text("platform").map(str::to_owned);
    let (progress, events) = Progress::channel();
    let (engine, pulled) = (app.engine.clone(), reference.clone());
    let work = async move { engine.pull(&pulled, platform.as_deref(), &auth, progress).await };
    // Until the manifest is known, a failure is an ordinary error.
    let begun = |event: &Event| !matches!(event, Event::Resolving { .. } | Event::Warning { .. });
    respond(events, work, begun, move |step: Step<'_, Image>| match step {
        Step::Event(event) => shown(&reference, event),
        Step::Done(_) => Vec::new(),
    })
    .await
}

/// Credentials of the request.
pub(crate) fn auth(headers: &HeaderMap) -> ApiResult<Credentials> {
    let Some(value) = headers.get("x-registry-auth") else { return Ok(Credentials::default()) };
    let text = value.to_str().map_err(|_| ApiError::invalid("invalid X-Registry-Credentials"))?;
    Credentials::from_header(text).map_err(|e| ApiError::invalid(e.chain()))
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

/// An event as the docker CLI shows it.
pub(crate) fn shown(reference: &Reference, event: Event) -> Vec<Value> {
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
        Event::Warning { text } => vec![json!({ "status": format!("WARNING: {text}") })],
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

pub(crate) fn status(digest: &Digest, word: &str) -> Value {
    json!({ "status": word, "progressDetail": {}, "id": digest.short() })
}

pub(crate) async fn load(State(app): State<App>, body: Body) -> ApiResult {
    let loaded = with_body(body, |reader| app.engine.load(reader, Progress::none())).await?;
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
