//! `GET /events`: past ones, then those that happen, as JSON lines.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use hyper_engine::Event;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::error::ApiResult;
use crate::request::{Filters, Query};

const FILTERS: [&str; 16] = [
    "builder",
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "label!",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

pub(crate) async fn stream(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&FILTERS)?;
    let (since, until) = (query.time("since")?, query.time("until")?);
    let (past, live) = app.engine.events(since);
    let first = past
        .into_iter()
        .filter(|event| until.is_none_or(|until| event.unix_ns <= until))
        .filter(|event| wanted(&filters, event))
        .collect();
    let left = until.map(|until| {
        let left = until.saturating_sub(hyper_stdio::now_ns()).max(0);
        Box::pin(tokio::time::sleep(Duration::from_nanos(left.unsigned_abs())))
    });
    let feed = Feed { first, filters, live, left, closing: app.closing.clone() };
    let stream = futures_util::stream::unfold(feed, Feed::next);
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response())
}

struct Feed {
    /// Each is a piece of its own: some clients take a piece for an event.
    first: VecDeque<Event>,
    filters: Filters,
    live: Receiver<Event>,
    left: Option<Pin<Box<tokio::time::Sleep>>>,
    closing: CancellationToken,
}

impl Feed {
    /// The next line; `None` at the end of the time asked for, or of hyperd.
    async fn next(mut self) -> Option<(std::io::Result<Bytes>, Self)> {
        if let Some(event) = self.first.pop_front() {
            return Some((Ok(Bytes::from(line(&event))), self));
        }
        loop {
            let over = async {
                match &mut self.left {
                    Some(left) => left.await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.live.recv() => event,
                () = over => return None,
                () = self.closing.cancelled() => return None,
            };
            match event {
                Ok(event) if wanted(&self.filters, &event) => {
                    return Some((Ok(Bytes::from(line(&event))), self));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a client reads events too slowly");
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

fn wanted(filters: &Filters, event: &Event) -> bool {
    let name = || event.attributes.get("name").map(String::as_str).unwrap_or_default();
    let is = |kind: &str| event.kind.word() == kind;
    let bare = event.action.split(':').next().unwrap_or_default();
    filters.any("type", |kind| is(kind))
        && filters.any("event", |action| *action == event.action || action == bare)
        && filters.any("container", |container| {
            is("container") && (event.actor.starts_with(container.as_str()) || name() == container)
        })
        && filters.any("image", |image| {
            let of = event.attributes.get("image").map_or(event.actor.as_str(), String::as_str);
            of == image || of.split(':').next() == Some(image) || name() == image
        })
        && filters.any("network", |network| {
            is("network") && (event.actor.starts_with(network.as_str()) || name() == network)
        })
        && filters.any("volume", |volume| is("volume") && event.actor == *volume)
        && filters.any("scope", |scope| scope == "local")
        && filters.labels(&event.attributes)
        && ["builder", "config", "node", "plugin", "secret", "service"]
            .iter()
            .all(|kind| !filters.has(kind))
}

fn line(event: &Event) -> String {
    let mut line = json!({
        "Type": event.kind.word(),
        "Action": event.action,
        "Actor": { "ID": event.actor, "Attributes": event.attributes },
        "scope": "local",
        "time": event.unix_ns / 1_000_000_000,
        "timeNano": event.unix_ns,
    });
    if event.kind.word() == "container" {
        // For clients older than API 1.22.
        line["status"] = json!(event.action);
        line["id"] = json!(event.actor);
        line["from"] = json!(event.attributes.get("image"));
    }
    format!("{line}\n")
}
