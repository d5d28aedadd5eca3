//! What Docker has and this engine has not: honest empty lists, and refusals by name.

use axum::http::{Method, Uri};
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::json;

use crate::app::App;
use crate::error::ApiError;

pub(crate) fn router() -> Router<App> {
    let mut router = Router::new().route("/plugins", get(async || Json(json!([]))));
    for path in [
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
        "grpc" | "session" => crate::build::NO_BUILDKIT,
        "swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs" => {
            "this engine is no cluster"
        }
        "plugins" => "there are no plugins",
        _ => "not in this version",
    };
    ApiError::unsupported(format!("{method} {path} is not supported: {why}"))
}
