//! Long work as a stream of JSON lines.
//!
//! Nothing is sent before the work has begun in earnest, so that what is wrong from the start is an ordinary error.
//! Afterwards errors are lines: `{"errorDetail":{"message":…},"error":…}`. A client that goes away ends its work.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::Stream;
use hyper_engine::Error;
use hyper_image::Event;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::error::ApiResult;

type Line = std::io::Result<Bytes>;

/// What there is to show.
pub(crate) enum Step<'a, T> {
    Event(Event),
    Done(&'a T),
}

/// Answers with the progress of `work`; `begun` says which event is the first that a client is told.
pub(crate) async fn respond<T, F, S>(
    mut events: mpsc::UnboundedReceiver<Event>,
    work: F,
    begun: impl Fn(&Event) -> bool,
    mut show: S,
) -> ApiResult
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
    S: FnMut(Step<'_, T>) -> Vec<Value> + Send + 'static,
{
    let mut work = Box::pin(work);
    let mut first = Vec::new();
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => {
                    let last = begun(&event);
                    first.push(event);
                    if last {
                        break;
                    }
                }
                None => break,
            },
            result = &mut work => {
                let value = result?;
                while let Ok(event) = events.try_recv() {
                    first.push(event);
                }
                let bytes = lines(&mut show, first, Some(&Ok(value)));
                return Ok(answer(futures_util::stream::iter([Ok(bytes)])));
            }
        }
    }
    let running = Running { first, events, work: Some(work), show };
    Ok(answer(futures_util::stream::unfold(running, Running::next)))
}

/// A line that tells of a failure.
pub(crate) fn error_line(message: &str) -> Value {
    json!({ "errorDetail": { "message": message }, "error": message })
}

struct Running<F, S> {
    first: Vec<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    work: Option<F>,
    show: S,
}

impl<T, F, S> Running<F, S>
where
    F: Future<Output = Result<T, Error>> + Unpin,
    S: FnMut(Step<'_, T>) -> Vec<Value>,
{
    async fn next(mut self) -> Option<(Line, Self)> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            let bytes = lines(&mut self.show, first, None);
            return Some((Ok(bytes), self));
        }
        let work = self.work.as_mut()?;
        let (mut events, result) = tokio::select! {
            biased;
            Some(event) = self.events.recv() => (vec![event], None),
            result = work => (Vec::new(), Some(result)),
        };
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        if result.is_some() {
            self.work = None;
        }
        let bytes = lines(&mut self.show, events, result.as_ref());
        Some((Ok(bytes), self))
    }
}

fn answer(stream: impl Stream<Item = Line> + Send + 'static) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, Body::from_stream(stream)).into_response()
}

fn lines<T>(
    show: &mut impl FnMut(Step<'_, T>) -> Vec<Value>,
    events: Vec<Event>,
    result: Option<&Result<T, Error>>,
) -> Bytes {
    let mut all: Vec<Value> =
        events.into_iter().flat_map(|event| show(Step::Event(event))).collect();
    match result {
        Some(Ok(value)) => all.extend(show(Step::Done(value))),
        Some(Err(error)) => all.push(error_line(&error.chain())),
        None => {}
    }
    let mut text = String::new();
    for value in all {
        text.push_str(&value.to_string());
        text.push_str("\r\n");
    }
    Bytes::from(text)
}
