//! The list of images, its filters, and what they occupy.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse as _;
use hyper_engine::View;
use hyper_image::{Digest, Image, Reference};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::{Filters, Query, Version, age_or_time};

const FILTERS: [&str; 8] =
    ["before", "dangling", "label", "label!", "reference", "since", "until", "id"];
/// From here on images without a name have empty lists instead of `<none>:<none>`.
const EMPTY_LISTS: Version = Version(1, 43);
/// From here on there is no `VirtualSize`.
pub(crate) const NO_VIRTUAL_SIZE: Version = Version(1, 44);

pub(crate) async fn list(State(app): State<App>, version: Version, query: Query) -> ApiResult {
    let filters = query.filters(&FILTERS)?;
    let dangling = filters.boolean("dangling")?;
    // Steps of builds are shown to whoever asks for all, and never as dangling.
    let all = query.flag("all") && dangling.is_none();
    let made = |key: &str| -> ApiResult<Vec<i64>> {
        let values = filters.values(key).iter();
        values.map(|name| Ok(created(&app.engine.image(name)?))).collect()
    };
    let (before, since) = (made("before")?, made("since")?);
    let until = until(&filters)?;
    let containers = app.engine.containers();
    let shared = if query.flag("shared-size") { Some(Shared::of(&app).await?) } else { None };
    let mut items = Vec::new();
    for mut image in app.engine.images() {
        let when = created(&image);
        let passes = (all || !image.intermediate)
            && dangling.is_none_or(|wanted| wanted == image.is_dangling())
            && filters.labels(&image.config.config.labels)
            && filters.any("id", |id| image.id.to_string().contains(id.as_str()))
            && before.iter().all(|limit| when < *limit)
            && since.iter().all(|limit| when > *limit)
            && until.is_none_or(|limit| when < limit);
        if !passes {
            continue;
        }
        if filters.has("reference") {
            // Only the names that were asked for, as Docker shows them.
            let matches = |name: &String| {
                filters.values("reference").iter().any(|pattern| matches_reference(name, pattern))
            };
            image.repo_tags.retain(matches);
            image.repo_digests.retain(matches);
            if image.repo_tags.is_empty() && image.repo_digests.is_empty() {
                continue;
            }
        }
        items.push(summary(&image, &containers, shared.as_ref(), version));
    }
    Ok(Json(items).into_response())
}

/// One line of the list.
pub(crate) fn summary(
    image: &Image,
    containers: &[View],
    shared: Option<&Shared>,
    version: Version,
) -> Value {
    let none = |list: &[String], text: &str| {
        if list.is_empty() && version < EMPTY_LISTS { json!([text]) } else { json!(list) }
    };
    let id = image.id.to_string();
    let users = containers.iter().filter(|view| view.spec.image_id == id).count();
    let mut item = json!({
        "Id": id,
        "ParentId": image.parent.map(|id| id.to_string()).unwrap_or_default(),
        "RepoTags": none(&image.repo_tags, "<none>:<none>"),
        "RepoDigests": none(&image.repo_digests, "<none>@<none>"),
        "Created": created(image) / 1_000_000_000,
        "Size": image.size,
        "SharedSize": shared.map_or(-1, |shared| shared.bytes_of(image)),
        "Labels": image.config.config.labels,
        "Containers": users,
    });
    if version < NO_VIRTUAL_SIZE {
        item["VirtualSize"] = json!(image.size);
    }
    item
}

/// When an image was made, in nanoseconds since the Unix epoch; 0 if it does not say.
pub(crate) fn created(image: &Image) -> i64 {
    image.config.created.as_deref().and_then(hyper_stdio::parse_rfc3339).unwrap_or(0)
}

/// The time before which an image must have been made.
pub(crate) fn until(filters: &Filters) -> ApiResult<Option<i64>> {
    match filters.values("until") {
        [] => Ok(None),
        [one] => age_or_time(one, hyper_stdio::now_ns()).map(Some).ok_or_else(|| {
            ApiError::invalid(format!("invalid filter 'until={one}': neither an age nor a time"))
        }),
        _ => Err(ApiError::invalid("invalid filter 'until': several values")),
    }
}

/// Sizes of layers, and how many images have each.
pub(crate) struct Shared {
    layers: BTreeMap<Digest, (u64, usize)>,
}

impl Shared {
    pub(crate) async fn of(app: &App) -> ApiResult<Self> {
        let mut layers = BTreeMap::new();
        for image in app.engine.images() {
            let sizes: BTreeMap<Digest, u64> =
                app.engine.layer_sizes(&image).await?.into_iter().collect();
            for (diff_id, size) in sizes {
                layers.entry(diff_id).or_insert((size, 0)).1 += 1;
            }
        }
        Ok(Self { layers })
    }

    /// Bytes of an image's layers that other images have too.
    fn bytes_of(&self, image: &Image) -> i64 {
        let shared = |diff_id: &Digest| match self.layers.get(diff_id) {
            Some((size, users)) if *users > 1 => *size,
            _ => 0,
        };
        let bytes = image.config.rootfs.diff_ids.iter().map(shared).fold(0, u64::saturating_add);
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }

    /// Bytes of all layers, each once.
    pub(crate) fn total(&self) -> u64 {
        self.layers.values().map(|(size, _)| *size).fold(0, u64::saturating_add)
    }
}

/// `busybox`, `busybox:*`, `*/app:1.?`: against a name with and without its tag or digest.
fn matches_reference(name: &str, pattern: &str) -> bool {
    let bare = name.parse::<Reference>().map(|name| name.familiar_name());
    let bare = bare.as_deref().unwrap_or(name);
    glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), bare.as_bytes())
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
