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
use crate::image::prune::remove;
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
    let pruned = remove(&app, |image| {
        let is_asked_for = |asked: &String| {
            let hex = asked.strip_prefix("sha256:").unwrap_or(asked);
            !hex.is_empty() && image.id.hex().starts_with(hex)
        };
        image.step.is_some()
            && !image.intermediate
            && image.is_dangling()
            && image.repo_digests.is_empty()
            && until.is_none_or(|limit| created(image) < limit)
            && (ids.is_empty() || ids.iter().any(is_asked_for))
    })
    .await?;
    let deleted: Vec<String> = pruned
        .removed
        .into_iter()
        .filter_map(|one| match one {
            Removed::Deleted(digest) => Some(digest.to_string()),
            Removed::Untagged(_) => None,
        })
        .collect();
    let deleted = if deleted.is_empty() { json!(null) } else { json!(deleted) };
    Ok(Json(json!({ "CachesDeleted": deleted, "SpaceReclaimed": pruned.bytes })).into_response())
}
