//! `/hyper/v1`: what Docker's API has no route for.
//!
//! [`document`] describes it; the copy in `docs/openapi.json` is held against it by a test.

pub(crate) mod guest_exec;
pub(crate) mod pods;
pub(crate) mod services;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};

use serde::Deserialize;
use utoipa::OpenApi as _;

use crate::app::App;
use crate::error::ApiResult;

/// `GET /hyper/v1/phases`: where the time of the last ended runs went, oldest first.
#[utoipa::path(get, path = "/hyper/v1/phases", tag = "measurement",
    responses((status = 200, description = "records of the last ended runs, oldest first")))]
pub(crate) async fn all_phases(State(app): State<App>) -> Response {
    Json(app.engine.all_phases()).into_response()
}

/// `GET /hyper/v1/phases/{id}`: the same of one container, removed ones included.
#[utoipa::path(get, path = "/hyper/v1/phases/{id}", tag = "measurement",
    params(("id" = String, Path, description = "container")),
    responses((status = 200, description = "the record of its last run"),
        (status = 404, description = "it is not among the last runs")))]
pub(crate) async fn phases(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    Ok(Json(app.engine.phases(&id)?).into_response())
}

/// `GET /hyper/v1/openapi.json`
pub(crate) async fn openapi() -> Response {
    Json(document()).into_response()
}

/// The description of all that is under `/hyper/v1`.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(
        info(
            title = "Hyper",
            description = "What Docker's API has no route for. Errors are \
            `{\"message\": TEXT}`, as Docker's."
        ),
        paths(
            pods::list,
            pods::create,
            pods::inspect,
            pods::start,
            pods::stop,
            pods::kill,
            pods::pause,
            pods::unpause,
            pods::update,
            pods::remove,
            guest_exec::create,
            services::list,
            services::add,
            services::update,
            services::set,
            services::remove,
            all_phases,
            phases,
            verify_images,
            referrers,
        )
    )]
    struct Document;
    Document::openapi()
}

/// `POST /hyper/v1/images/verify`: reads the whole store and says what is wrong with it.
#[utoipa::path(post, path = "/hyper/v1/images/verify", tag = "images",
    responses((status = 200, description = "counts of what was read, and the problems found")))]
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
#[utoipa::path(get, path = "/hyper/v1/images/referrers", tag = "images",
    params(("image" = String, Query, description = "name, digest or id")),
    responses((status = 200, description = "digest, subject, type, size and annotations of each"),
        (status = 404, description = "no such image")))]
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

#[cfg(test)]
mod test {
    /// `HYPER_WRITE_DOCS=1 cargo test -p hyper-docker openapi` writes it anew.
    #[test]
    fn the_committed_openapi_document_is_not_stale() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let fresh = format!("{}\n", super::document().to_pretty_json().unwrap());
        if std::env::var_os("HYPER_WRITE_DOCS").is_some() {
            std::fs::write(path, &fresh).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), fresh, "stale: {path}");
    }
}
