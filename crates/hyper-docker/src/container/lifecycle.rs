//! Start, stop, wait, remove and the like.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use bollard_stubs::models::ContainerUpdateBody;
use bytes::Bytes;
use hyper_engine::{ContainerChange, Error, Status, WaitCondition};
use serde_json::json;

use super::{list, policy};
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::{self, Query};

pub(crate) async fn start(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.start(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn stop(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    app.engine.stop(&id, query.text("signal"), query.number("t")?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn restart(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    app.engine.restart(&id, query.text("signal"), query.number("t")?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn kill(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    app.engine.kill(&id, query.text("signal")).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn pause(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.pause(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn unpause(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.unpause(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn rename(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let name = query
        .text("name")
        .ok_or_else(|| ApiError::invalid("Neither old nor new names may be empty"))?;
    app.engine.rename(&id, name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn resize(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let (rows, columns) = size(&query)?;
    app.engine.resize(&id, rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}

/// Rows and columns of a terminal.
pub(crate) fn size(query: &Query) -> ApiResult<(u16, u16)> {
    let number = |key: &str| {
        query
            .number(key)?
            .and_then(|number| u16::try_from(number).ok())
            .ok_or_else(|| ApiError::invalid(format!("invalid {key}: 0 to 65535 is wanted")))
    };
    Ok((number("h")?, number("w")?))
}

pub(crate) async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    if query.flag("link") {
        return Err(ApiError::unsupported("links between containers are not supported"));
    }
    let force = query.flag("force");
    if query.flag("v") {
        app.engine.remove_with_volumes(&id, force).await?;
    } else {
        app.engine.remove(&id, force).await?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The header goes out at once: `docker run` waits for it before it starts the container.
pub(crate) async fn wait(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let condition = match query.text("condition") {
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => {
            return Err(ApiError::invalid(format!("invalid condition: \"{other}\"")));
        }
    };
    let waiting = app.engine.wait(&id, condition)?;
    let closing = app.closing.clone();
    let body = futures_util::stream::once(async move {
        let outcome = closing
            .run_until_cancelled(waiting)
            .await
            .ok_or_else(|| std::io::Error::other("hyperd is ending"))?;
        let mut answer = json!({ "StatusCode": outcome.exit_code });
        if !outcome.error.is_empty() {
            answer["Error"] = json!({ "Message": outcome.error });
        }
        Ok::<_, std::io::Error>(Bytes::from(format!("{answer}\n")))
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response())
}

pub(crate) async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    body: Body,
) -> ApiResult {
    let body: ContainerUpdateBody = request::json(body).await?;
    let view = app.engine.container(&id)?;
    let before = &view.spec.host.limits;
    let mut limits = before.clone();
    for (limit, value) in [
        (&mut limits.memory_bytes, body.memory),
        (&mut limits.memory_reservation_bytes, body.memory_reservation),
        (&mut limits.memory_swap_bytes, body.memory_swap),
        (&mut limits.nano_cpus, body.nano_cpus),
        (&mut limits.cpu_shares, body.cpu_shares),
        (&mut limits.cpu_period_us, body.cpu_period),
        (&mut limits.cpu_quota_us, body.cpu_quota),
        (&mut limits.pids, body.pids_limit),
    ] {
        // Clients send 0 for what they do not change.
        if let Some(value) = value.filter(|value| *value != 0) {
            *limit = value;
        }
    }
    if let Some(cpus) = body.cpuset_cpus.filter(|cpus| !cpus.is_empty()) {
        limits.cpuset_cpus = cpus;
    }
    let change = ContainerChange {
        limits: (limits != *before).then_some(limits),
        restart: policy::restart(body.restart_policy.as_ref())?,
    };
    app.engine.update(&id, change).await?;
    Ok(Json(json!({ "Warnings": [] })).into_response())
}

pub(crate) async fn prune(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&["label", "label!", "until"])?;
    let until = match filters.values("until") {
        [] => None,
        [text] => Some(
            request::time(text)
                .or_else(|| ago(text))
                .ok_or_else(|| ApiError::invalid(format!("invalid filter 'until={text}'")))?,
        ),
        _ => return Err(ApiError::invalid("invalid filter 'until': several values")),
    };
    let mut views = app.engine.containers();
    views.retain(|view| !(view.state.status.is_up() || view.state.status == Status::Restarting));
    views.retain(|view| until.is_none_or(|until| view.spec.created_ns < until));
    let views = list::filter(&app, views, &filters)?;
    let (mut deleted, mut bytes) = (Vec::new(), 0);
    for view in views {
        let id = &view.spec.id;
        let size = app.engine.container_bytes(id).await.unwrap_or(0);
        match app.engine.remove(id, false).await {
            Ok(()) => {
                deleted.push(id.clone());
                bytes += size;
            }
            // Started or removed meanwhile: not ours to prune.
            Err(Error::Conflict(_) | Error::NoSuchContainer(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(json!({ "ContainersDeleted": deleted, "SpaceReclaimed": bytes })).into_response())
}

/// `10m`, `2h30m`: so long before now.
fn ago(text: &str) -> Option<i64> {
    let (mut total, mut number) = (0_i64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    if !number.is_empty() {
        return None;
    }
    hyper_stdio::now_ns().checked_sub(total.checked_mul(1_000_000_000)?)
}
