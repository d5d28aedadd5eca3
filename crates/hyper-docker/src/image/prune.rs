//! `POST /images/prune`.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse as _;
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
    let used: Vec<String> =
        app.engine.containers().iter().map(|view| view.spec.image_id.clone()).collect();
    let before = app.engine.image_usage().await?.disk_bytes;
    let mut deleted = Vec::new();
    for image in app.engine.images() {
        let id = image.id.to_string();
        if used.contains(&id)
            // Steps of a build go with the last image that was made from them.
            || image.intermediate
            || (only_dangling && !image.is_dangling())
            || until.is_some_and(|limit| created(&image) >= limit)
            || !filters.labels(&image.config.config.labels)
        {
            continue;
        }
        // An image in use meanwhile stays.
        let names = if image.repo_tags.is_empty() { vec![id] } else { image.repo_tags.clone() };
        for name in names {
            match app.engine.remove_image(&name, false).await {
                Ok(removed) => deleted.extend(removals(&removed)),
                Err(error) => tracing::debug!(image = name, error = error.chain(), "prune"),
            }
        }
    }
    let after = app.engine.image_usage().await?.disk_bytes;
    let deleted = if deleted.is_empty() { json!(null) } else { json!(deleted) };
    let answer =
        json!({ "ImagesDeleted": deleted, "SpaceReclaimed": before.saturating_sub(after) });
    Ok(Json(answer).into_response())
}
