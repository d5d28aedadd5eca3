//! What Docker has and this engine has not: honest empty lists, and refusals by name.

use axum::extract::{Path, State};
use axum::http::{Method, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::Query;

pub(crate) fn router() -> Router<App> {
    let mut router = Router::new()
        .route("/networks", get(networks))
        .route("/networks/prune", post(prune_networks))
        .route("/networks/{id}", get(network).delete(unsupported))
        .route("/plugins", get(async || Json(json!([]))))
        .route("/build/prune", post(prune_builds));
    for path in [
        "/networks/create",
        "/networks/{id}/connect",
        "/networks/{id}/disconnect",
        "/grpc",
        "/session",
        "/containers/{id}/attach/ws",
        "/containers/{id}/checkpoints",
        "/distribution/{*rest}",
        "/plugins/{*rest}",
        "/swarm",
        "/swarm/{*rest}",
        "/nodes",
        "/nodes/{*rest}",
        "/services",
        "/services/{*rest}",
        "/tasks",
        "/tasks/{*rest}",
        "/secrets",
        "/secrets/{*rest}",
        "/configs",
        "/configs/{*rest}",
    ] {
        router = router.route(path, any(unsupported));
    }
    router
}

async fn unsupported(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let why = match path.split('/').nth(1).unwrap_or_default() {
        "networks" => "containers have a loopback interface only in this version",
        "grpc" | "session" => crate::build::NO_BUILDKIT,
        "swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs" => {
            "this engine is no cluster"
        }
        "plugins" => "there are no plugins",
        _ => "not in this version",
    };
    ApiError::unsupported(format!("{method} {path} is not supported: {why}"))
}

/// The one network there is: loopback.
fn none() -> Value {
    json!({
        "Name": "none",
        "Id": "0".repeat(64),
        "Created": "1970-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": "null",
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": null, "Config": null },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": {},
        "Labels": {},
    })
}

async fn networks(query: Query) -> ApiResult {
    let filters = query.filters(&["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let shown = filters.any("name", |name| "none".contains(name.as_str()))
        && filters.any("driver", |driver| driver == "null")
        && filters.any("id", |id| "0".repeat(64).starts_with(id.as_str()))
        && filters.any("scope", |scope| scope == "local")
        && filters.any("type", |kind| kind == "builtin")
        && !filters.has("label");
    Ok(Json(if shown { vec![none()] } else { Vec::new() }).into_response())
}

async fn network(State(_): State<App>, Path(id): Path<String>) -> ApiResult {
    if id == "none" || (!id.is_empty() && "0".repeat(64).starts_with(&id)) {
        return Ok(Json(none()).into_response());
    }
    Err(ApiError::not_found(format!("network {id} not found")))
}

async fn prune_networks() -> Response {
    Json(json!({ "NetworksDeleted": null })).into_response()
}

async fn prune_builds() -> Response {
    Json(json!({ "CachesDeleted": null, "SpaceReclaimed": 0 })).into_response()
}
