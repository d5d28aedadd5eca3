//! `POST /containers/{id}/attach`.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use hyper_engine::LogQuery;
use hyper_stdio::Wanted;
use hyper_stdio::attach::Frame;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::app::App;
use crate::detach::Detector;
use crate::error::{ApiError, ApiResult};
use crate::hijack::{self, Carried, Carry, Upgrade};
use crate::request::{Query, Version};

pub(crate) async fn attach(
    State(app): State<App>,
    Path(id): Path<String>,
    version: Version,
    Upgrade(upgrade): Upgrade,
    query: Query,
) -> ApiResult {
    let view = app.engine.container(&id)?;
    let host = &view.spec.host;
    let terminal = host.tty;
    let stream = query.flag("stream");
    let wanted = Wanted {
        stdin: stream && query.flag("stdin") && host.open_stdin && upgrade.is_some(),
        stdout: stream && query.flag("stdout"),
        stderr: stream && query.flag("stderr") && !terminal,
    };
    let detach = if terminal {
        let keys = query.text("detachKeys").unwrap_or_default();
        Some(Detector::new(keys).map_err(|why| {
            ApiError::invalid(format!("Invalid detach keys ({keys}) provided: {why}"))
        })?)
    } else {
        None
    };
    let past = query.flag("logs").then(|| LogQuery {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        ..LogQuery::default()
    });
    // Joined before anything is answered: what is written from here on is not missed.
    let attaching = if stream { Some(app.engine.attach(&id, wanted).await?) } else { None };
    let carry =
        Carry { terminal, stdin: wanted.stdin, close_stdin: host.stdin_once && !terminal, detach };
    let Some(upgrade) = upgrade else {
        let Some(attaching) = attaching else {
            return Err(ApiError::invalid("attach without stream needs an upgraded connection"));
        };
        let closing = app.closing.clone();
        let attached = closing.run_until_cancelled(attaching.streams()).await.flatten();
        let body = attached.map_or_else(axum::body::Body::empty, |it| hijack::body(it, terminal));
        let kind = [(header::CONTENT_TYPE, hijack::content_type(version, terminal))];
        return Ok((kind, body).into_response());
    };
    let (task, closing) = (app.clone(), app.closing.clone());
    app.tasks.spawn(async move {
        let work = async {
            let mut client = match hijack::upgraded(upgrade).await {
                Ok(client) => client,
                Err(error) => return tracing::debug!(%error, "attach"),
            };
            if let Some(query) = past {
                replay(&task, &view.spec.id, query, terminal, &mut client).await;
            }
            let Some(attached) = streams(attaching).await else {
                // No stream was wanted, or the container was not started.
                return hijack::close(client).await;
            };
            if hijack::carry(&mut client, attached, carry).await == Carried::Detached {
                task.engine.note(&view, "detach");
            }
            hijack::close(client).await;
        };
        closing.run_until_cancelled(work).await;
    });
    Ok(hijack::switching(version, terminal))
}

async fn streams(attaching: Option<hyper_engine::Attaching>) -> Option<hyper_engine::Attached> {
    attaching?.streams().await
}

/// The log so far.
async fn replay(
    app: &App,
    id: &str,
    query: LogQuery,
    terminal: bool,
    client: &mut (impl AsyncWrite + Unpin),
) {
    let work = async {
        let mut reader = app.engine.logs(id, query).await.map_err(|e| e.chain())?;
        while let Some(entry) = reader.next().await.map_err(|e| e.to_string())? {
            let data = Bytes::from(entry.data);
            let bytes = if terminal {
                data.to_vec()
            } else {
                hijack::framed(&Frame { stream: entry.stream.number(), data })
            };
            client.write_all(&bytes).await.map_err(|e| e.to_string())?;
        }
        Ok::<_, String>(())
    };
    if let Err(error) = work.await {
        tracing::debug!(error, container = id, "replay the log");
    }
}
