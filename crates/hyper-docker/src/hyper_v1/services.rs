//! `/hyper/v1/pods/{id}/services`: addresses that only one pod sees, with backends behind them. Of
//! a pod that runs they change at once.

use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use hyper_engine::ServiceChange;
use hyper_engine::networks::{Protocol, Service};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::{Query, json};

/// A service of a pod.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PodService {
    /// What the pod sends to: an address outside of its own network.
    ip: String,
    port: u16,
    /// `tcp` or `udp`; `tcp` when absent.
    protocol: String,
    /// Take connections in turn.
    backends: Vec<PodBackend>,
}

/// Where connections to a service go.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PodBackend {
    ip: String,
    port: u16,
}

impl PodService {
    pub(crate) fn of(service: &Service) -> Self {
        let backend = |at: &SocketAddr| PodBackend { ip: at.ip().to_string(), port: at.port() };
        Self {
            ip: service.ip.to_string(),
            port: service.port,
            protocol: service.protocol.word().to_owned(),
            backends: service.backends.iter().map(backend).collect(),
        }
    }

    /// # Errors
    /// A value that is no address or protocol, by name.
    pub(crate) fn read(&self) -> ApiResult<Service> {
        let backend = |one: &PodBackend| {
            Ok(SocketAddr::new(address("backend of a service", &one.ip)?, one.port))
        };
        Ok(Service {
            ip: address("service", &self.ip)?,
            port: self.port,
            protocol: protocol(&self.protocol)?,
            backends: self.backends.iter().map(backend).collect::<ApiResult<_>>()?,
        })
    }
}

fn address(what: &str, text: &str) -> ApiResult<IpAddr> {
    text.parse().map_err(|_| ApiError::invalid(format!("{what}: `{text}` is no IP address")))
}

fn protocol(text: &str) -> ApiResult<Protocol> {
    match text.to_ascii_lowercase().as_str() {
        "" | "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(ApiError::invalid(format!("service: protocol `{text}` is neither tcp nor udp"))),
    }
}

/// `GET /hyper/v1/pods/{id}/services`
#[utoipa::path(get, path = "/hyper/v1/pods/{id}/services", tag = "services",
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 200, description = "all of them", body = [PodService]),
        (status = 404, description = "no such pod")))]
pub(crate) async fn list(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    let pod = app.engine.pod(&id)?;
    Ok(Json(pod.spec.services.iter().map(PodService::of).collect::<Vec<_>>()).into_response())
}

/// `POST /hyper/v1/pods/{id}/services`: one more.
#[utoipa::path(post, path = "/hyper/v1/pods/{id}/services", tag = "services",
    request_body = PodService,
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 204, description = "it is there"),
        (status = 400, description = "a value that has to be changed"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "it has one of this address, port and protocol")))]
pub(crate) async fn add(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Body,
) -> ApiResult {
    let service: PodService = json(request).await?;
    change(&app, &id, ServiceChange::Add(service.read()?)).await
}

/// `PATCH /hyper/v1/pods/{id}/services`: other backends for one that is there.
#[utoipa::path(patch, path = "/hyper/v1/pods/{id}/services", tag = "services",
    request_body = PodService,
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 204, description = "new connections go to them"),
        (status = 400, description = "a value that has to be changed"),
        (status = 404, description = "no such pod, or it has no such service")))]
pub(crate) async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Body,
) -> ApiResult {
    let service: PodService = json(request).await?;
    change(&app, &id, ServiceChange::Replace(service.read()?)).await
}

/// `PUT /hyper/v1/pods/{id}/services`: these in place of all that are there.
#[utoipa::path(put, path = "/hyper/v1/pods/{id}/services", tag = "services",
    request_body = [PodService],
    params(("id" = String, Path, description = "id, start of an id, or name")),
    responses((status = 204, description = "it has these and no others"),
        (status = 400, description = "a value that has to be changed"),
        (status = 404, description = "no such pod"),
        (status = 409, description = "two are of one address, port and protocol")))]
pub(crate) async fn set(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Body,
) -> ApiResult {
    let services: Vec<PodService> = json(request).await?;
    let services = services.iter().map(PodService::read).collect::<ApiResult<_>>()?;
    change(&app, &id, ServiceChange::All(services)).await
}

/// `DELETE /hyper/v1/pods/{id}/services?ip=ADDRESS&port=PORT&protocol=tcp`
#[utoipa::path(delete, path = "/hyper/v1/pods/{id}/services", tag = "services",
    params(("id" = String, Path, description = "id, start of an id, or name"),
        ("ip" = String, Query, description = "address of the service"),
        ("port" = u16, Query, description = "its port"),
        ("protocol" = Option<String>, Query, description = "`tcp` or `udp`; `tcp` when absent")),
    responses((status = 204, description = "gone; connections that are open go on"),
        (status = 400, description = "a value that has to be changed"),
        (status = 404, description = "no such pod, or it has no such service")))]
pub(crate) async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let port = query.number("port")?.unwrap_or_default();
    let removed = ServiceChange::Remove {
        ip: address("service", query.text("ip").unwrap_or_default())?,
        port: u16::try_from(port)
            .map_err(|_| ApiError::invalid(format!("service: port {port} does not exist")))?,
        protocol: protocol(query.text("protocol").unwrap_or_default())?,
    };
    change(&app, &id, removed).await
}

async fn change(app: &App, id: &str, change: ServiceChange) -> ApiResult {
    app.engine.change_services(id, change).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
