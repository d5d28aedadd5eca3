//! `POST /build/prune`: the steps of builds that no image needs.
//!
//! A step is an untagged image. What goes are chains of steps that lead to no image with a name and to no container:
//! of builds that failed, and of results whose name another build has taken. Steps behind a named image stay: they are
//! its parents, and hold no layer that it has not.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse as _;
use hyper_image::Removed;
use serde_json::json;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::image::list::{created, until};
use crate::request::Query;

/// How much of the cache is to stay, in several ages of the API.
const ROOM: [&str; 4] = ["keep-storage", "reserved-space", "max-used-space", "min-free-space"];

pub(crate) async fn prune(State(app): State<App>, query: Query) -> ApiResult {
    for key in ROOM {
        if let Some(value) = query.text(key).filter(|value| *value != "0") {
            return Err(ApiError::unsupported(format!(
                "{key} \"{value}\" is not supported: steps share their layers with images; \
                 use the filter until=AGE, or hyperd's image-store-limit"
            )));
        }
    }
    let filters = query.filters(&["until", "id"])?;
    let until = until(&filters)?;
    let ids = filters.values("id");
    let used: Vec<String> =
        app.engine.containers().iter().map(|view| view.spec.image_id.clone()).collect();
    let before = app.engine.image_usage().await?.disk_bytes;
    let mut deleted = Vec::new();
    for image in app.engine.images() {
        let id = image.id.to_string();
        let is_wanted = |wanted: &String| {
            let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
            !hex.is_empty() && image.id.hex().starts_with(hex)
        };
        if image.step.is_none()
            || image.intermediate
            || !image.is_dangling()
            || !image.repo_digests.is_empty()
            || used.contains(&id)
            || until.is_some_and(|limit| created(&image) >= limit)
            || (!ids.is_empty() && !ids.iter().any(is_wanted))
        {
            continue;
        }
        match app.engine.remove_image(&id, false).await {
            Ok(removed) => deleted.extend(removed.into_iter().filter_map(|one| match one {
                Removed::Deleted(digest) => Some(digest.to_string()),
                Removed::Untagged(_) => None,
            })),
            // In use meanwhile.
            Err(error) => tracing::debug!(image = id, error = error.chain(), "build prune"),
        }
    }
    let after = app.engine.image_usage().await?.disk_bytes;
    let deleted = if deleted.is_empty() { json!(null) } else { json!(deleted) };
    let answer =
        json!({ "CachesDeleted": deleted, "SpaceReclaimed": before.saturating_sub(after) });
    Ok(Json(answer).into_response())
}
