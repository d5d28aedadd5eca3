//! `/hyper/v1`: what Docker's API has no route for.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};

use serde::Deserialize;

use crate::app::App;
use crate::error::ApiResult;

/// `GET /hyper/v1/phases`: where the time of the last ended runs went, oldest first.
pub(crate) async fn all_phases(State(app): State<App>) -> Response {
    Json(app.engine.all_phases()).into_response()
}

/// `GET /hyper/v1/phases/{id}`: the same of one container, removed ones included.
pub(crate) async fn phases(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    Ok(Json(app.engine.phases(&id)?).into_response())
}

/// `GET /hyper/v1/pods/{id}`: the pod of a running container, as its supervisor sees it.
pub(crate) async fn pod(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    Ok(Json(app.engine.pod(&id).await?).into_response())
}

/// `POST /hyper/v1/images/verify`: reads the whole store and says what is wrong with it.
pub(crate) async fn verify_images(State(app): State<App>) -> ApiResult {
    let report = app.engine.verify_images().await?;
    Ok(Json(serde_json::json!({
        "Blobs": report.blobs,
        "Layers": report.layers,
        "Roots": report.roots,
        "Problems": report.problems,
    }))
    .into_response())
}

#[derive(Debug, Deserialize)]
pub(crate) struct About {
    image: String,
}

/// `GET /hyper/v1/images/referrers?image=NAME`: the documents about an image that came with it.
pub(crate) async fn referrers(State(app): State<App>, Query(about): Query<About>) -> ApiResult {
    let found = app.engine.referrers(&about.image)?;
    let shown = |referrer: &hyper_image::Referrer| {
        serde_json::json!({
            "Digest": referrer.digest.to_string(),
            "Subject": referrer.subject.to_string(),
            "ArtifactType": referrer.artifact_type,
            "Size": referrer.size,
            "Annotations": referrer.annotations,
        })
    };
    Ok(Json(found.iter().map(shown).collect::<Vec<_>>()).into_response())
}
