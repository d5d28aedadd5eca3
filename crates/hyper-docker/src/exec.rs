//! Execs: `POST /containers/{id}/exec`, `/exec/{id}/…`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use bollard_stubs::models::{ExecConfig, ExecStartConfig};
use hyper_engine::ExecSpec;
use serde_json::json;

use crate::app::App;
use crate::container::create::console_size;
use crate::container::lifecycle::size;
use crate::detach::Detector;
use crate::error::{ApiError, ApiResult};
use crate::hijack::{self, Carried, Carry, Upgrade};
use crate::request::{self, Query, Version};

/// An exec that has closed its output may still run.
const EXIT_AFTER_OUTPUT: Duration = Duration::from_secs(2);

pub(crate) async fn create(
    State(app): State<App>,
    Path(id): Path<String>,
    body: Body,
) -> ApiResult {
    let config: ExecConfig = request::json(body).await?;
    let flag = |value: Option<bool>| value.unwrap_or_default();
    let spec = ExecSpec {
        args: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        tty: flag(config.tty),
        privileged: flag(config.privileged),
        in_guest: false,
        attach_stdin: flag(config.attach_stdin),
        attach_stdout: flag(config.attach_stdout),
        attach_stderr: flag(config.attach_stderr),
        console_size: console_size(config.console_size.as_deref()),
    };
    let exec = app.engine.exec_create(&id, spec)?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": exec.id }))).into_response())
}

pub(crate) async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    version: Version,
    Upgrade(upgrade): Upgrade,
    query: Query,
    body: Body,
) -> ApiResult {
    let config: ExecStartConfig = request::json_or_none(body).await?.unwrap_or_default();
    let exec = app.engine.exec(&id)?;
    let detached = config.detach.unwrap_or_default();
    let terminal = exec.spec.tty;
    let detach = if terminal {
        let keys = query.text("detachKeys").unwrap_or_default();
        Some(Detector::new(keys).map_err(|why| {
            ApiError::invalid(format!("Invalid detach keys ({keys}) provided: {why}"))
        })?)
    } else {
        None
    };
    let started = app.engine.exec_start(&exec, detached).await;
    if detached {
        started?;
        return Ok(StatusCode::OK.into_response());
    }
    let Some(upgrade) = upgrade else {
        let body = started?.map_or_else(Body::empty, |attached| hijack::body(attached, terminal));
        let kind = [(header::CONTENT_TYPE, hijack::content_type(version, terminal))];
        return Ok((kind, body).into_response());
    };
    let attached = match started {
        Ok(attached) => Ok(attached),
        // As Docker: clients read the reason from the stream, and the code from `inspect`.
        Err(hyper_engine::Error::Program { message, .. }) => {
            let why = message.split_once("`: ").map_or(message.as_str(), |(_, why)| why);
            Err(format!("OCI runtime exec failed: unable to start container process: {why}"))
        }
        Err(error) => return Err(error.into()),
    };
    let carry = Carry { terminal, stdin: exec.spec.attach_stdin, close_stdin: !terminal, detach };
    let closing = app.closing.clone();
    app.tasks.spawn(async move {
        let work = async {
            match (hijack::upgraded(upgrade).await, attached) {
                (Ok(mut client), Ok(Some(attached))) => {
                    if hijack::carry(&mut client, attached, carry).await == Carried::Over {
                        // Clients ask for the exit code as soon as the stream ends.
                        let _ = tokio::time::timeout(EXIT_AFTER_OUTPUT, exec.ended()).await;
                    }
                    hijack::close(client).await;
                }
                (Ok(mut client), Err(text)) => hijack::tell(&mut client, terminal, &text).await,
                (Ok(_), Ok(None)) => {}
                (Err(error), _) => tracing::debug!(%error, "exec"),
            }
        };
        closing.run_until_cancelled(work).await;
    });
    Ok(hijack::switching(version, terminal))
}

pub(crate) async fn resize(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let (rows, columns) = size(&query)?;
    let exec = app.engine.exec(&id)?;
    app.engine.exec_resize(&exec, rows, columns).await?;
    Ok(StatusCode::OK.into_response())
}

pub(crate) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    let exec = app.engine.exec(&id)?;
    let state = exec.state();
    let spec = &exec.spec;
    let (entrypoint, arguments) = match spec.args.split_first() {
        Some((first, rest)) => (first.as_str(), rest),
        None => ("", &[][..]),
    };
    let answer = json!({
        "ID": exec.id,
        "Running": state.running,
        "ExitCode": state.exit_code,
        "ProcessConfig": {
            "tty": spec.tty,
            "entrypoint": entrypoint,
            "arguments": arguments,
            "privileged": spec.privileged,
            "user": spec.user,
        },
        "OpenStdin": spec.attach_stdin,
        "OpenStderr": spec.attach_stderr,
        "OpenStdout": spec.attach_stdout,
        "CanRemove": !state.running,
        "ContainerID": exec.container,
        "DetachKeys": "",
        "Pid": state.pid,
    });
    Ok(Json(answer).into_response())
}
