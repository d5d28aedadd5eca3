//! Images: list, inspect, history, tag, push, save, delete, prune.
//!
//! Names hold slashes, so `/images/{name}/{verb}` is taken apart here.

pub(crate) mod list;
pub(crate) mod prune;

pub(crate) use list::{Shared, list, summary};
pub(crate) use prune::prune;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::IntoResponse as _;
use hyper_image::Removed;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::push;
use crate::request::{Query, Version};
use list::NO_VIRTUAL_SIZE;

/// `GET NAME/json`, `GET NAME/history`, `GET NAME/get`, `POST NAME/tag`, `POST NAME/push`, `DELETE NAME`.
pub(crate) async fn by_name(
    State(app): State<App>,
    Path(rest): Path<String>,
    method: Method,
    version: Version,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    if method == Method::DELETE {
        return remove(&app, &rest, &query).await;
    }
    let (name, verb) = rest.rsplit_once('/').unwrap_or(("", &rest));
    match (&method, verb) {
        (&Method::GET | &Method::HEAD, "json") => inspect(&app, name, version),
        (&Method::GET | &Method::HEAD, "history") => history(&app, name).await,
        (&Method::GET, "get") => archive(&app, vec![name.to_owned()]).await,
        (&Method::POST, "tag") => tag(&app, name, &query).await,
        (&Method::POST, "push") => push::push(&app, name, &query, &headers).await,
        _ => Err(ApiError::not_found(format!(
            "page not found: {method} /images/{rest} is no route of this API"
        ))),
    }
}

fn inspect(app: &App, name: &str, version: Version) -> ApiResult {
    let image = app.engine.image(name)?;
    let config = &image.config;
    let mut document = json!({
        "Id": image.id.to_string(),
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": image.parent.map(|id| id.to_string()).unwrap_or_default(),
        "Comment": config.comment,
        "Created": config.created,
        "DockerVersion": config.docker_version,
        "Author": config.author,
        "Config": config.config,
        // Not in Docker's since 1.45; but docker-compose 1, which speaks every version, looks for an
        // image's volumes there.
        "ContainerConfig": config.config,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": image.size,
        "GraphDriver": { "Name": "erofs", "Data": null },
        "RootFS": {
            "Type": "layers",
            "Layers": config.rootfs.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "Metadata": { "LastTagTime": "0001-01-01T00:00:00Z" },
    });
    if let Some(variant) = &config.variant {
        document["Variant"] = json!(variant);
    }
    if version < NO_VIRTUAL_SIZE {
        document["VirtualSize"] = json!(image.size);
    }
    Ok(Json(document).into_response())
}

async fn history(app: &App, name: &str) -> ApiResult {
    let image = app.engine.image(name)?;
    let sizes = app.engine.layer_sizes(&image).await?;
    let mut sizes = sizes.into_iter().map(|(_, size)| size);
    let newest = image.config.history.len().saturating_sub(1);
    let mut items: Vec<Value> = Vec::new();
    for (step, entry) in image.config.history.iter().enumerate() {
        let created = entry.created.as_deref().and_then(hyper_stdio::parse_rfc3339).unwrap_or(0);
        items.push(json!({
            "Id": if step == newest { image.id.to_string() } else { "<missing>".to_owned() },
            "Created": created / 1_000_000_000,
            "CreatedBy": entry.created_by,
            "Tags": if step == newest { json!(image.repo_tags) } else { Value::Null },
            "Size": if entry.empty_layer { 0 } else { sizes.next().unwrap_or(0) },
            "Comment": entry.comment,
        }));
    }
    items.reverse();
    Ok(Json(items).into_response())
}

/// `GET /images/get?names=…`
pub(crate) async fn save(State(app): State<App>, query: Query) -> ApiResult {
    let names = query.all("names").to_vec();
    if names.is_empty() {
        return Err(ApiError::invalid("names is missing: say which images are to be saved"));
    }
    archive(&app, names).await
}

async fn archive(app: &App, names: Vec<String>) -> ApiResult {
    let stream = app.engine.save(names).await?;
    let kind = [(header::CONTENT_TYPE, "application/x-tar")];
    Ok((kind, Body::from_stream(stream)).into_response())
}

async fn tag(app: &App, name: &str, query: &Query) -> ApiResult {
    let wanted = query.new_name()?.ok_or_else(|| ApiError::invalid("repo is missing"))?;
    app.engine.tag(name, &wanted).await?;
    Ok(StatusCode::CREATED.into_response())
}

async fn remove(app: &App, name: &str, query: &Query) -> ApiResult {
    let removed = app.engine.remove_image(name, query.flag("force")).await?;
    Ok(Json(removals(&removed)).into_response())
}

fn removals(removed: &[Removed]) -> Vec<Value> {
    removed
        .iter()
        .map(|one| match one {
            Removed::Untagged(name) => json!({ "Untagged": name }),
            Removed::Deleted(id) => json!({ "Deleted": id.to_string() }),
        })
        .collect()
}

pub(crate) async fn search() -> ApiError {
    ApiError::unsupported(
        "searching for images is not supported: it is a service of Docker Hub only, not of registries",
    )
}
