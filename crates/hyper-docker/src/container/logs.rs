//! `GET /containers/{id}/logs`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use hyper_engine::LogQuery;
use hyper_stdio::attach::Frame;
use hyper_stdio::{Entry, LogError};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::hijack::{content_type, framed};
use crate::request::{Query, Version};

/// Entries sent in one piece when they are at hand; each is at most 16 KiB.
const BATCH: usize = 64;

pub(crate) async fn logs(
    State(app): State<App>,
    Path(id): Path<String>,
    version: Version,
    query: Query,
) -> ApiResult {
    let view = app.engine.container(&id)?;
    let terminal = view.spec.host.tty;
    let wanted = LogQuery {
        since: query.time("since")?,
        until: query.time("until")?,
        tail: match query.text("tail") {
            None | Some("all") => None,
            // Docker takes anything that is no number for all.
            Some(text) => text.parse().ok(),
        },
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        follow: query.flag("follow"),
    };
    if !wanted.stdout && !wanted.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let reader = app.engine.logs(&view.spec.id, wanted).await?;
    let form = Form { terminal, timestamps: query.flag("timestamps") };
    let stream = Box::pin(reader.into_stream())
        .ready_chunks(BATCH)
        .take_until(app.closing.clone().cancelled_owned())
        .map(move |entries| {
            let mut bytes = Vec::new();
            for entry in entries {
                form.encode(entry?, &mut bytes);
            }
            Ok(Bytes::from(bytes))
        })
        .inspect_err(|error: &LogError| tracing::warn!(%error, "read the log"));
    let kind = [(header::CONTENT_TYPE, content_type(version, terminal))];
    Ok((kind, Body::from_stream(stream)).into_response())
}

/// How entries are shown.
#[derive(Clone, Copy)]
struct Form {
    terminal: bool,
    timestamps: bool,
}

impl Form {
    fn encode(self, entry: Entry, batch: &mut Vec<u8>) {
        let Entry { stream, unix_ns, data } = entry;
        let data = if self.timestamps {
            let mut text = hyper_stdio::rfc3339_fixed(unix_ns).into_bytes();
            text.push(b' ');
            text.extend_from_slice(&data);
            text
        } else {
            data
        };
        if self.terminal {
            batch.extend_from_slice(&data);
        } else {
            batch.extend_from_slice(&framed(&Frame { stream: stream.number(), data: data.into() }));
        }
    }
}
