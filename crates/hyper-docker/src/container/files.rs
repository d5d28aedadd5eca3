//! Files of a container: `archive` (docker cp), `changes` (diff), `export`.
//!
//! What is at a path is told in a header, as base64 of JSON, with the mode bits of Go's `os`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_engine::{Archive, ChangeKind, CopyOptions, PathStat};
use serde_json::json;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::Query;
use crate::upload::with_body;

/// Docker's name for the header.
const STAT: &str = "x-docker-container-path-stat";

pub(crate) async fn stat(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let path = path(&query)?;
    let stat = app.engine.stat_path(&id, path).await?;
    Ok([(STAT, stat_header(path, &stat)?)].into_response())
}

pub(crate) async fn download(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let path = path(&query)?;
    let (stat, archive) = app.engine.copy_from(&id, path).await?;
    let mut answer = tar(archive);
    answer.headers_mut().insert(STAT, stat_header(path, &stat)?);
    if let Ok(view) = app.engine.container(&id) {
        app.engine.note(&view, "archive-path");
    }
    Ok(answer)
}

pub(crate) async fn upload(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    body: Body,
) -> ApiResult {
    with_body(body, |reader| async {
        let options = CopyOptions {
            keep_directories: query.flag("noOverwriteDirNonDir"),
            as_user: query.flag("copyUIDGID"),
        };
        Ok::<_, ApiError>(app.engine.copy_to(&id, path(&query)?, options, reader).await?)
    })
    .await?;
    if let Ok(view) = app.engine.container(&id) {
        app.engine.note(&view, "extract-to-dir");
    }
    Ok(StatusCode::OK.into_response())
}

pub(crate) async fn export(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    let archive = app.engine.export(&id).await?;
    if let Ok(view) = app.engine.container(&id) {
        app.engine.note(&view, "export");
    }
    Ok(tar(archive))
}

pub(crate) async fn changes(State(app): State<App>, Path(id): Path<String>) -> ApiResult {
    let changes = app.engine.changes(&id).await?;
    if changes.is_empty() {
        // As Docker writes it.
        return Ok(Json(json!(null)).into_response());
    }
    let list: Vec<_> = changes
        .iter()
        .map(|change| {
            let kind = match change.kind {
                ChangeKind::Modified => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            };
            json!({ "Path": change.path, "Kind": kind })
        })
        .collect();
    Ok(Json(list).into_response())
}

fn path(query: &Query) -> ApiResult<&str> {
    query.text("path").ok_or_else(|| ApiError::invalid("bad parameter: path is missing"))
}

/// An error after the first byte breaks the connection: there is no other word for it.
fn tar(archive: Archive) -> Response {
    let stream = futures_util::stream::try_unfold(archive, |mut archive| async move {
        let next = archive.next().await.map_err(|error| {
            tracing::warn!(error = error.chain(), "archive broke off");
            std::io::Error::other(error.chain())
        })?;
        Ok::<_, std::io::Error>(next.map(|bytes| (bytes, archive)))
    });
    ([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(stream)).into_response()
}

fn stat_header(path: &str, stat: &PathStat) -> ApiResult<HeaderValue> {
    let document = json!({
        "name": base(path),
        "size": stat.size,
        "mode": go_mode(stat.mode),
        "mtime": hyper_stdio::rfc3339_nano(stat.mtime_ns),
        "linkTarget": stat.target,
    });
    HeaderValue::from_str(&STANDARD.encode(document.to_string()))
        .map_err(|e| ApiError::invalid(format!("path `{path}`: {e}")))
}

/// Go's `filepath.Base` of the path made absolute.
fn base(path: &str) -> &str {
    if path.ends_with("/.") && path.len() > 2 {
        return ".";
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | ".") => "/",
        Some(base) => base,
    }
}

/// `st_mode` as Go's `os.FileMode`.
fn go_mode(mode: u32) -> u32 {
    const DIRECTORY: u32 = 1 << 31;
    const SYMLINK: u32 = 1 << 27;
    const DEVICE: u32 = 1 << 26;
    const NAMED_PIPE: u32 = 1 << 25;
    const SOCKET: u32 = 1 << 24;
    const SET_USER: u32 = 1 << 23;
    const SET_GROUP: u32 = 1 << 22;
    const CHARACTER_DEVICE: u32 = 1 << 21;
    const STICKY: u32 = 1 << 20;
    let kind = match mode & 0o170_000 {
        0o040_000 => DIRECTORY,
        0o120_000 => SYMLINK,
        0o060_000 => DEVICE,
        0o020_000 => DEVICE | CHARACTER_DEVICE,
        0o010_000 => NAMED_PIPE,
        0o140_000 => SOCKET,
        _ => 0,
    };
    [(0o4000, SET_USER), (0o2000, SET_GROUP), (0o1000, STICKY)]
        .into_iter()
        .filter(|(bit, _)| mode & bit != 0)
        .fold(kind | (mode & 0o777), |all, (_, go)| all | go)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o040_755), 0x8000_01ed);
        assert_eq!(go_mode(0o120_777), 0x0800_01ff);
        assert_eq!(go_mode(0o104_755), 0x0080_01ed);
        assert_eq!(go_mode(0o041_777), 0x8010_01ff);
        assert_eq!(go_mode(0o020_666), 0x0420_01b6);
    }

    #[test]
    fn names_are_gos() {
        for (path, name) in
            [("/a/b", "b"), ("/a/b/", "b"), ("/a/b/.", "."), ("/", "/"), ("a", "a"), (".", "/")]
        {
            assert_eq!(base(path), name, "{path}");
        }
    }
}
