//! Images: list, inspect, history, tag, delete, prune.
//!
//! Names hold slashes, so `/images/{name}/{verb}` is taken apart here.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse as _;
use hyper_image::{Image, Reference, Removed};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::{Query, Version};

const FILTERS: [&str; 8] =
    ["before", "dangling", "label", "label!", "reference", "since", "until", "id"];
/// From here on images without a name have empty lists instead of `<none>:<none>`.
const EMPTY_LISTS: Version = Version(1, 43);
/// From here on there is no `VirtualSize`.
const NO_VIRTUAL_SIZE: Version = Version(1, 44);

pub(crate) async fn list(State(app): State<App>, version: Version, query: Query) -> ApiResult {
    let filters = query.filters(&FILTERS)?;
    let dangling = filters.boolean("dangling")?;
    // Steps of builds are shown to whoever asks for all, and never as dangling.
    let all = query.flag("all") && dangling.is_none();
    let made = |key: &str| -> ApiResult<Vec<String>> {
        let values = filters.values(key).iter();
        values
            .map(|name| Ok(app.engine.image(name)?.config.created.clone().unwrap_or_default()))
            .collect()
    };
    let (before, since) = (made("before")?, made("since")?);
    let containers = app.engine.containers();
    let mut items = Vec::new();
    for image in app.engine.images() {
        let created = image.config.created.clone().unwrap_or_default();
        let passes = (all || !image.intermediate)
            && dangling.is_none_or(|wanted| wanted == image.is_dangling())
            && filters.labels(&image.config.config.labels)
            && filters.any("reference", |pattern| matches_reference(&image, pattern))
            && filters.any("id", |id| image.id.to_string().contains(id.as_str()))
            && before.iter().all(|limit| created < *limit)
            && since.iter().all(|limit| created > *limit);
        if !passes {
            continue;
        }
        let id = image.id.to_string();
        let users = containers.iter().filter(|view| view.spec.image_id == id).count();
        items.push(summary(&image, users, version));
    }
    Ok(Json(items).into_response())
}

fn summary(image: &Image, users: usize, version: Version) -> Value {
    let none = |list: &[String], text: &str| {
        if list.is_empty() && version < EMPTY_LISTS { json!([text]) } else { json!(list) }
    };
    let created = image.config.created.as_deref().and_then(hyper_stdio::parse_rfc3339).unwrap_or(0);
    let mut item = json!({
        "Id": image.id.to_string(),
        "ParentId": image.parent.map(|id| id.to_string()).unwrap_or_default(),
        "RepoTags": none(&image.repo_tags, "<none>:<none>"),
        "RepoDigests": none(&image.repo_digests, "<none>@<none>"),
        "Created": created / 1_000_000_000,
        "Size": image.size,
        "SharedSize": -1,
        "Labels": image.config.config.labels,
        "Containers": users,
    });
    if version < NO_VIRTUAL_SIZE {
        item["VirtualSize"] = json!(image.size);
    }
    item
}

/// `busybox`, `busybox:*`, `*/app:1.?`: against the name with and without tag.
fn matches_reference(image: &Image, pattern: &str) -> bool {
    image.repo_tags.iter().any(|name| {
        let bare = name.rsplit_once(':').map_or(name.as_str(), |(bare, _)| bare);
        glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), bare.as_bytes())
    })
}

/// `*` and `?` stop at slashes, as Go's `path.Match`. Linear but for stars: one restart each.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') if text[t] != b'/' => (p, t) = (p + 1, t + 1),
            Some(&byte) if byte != b'?' && byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) if text[from] != b'/' => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// `GET NAME/json`, `GET NAME/history`, `POST NAME/tag`, `DELETE NAME`.
pub(crate) async fn by_name(
    State(app): State<App>,
    Path(rest): Path<String>,
    method: Method,
    version: Version,
    query: Query,
) -> ApiResult {
    if method == Method::DELETE {
        return remove(&app, &rest, &query).await;
    }
    let (name, verb) = rest.rsplit_once('/').unwrap_or(("", &rest));
    match (&method, verb) {
        (&Method::GET | &Method::HEAD, "json") => inspect(&app, name, version),
        (&Method::GET | &Method::HEAD, "history") => history(&app, name),
        (&Method::POST, "tag") => tag(&app, name, &query).await,
        (&Method::POST, "push") => Err(ApiError::unsupported(format!(
            "pushing images is not supported in this version: {name} stays here"
        ))),
        (&Method::GET, "get") => {
            Err(ApiError::unsupported("saving images to archives is not supported in this version"))
        }
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

fn history(app: &App, name: &str) -> ApiResult {
    let image = app.engine.image(name)?;
    let newest = image.config.history.len().saturating_sub(1);
    let items: Vec<Value> = image
        .config
        .history
        .iter()
        .enumerate()
        .rev()
        .map(|(step, entry)| {
            let created =
                entry.created.as_deref().and_then(hyper_stdio::parse_rfc3339).unwrap_or(0);
            json!({
                "Id": if step == newest { image.id.to_string() } else { "<missing>".to_owned() },
                "Created": created / 1_000_000_000,
                "CreatedBy": entry.created_by,
                "Tags": if step == newest { json!(image.repo_tags) } else { Value::Null },
                // Sizes of single layers are not kept apart.
                "Size": 0,
                "Comment": entry.comment,
            })
        })
        .collect();
    Ok(Json(items).into_response())
}

async fn tag(app: &App, name: &str, query: &Query) -> ApiResult {
    let repository = query.text("repo").ok_or_else(|| ApiError::invalid("repo is missing"))?;
    let text = match query.text("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    };
    let reference: Reference =
        text.parse().map_err(|e| ApiError::invalid(format!("invalid reference `{text}`: {e}")))?;
    if reference.digest().is_some() {
        return Err(ApiError::invalid("refusing to create a tag with a digest reference"));
    }
    app.engine.tag(name, &reference.or_latest()).await?;
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

pub(crate) async fn prune(State(app): State<App>, query: Query) -> ApiResult {
    let filters = query.filters(&["dangling", "label", "label!", "until"])?;
    if filters.has("until") {
        return Err(ApiError::unsupported("the filter `until` is not supported for images"));
    }
    let only_dangling = filters.boolean("dangling")?.unwrap_or(true);
    let used: Vec<String> =
        app.engine.containers().iter().map(|view| view.spec.image_id.clone()).collect();
    let before = app.engine.image_usage().await?.layer_bytes;
    let mut deleted = Vec::new();
    for image in app.engine.images() {
        let id = image.id.to_string();
        // Steps of a build go with the last image that was made from them.
        if used.contains(&id)
            || image.intermediate
            || (only_dangling && !image.is_dangling())
            || !filters.labels(&image.config.config.labels)
        {
            continue;
        }
        let names = if image.repo_tags.is_empty() { vec![id] } else { image.repo_tags.clone() };
        for name in names {
            match app.engine.remove_image(&name, false).await {
                Ok(removed) => deleted.extend(removals(&removed)),
                Err(error) => tracing::debug!(image = name, error = error.chain(), "prune"),
            }
        }
    }
    let after = app.engine.image_usage().await?.layer_bytes;
    let answer =
        json!({ "ImagesDeleted": deleted, "SpaceReclaimed": before.saturating_sub(after) });
    Ok(Json(answer).into_response())
}

pub(crate) async fn search() -> ApiError {
    ApiError::unsupported(
        "searching for images is not supported: it is a service of Docker Hub only, not of registries",
    )
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox:latest", true),
            ("*box:l?test", "busybox:latest", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("busybo", "busybox", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
