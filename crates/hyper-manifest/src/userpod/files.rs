//! A UserPod's `files`: put into containers, writable, with contents from the pod, or from a URI
//! that the caller has read.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{FileReference, UserContainer, UserFile, UserPod, base64};
use crate::{FieldResult, wrong};

/// The first Hyper's default.
const MODE: u32 = 0o755;

/// What URIs were read for, by URI.
pub(crate) type Fetched = BTreeMap<String, Vec<u8>>;

/// The URIs of a pod's files.
pub(crate) fn uris(pod: &UserPod) -> impl Iterator<Item = &str> {
    let details = pod.containers.iter().flat_map(|container| &container.files);
    let details = details.filter_map(|reference| reference.detail.as_ref());
    let all = pod.files.iter().chain(details);
    all.map(|file| file.uri.as_str()).filter(|uri| !uri.is_empty())
}

/// Refuses what the pod's own list cannot be.
pub(super) fn check(pod: &UserPod) -> FieldResult<()> {
    for (at, file) in pod.files.iter().enumerate() {
        let field = format!("files[{at}]");
        if file.name.is_empty() {
            return wrong(field, "a name is wanted, by which containers refer to it");
        }
        if pod.files[..at].iter().any(|other| other.name == file.name) {
            return wrong(field, format!("two files have the name `{}`", file.name));
        }
    }
    Ok(())
}

/// `HostConfig.HyperFiles` of a container.
pub(super) fn given(
    pod: &UserPod,
    container: &UserContainer,
    fetched: &Fetched,
) -> FieldResult<Vec<Value>> {
    let one = |reference: &FileReference| {
        let field = format!("files `{}`", reference.path);
        file(pod, reference, fetched).map_err(|(below, why)| match below.as_str() {
            "" => (field, why),
            below => (format!("{field}.{below}"), why),
        })
    };
    container.files.iter().map(one).collect()
}

fn file(pod: &UserPod, reference: &FileReference, fetched: &Fetched) -> FieldResult<Value> {
    let named = || pod.files.iter().find(|file| file.name == reference.filename);
    let Some(file) = reference.detail.as_ref().or_else(named) else {
        return wrong("filename", format!("the pod has no file `{}`", reference.filename));
    };
    if !reference.path.starts_with('/') {
        return wrong("path", "it is no absolute path");
    }
    let mode = match reference.perm.as_str() {
        "" => Some(MODE),
        text => u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777),
    };
    let Some(mode) = mode else {
        return wrong("perm", format!("`{}` is no octal mode, such as 0644", reference.perm));
    };
    let owner = owner(reference)?;
    Ok(json!({
        "Target": reference.path, "Writable": true,
        "Files": [{
            "Mode": mode, "Owner": owner,
            "Content": STANDARD.encode(contents(file, fetched)?),
        }],
    }))
}

fn contents(file: &UserFile, fetched: &Fetched) -> FieldResult<Vec<u8>> {
    let bytes = match (file.uri.as_str(), file.content.as_str()) {
        ("", content) => content.as_bytes().to_vec(),
        (uri, "") => match fetched.get(uri) {
            Some(bytes) => bytes.clone(),
            None => return wrong("uri", format!("`{uri}` was not read")),
        },
        _ => return wrong("uri", "there is `content`, too: one of them is wanted"),
    };
    match file.encoding.as_str() {
        "" | "raw" => Ok(bytes),
        "base64" => {
            let decoded = std::str::from_utf8(&bytes).ok().and_then(base64);
            match decoded {
                Some(decoded) => Ok(decoded),
                None => wrong("encoding", format!("file `{}` is not base64", file.name)),
            }
        }
        other => wrong("encoding", format!("`{other}` is neither raw nor base64")),
    }
}

/// As the container's own user: names are the image's to know.
fn owner(reference: &FileReference) -> FieldResult<Option<String>> {
    for (field, text) in [("user", &reference.user), ("group", &reference.group)] {
        if text.contains([':', ',', '/']) || text.contains(char::is_whitespace) {
            return wrong(field, format!("`{text}` is neither a name nor a number"));
        }
    }
    Ok(match (reference.user.as_str(), reference.group.as_str()) {
        ("", "") => None,
        (user, "") => Some(user.to_owned()),
        ("", group) => Some(format!("0:{group}")),
        (user, group) => Some(format!("{user}:{group}")),
    })
}
