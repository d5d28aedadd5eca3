//! `/volumes`: list, make, look at, remove, prune.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use axum::{Json, Router};
use bollard_stubs::models::VolumeCreateRequest;
use hyper_engine::{Error, VolumeRequest, VolumeView};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::{self, Query};

pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove))
}

async fn list(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.boolean("dangling")?;
    let mut shown = Vec::new();
    for view in app.engine.volumes().await {
        let volume = &view.volume;
        if filters.any("name", |name| volume.name.contains(name.as_str()))
            && filters.any("driver", |driver| volume.driver.word() == driver)
            && filters.labels(&volume.labels)
            && dangling.is_none_or(|wanted| view.users.is_empty() == wanted)
        {
            shown.push(document(&view));
        }
    }
    Ok(Json(json!({ "Volumes": shown, "Warnings": null })).into_response())
}

async fn create(State(app): State<App>, body: Body) -> ApiResult {
    let body: VolumeCreateRequest = request::json_or_none(body).await?.unwrap_or_default();
    if body.cluster_volume_spec.is_some() {
        return Err(ApiError::unsupported(
            "ClusterVolumeSpec is not supported: this engine is no cluster",
        ));
    }
    let sorted =
        |map: Option<HashMap<String, String>>| map.unwrap_or_default().into_iter().collect();
    let request = VolumeRequest {
        name: body.name.unwrap_or_default(),
        driver: body.driver.unwrap_or_default(),
        options: sorted(body.driver_opts),
        labels: sorted(body.labels),
    };
    let made = app.engine.create_volume(request).await?;
    Ok((StatusCode::CREATED, Json(document(&made))).into_response())
}

async fn inspect(State(app): State<App>, Path(name): Path<String>) -> ApiResult {
    Ok(Json(document(&app.engine.volume(&name).await?)).into_response())
}

async fn remove(State(app): State<App>, Path(name): Path<String>, query: Query) -> ApiResult {
    match app.engine.remove_volume(&name).await {
        Err(Error::NoSuchVolume(_)) if query.flag("force") => {}
        done => done?,
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Anonymous ones, and with the filter `all` those with names, too.
async fn prune(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&["all", "label", "label!"])?;
    let all = filters.boolean("all")?.unwrap_or(false);
    let (mut deleted, mut bytes) = (Vec::new(), 0);
    for view in app.engine.volumes().await {
        let volume = &view.volume;
        let wanted = all || volume.labels.contains_key("com.docker.volume.anonymous");
        if !wanted || !view.users.is_empty() || !filters.labels(&volume.labels) {
            continue;
        }
        let size = app.engine.volume_bytes(volume).await.unwrap_or(0);
        match app.engine.remove_volume(&volume.name).await {
            Ok(()) => {
                deleted.push(volume.name.clone());
                bytes += size;
            }
            // Taken or removed meanwhile.
            Err(Error::Conflict(_) | Error::NoSuchVolume(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(json!({ "VolumesDeleted": deleted, "SpaceReclaimed": bytes })).into_response())
}

/// For `system df`.
pub(crate) async fn usage(app: &App) -> Vec<Value> {
    let mut all = Vec::new();
    for view in app.engine.volumes().await {
        let bytes = app.engine.volume_bytes(&view.volume).await.unwrap_or(0);
        let mut one = document(&view);
        one["UsageData"] = json!({ "Size": bytes, "RefCount": view.users.len() });
        all.push(one);
    }
    all
}

fn document(view: &VolumeView) -> Value {
    let volume = &view.volume;
    let or_null = |map: &std::collections::BTreeMap<String, String>| {
        if map.is_empty() { Value::Null } else { json!(map) }
    };
    json!({
        "CreatedAt": hyper_stdio::rfc3339_nano(volume.created_ns),
        "Driver": volume.driver.word(),
        "Labels": or_null(&volume.labels),
        "Mountpoint": view.mountpoint,
        "Name": volume.name,
        "Options": or_null(&volume.options),
        "Scope": "local",
    })
}
