//! `/hyper/v1/pods`: pods that containers join. Their containers are made by Docker's own route,
//! with the annotation `io.hyper.pod`.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use hyper_engine::{CreatePod, Engine, PodChange, PodView};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::services::PodService;
use crate::app::App;
use crate::error::ApiResult;
use crate::request::{Query, json};

/// What a pod is to be.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PodCreate {
    /// A name is made up when absent.
    name: Option<String>,
    /// Hostname of all its containers; the pod's name when absent.
    hostname: Option<String>,
    labels: BTreeMap<String, String>,
    /// `auto` or a hypervisor; the daemon's default when absent.
    runtime: Option<String>,
    /// Virtual CPUs of the guest.
    vcpus: Option<u32>,
    /// Memory of the guest in bytes, its kernel included.
    memory_bytes: Option<u64>,
    /// `net.*` settings of the guest.
    sysctls: BTreeMap<String, String>,
    /// A network's name or id, or `none`; the default network when absent.
    network: Option<String>,
    /// What it may reach: `none`, `public` or `all`, then `,allow=TARGET` and `,deny=TARGET`.
    egress: Option<String>,
    /// Bits per second that it may receive and send: `in=10m,out=5m`.
    network_rate: Option<String>,
    /// Addresses that only this pod sees.
    services: Vec<PodService>,
}

/// What of a pod is to change; what is absent stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PodUpdate {
    /// Added to those it has; null takes one away.
    labels: BTreeMap<String, Option<String>>,
    /// Virtual CPUs of the guest.
    vcpus: Option<u32>,
    /// Memory of the guest in bytes, its kernel included.
    memory_bytes: Option<u64>,
    /// What it may reach: `none`, `public` or `all`, then `,allow=TARGET` and `,deny=TARGET`.
    egress: Option<String>,
    /// Bits per second that it may receive and send: `in=10m,out=5m`; empty: no bounds.
    network_rate: Option<String>,
}

/// A pod that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PodCreated {
    id: String,
}

/// A pod and its containers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pod {
    id: String,
    name: String,
    /// `created`, `starting`, `running`, `paused` or `stopped`.
    status: &'static str,
    /// Why it stopped or did not start, when nobody asked for it.
    reason: String,
    hostname: String,
    labels: BTreeMap<String, String>,
    /// As asked for; empty: the daemon's default.
    runtime: String,
    vcpus: Option<u32>,
    memory_bytes: Option<u64>,
    network: String,
    /// What it may reach; absent: as its network says.
    egress: Option<String>,
    /// Bits per second that it may receive and send.
    network_rate: Option<String>,
    services: Vec<PodService>,
    /// Nanoseconds since the Unix epoch, as all times here.
    created_ns: i64,
    started_ns: Option<i64>,
    finished_ns: Option<i64>,
    /// Oldest first.
    containers: Vec<Member>,
    /// Guest, hypervisor and supervisor while it runs (only of one pod).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    report: Option<serde_json::Value>,
}

/// A container of a pod.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Member {
    id: String,
    name: String,
    image: String,
    /// Docker's word: `created`, `running`, `paused`, `exited`, …
    status: &'static str,
    exit_code: i32,
    /// It is run to its end before the others are started.
    init: bool,
}

/// `GET /hyper/v1/pods`
#[utoipa::path(get, path = "/hyper/v1/pods", tag = "pods",
    responses((status = 200, description = "all pods, newest first", body = [Pod])))]
pub(crate) async fn list(State(app): State<App>) -> Response {
    let pods = app.engine.pods();
    Json(pods.iter().map(|view| pod(&app.engine, view)).collect::<Vec<_>>()).into_response()
}

/// `POST /hyper/v1/pods`
#[utoipa::path(post, path = "/hyper/v1/pods", tag = "pods", request_body = PodCreate,
    responses((status = 201, description = "made; nothing runs yet", body = PodCreated),
        (status = 400, description = "a value that has to be changed"),
        (status = 409, description = "the name is in use")))]
pub(crate) async fn create(State(app): State<App>, request: Body) -> ApiResult {
    let wanted: PodCreate = json(request).await?;
    let id = app
        .engine
        .create_pod(CreatePod {
            name: wanted.name,
            hostname: wanted.hostname.unwrap_or_default(),
            labels: wanted.labels,
            runtime: wanted.runtime.unwrap_or_default(),
            vcpus: wanted.vcpus,
            memory_bytes: wanted.memory_bytes,
            sysctls: wanted.sysctls,
            network: wanted
                .network
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            egress: wanted.egress,
            network_rate: wanted.network_rate,
            services: wanted.services.iter().map(PodService::read).collect::<ApiResult<_>>()?,
        })
        .await?;
    Ok((StatusCode::CREATED, Json(PodCreated { id })).into_response())
}

/// `GET /hyper/v1/pods/{id}`: by id, the start of one, or name. For a container that has a pod to
/// itself, which is no object here, the report alone.
#[utoipa::path(get, path = "/hyper/v1/pods/{id}", tag = "pods",
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 200, description = "the pod", body = Pod),
        (status = 404, description = "no such pod")))]
pub(crate) async fn inspect(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    let Ok(view) = app.engine.pod(&id) else {
        return Ok(Json(app.engine.pod_report(&id).await?).into_response());
    };
    let mut pod = pod(&app.engine, &view);
    if view.state.status.is_up() {
        let report = app.engine.pod_report(&view.spec.id).await?;
        pod.report = Some(serde_json::json!(report));
    }
    Ok(Json(pod).into_response())
}

/// `POST /hyper/v1/pods/{id}/start`
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/start", tag = "pods",
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 204, description = "the guest and the containers run"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "an init container failed, or the pod is paused")))]
pub(crate) async fn start(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.start_pod(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /hyper/v1/pods/{id}/stop?t=SECONDS`
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/stop", tag = "pods",
    params(("id" = String, Path, description = "id, start of an id, or name"),
        ("t" = Option<i64>, Query, description = "grace of each container in seconds")),
    responses((status = 204, description = "stopped"),
        (status = 304, description = "it does not run"),
        (status = 404, description = "no such pod")))]
pub(crate) async fn stop(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    app.engine.stop_pod(&id, query.number("t")?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /hyper/v1/pods/{id}/kill?signal=NAME`
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/kill", tag = "pods",
    params(("id" = String, Path, description = "id, start of an id, or name"),
        ("signal" = Option<String>, Query, description = "name or number; SIGKILL")),
    responses((status = 204, description = "sent to every container that runs"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "no container runs in it")))]
pub(crate) async fn kill(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    app.engine.kill_pod(&id, query.text("signal")).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /hyper/v1/pods/{id}/pause`: all of the guest.
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/pause", tag = "pods",
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 204, description = "the guest stands still"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "it does not run")))]
pub(crate) async fn pause(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.pause_pod(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /hyper/v1/pods/{id}/unpause`
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/unpause", tag = "pods",
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 204, description = "it goes on"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "it is not paused")))]
pub(crate) async fn unpause(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    app.engine.unpause_pod(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /hyper/v1/pods/{id}/update`: beyond what it booted with a guest that runs grows in memory on `kvm`, and else not at all.
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/update", tag = "pods", request_body = PodUpdate,
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 204, description = "changed"),
        (status = 400, description = "a value that has to be changed"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "it runs, and would have to boot again, or to give away memory \
            that its containers hold"),
        (status = 501, description = "it runs, and cannot grow")))]
pub(crate) async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Body,
) -> ApiResult {
    let PodUpdate { labels, vcpus, memory_bytes, egress, network_rate } = json(request).await?;
    let change = PodChange { labels, vcpus, memory_bytes, egress, network_rate };
    app.engine.update_pod(&id, change).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /hyper/v1/pods/{id}?force=1`: with its containers.
#[utoipa::path(delete, path = "/hyper/v1/pods/{id}", tag = "pods",
    params(("id" = String, Path, description = "id, start of an id, or name"),
        ("force" = Option<bool>, Query, description = "even if it runs")),
    responses((status = 204, description = "gone, with its containers"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "it runs")))]
pub(crate) async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    app.engine.remove_pod(&id, query.flag("force")).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn pod(engine: &Engine, view: &PodView) -> Pod {
    let member = |view: hyper_engine::View| Member {
        id: view.spec.id.clone(),
        name: view.name.clone(),
        image: view.spec.image.clone(),
        status: view.state.status.word(),
        exit_code: view.state.exit_code,
        init: view.spec.host.pod_init,
    };
    let (spec, state) = (&view.spec, &view.state);
    Pod {
        id: spec.id.clone(),
        name: view.name.clone(),
        status: state.status.word(),
        reason: state.reason.clone(),
        hostname: spec.hostname.clone(),
        labels: spec.labels.clone(),
        runtime: spec.runtime.clone(),
        vcpus: spec.vcpus,
        memory_bytes: spec.memory_bytes,
        network: spec.network.clone(),
        egress: spec.egress.clone(),
        network_rate: spec.network_rate.clone(),
        services: spec.services.iter().map(PodService::of).collect(),
        created_ns: spec.created_ns,
        started_ns: state.started_ns,
        finished_ns: state.finished_ns,
        containers: engine.pod_containers(&spec.id).into_iter().map(member).collect(),
        report: None,
    }
}
