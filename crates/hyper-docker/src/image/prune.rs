//! `POST /images/prune`.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse as _;
use hyper_image::{Image, Removed};
use serde_json::json;

use super::list::{created, until};
use super::removals;
use crate::app::App;
use crate::error::ApiResult;
use crate::request::Query;

pub(crate) async fn prune(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&["dangling", "label", "label!", "until"])?;
    let only_dangling = filters.boolean("dangling")?.unwrap_or(true);
    let until = until(&filters)?;
    let pruned = remove(&app, |image| {
        // Steps of a build go with the last image that was made from them.
        !image.intermediate
            && (!only_dangling || image.is_dangling())
            && until.is_none_or(|limit| created(image) < limit)
            && filters.labels(&image.config.config.labels)
    })
    .await?;
    let deleted = removals(&pruned.removed);
    let deleted = if deleted.is_empty() { json!(null) } else { json!(deleted) };
    Ok(Json(json!({ "ImagesDeleted": deleted, "SpaceReclaimed": pruned.bytes })).into_response())
}

/// What a prune took away.
pub(crate) struct Pruned {
    pub removed: Vec<Removed>,
    /// Room on the disk that it gave back.
    pub bytes: u64,
}

/// Removes what is `wanted` of the images that no container uses; one in use meanwhile stays.
pub(crate) async fn remove(app: &App, wanted: impl Fn(&Image) -> bool) -> ApiResult<Pruned> {
    let used: Vec<String> =
        app.engine.containers().iter().map(|view| view.spec.image_id.clone()).collect();
    let before = app.engine.image_usage().await?.disk_bytes;
    let mut removed = Vec::new();
    for image in app.engine.images() {
        let id = image.id.to_string();
        if used.contains(&id) || !wanted(&image) {
            continue;
        }
        let names = if image.repo_tags.is_empty() { vec![id] } else { image.repo_tags.clone() };
        for name in names {
            match app.engine.remove_image(&name, false).await {
                Ok(gone) => removed.extend(gone),
                Err(error) => tracing::debug!(image = name, error = error.chain(), "prune"),
            }
        }
    }
    let after = app.engine.image_usage().await?.disk_bytes;
    Ok(Pruned { removed, bytes: before.saturating_sub(after) })
}
