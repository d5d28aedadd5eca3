//! `/hyper/v1/pods/{id}/exec`: a process of the guest itself, outside of its containers. What it
//! says and how it ends is had by Docker's routes for execs.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use hyper_engine::ExecSpec;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiResult;
use crate::request::json;

/// A process to be run in the guest.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GuestExec {
    /// Whose root file system it sees, and has its program from: one of the pod's; its first that
    /// runs when absent.
    container: Option<String>,
    /// The program and its arguments.
    command: Vec<String>,
    /// `NAME=VALUE`, added to the container's.
    environment: Vec<String>,
    /// `user[:group]` of the container's image; root when absent.
    user: Option<String>,
    /// `/` when absent.
    working_directory: Option<String>,
    terminal: bool,
    /// Rows and columns.
    #[schema(value_type = Option<Vec<u16>>)]
    terminal_size: Option<(u16, u16)>,
    /// Its input comes from the client.
    stdin: bool,
    /// Its output goes to the client.
    output: bool,
}

/// An exec to be started by Docker's `POST /exec/{id}/start`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GuestExecCreated {
    #[serde(rename = "Id")]
    id: String,
}

/// `POST /hyper/v1/pods/{id}/exec`
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/exec", tag = "pods", request_body = GuestExec,
    params(("id" = String, Path, description = "a pod, or a container that has one to itself")),
    responses((status = 201, description = "made, not yet running: see Docker's `/exec/{id}/…`",
            body = GuestExecCreated),
        (status = 400, description = "a value that has to be changed, or a runtime without guest"),
        (status = 404, description = "no such pod, or it has no such container"),
        (status = 409, description = "no container runs in it")))]
pub(crate) async fn create(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Body,
) -> ApiResult {
    let wanted: GuestExec = json(request).await?;
    let spec = ExecSpec {
        args: wanted.command,
        env: wanted.environment,
        user: wanted.user.unwrap_or_default(),
        working_dir: wanted.working_directory.unwrap_or_default(),
        tty: wanted.terminal,
        privileged: false,
        in_guest: true,
        attach_stdin: wanted.stdin,
        attach_stdout: wanted.output,
        attach_stderr: wanted.output,
        console_size: wanted.terminal_size.unwrap_or_default(),
    };
    let exec = app.engine.exec_in_guest(&id, wanted.container.as_deref(), spec)?;
    Ok((StatusCode::CREATED, Json(GuestExecCreated { id: exec.id.clone() })).into_response())
}
