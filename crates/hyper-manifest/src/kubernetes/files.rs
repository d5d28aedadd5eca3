//! Volumes of files: `configMap`, `secret`, and `projected` of the two, as what a container is
//! given read-only.
//!
//! Source: kubernetes.io, "Volumes" and "Projected Volumes". Files are plain files: without the
//! links (`..data`) by which Kubernetes replaces them while a pod runs, which is not done here.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{FileMode, KeyToPath, Projection, Volume, VolumeMount};
use crate::document::{Documents, Keys};
use crate::{FieldResult, wrong};

/// Kubernetes' default.
const MODE: u32 = 0o644;
/// Of the directory itself.
const DIRECTORY_MODE: u32 = 0o755;

/// A file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct VolumeFile {
    pub path: String,
    pub mode: u32,
    pub content: Vec<u8>,
    /// `NAME/KEY` of a secret.
    pub secret: Option<String>,
}

/// Which of the documents beside the pod, and what of it.
struct Wanted<'a> {
    kind: &'static str,
    name: &'a str,
    items: &'a [KeyToPath],
    optional: bool,
    mode: u32,
}

/// The files of a volume; `None` for a volume of another kind. Errors name the field below it.
pub(super) fn volume(volume: &Volume, beside: &Documents) -> FieldResult<Option<Vec<VolumeFile>>> {
    let mut files = BTreeMap::new();
    if let Some(map) = &volume.config_map {
        let mode = mode("configMap.defaultMode", map.default_mode.as_ref(), MODE)?;
        let (name, items, optional) = (&*map.name, &*map.items, map.optional);
        let wanted = Wanted { kind: "ConfigMap", name, items, optional, mode };
        gather("configMap", &wanted, beside, &mut files)?;
    } else if let Some(secret) = &volume.secret {
        let mode = mode("secret.defaultMode", secret.default_mode.as_ref(), MODE)?;
        let (name, items, optional) = (&*secret.secret_name, &*secret.items, secret.optional);
        let wanted = Wanted { kind: "Secret", name, items, optional, mode };
        gather("secret", &wanted, beside, &mut files)?;
    } else if let Some(projected) = &volume.projected {
        let mode = mode("projected.defaultMode", projected.default_mode.as_ref(), MODE)?;
        for (at, source) in projected.sources.iter().enumerate() {
            let field = format!("projected.sources[{at}]");
            let wanted = wanted(&field, source, mode)?;
            gather(&field, &wanted, beside, &mut files)?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files.into_values().collect()))
}

fn wanted<'a>(field: &str, source: &'a Projection, mode: u32) -> FieldResult<Wanted<'a>> {
    for (word, given, why) in [
        ("serviceAccountToken", source.service_account_token.is_some(), "no service account"),
        (
            "downwardAPI",
            source.downward_api.is_some(),
            "no files from fields: use env with fieldRef",
        ),
    ] {
        if given {
            let why = format!("it cannot be honoured: there is {why}");
            return wrong(format!("{field}.{word}"), why);
        }
    }
    let (kind, from) = match (&source.config_map, &source.secret) {
        (Some(map), None) => ("ConfigMap", map),
        (None, Some(secret)) => ("Secret", secret),
        _ => return wrong(field, "exactly one of configMap and secret is wanted"),
    };
    Ok(Wanted { kind, name: &from.name, items: &from.items, optional: from.optional, mode })
}

fn gather(
    field: &str,
    wanted: &Wanted<'_>,
    beside: &Documents,
    files: &mut BTreeMap<String, VolumeFile>,
) -> FieldResult<()> {
    let Wanted { kind, name, .. } = wanted;
    let maps = if *kind == "Secret" { &beside.secrets } else { &beside.config_maps };
    let nothing = Keys::new();
    let keys = match maps.get(*name) {
        Some(keys) => keys,
        None if wanted.optional => &nothing,
        None => return wrong(field, format!("there is no {kind} `{name}` beside the pod")),
    };
    let mut add = |path: &str, mode: u32, key: &str, content: &[u8]| {
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        if !path.split('/').all(plain) {
            return wrong(field, format!("`{path}` is no relative path of plain names"));
        }
        let file = VolumeFile {
            path: path.to_owned(),
            mode,
            content: content.to_owned(),
            secret: (*kind == "Secret").then(|| format!("{name}/{key}")),
        };
        match files.insert(path.to_owned(), file) {
            None => Ok(()),
            Some(_) => wrong(field, format!("two files of the volume have the path `{path}`")),
        }
    };
    if wanted.items.is_empty() {
        return keys.iter().try_for_each(|(key, content)| add(key, wanted.mode, key, content));
    }
    for item in wanted.items {
        let mode = mode(&format!("{field}.items.mode"), item.mode.as_ref(), wanted.mode)?;
        match keys.get(&item.key) {
            Some(content) => add(&item.path, mode, &item.key, content)?,
            None if wanted.optional => {}
            None => return wrong(field, format!("{kind} `{name}` has no key `{}`", item.key)),
        }
    }
    Ok(())
}

fn mode(field: &str, given: Option<&FileMode>, default: u32) -> FieldResult<u32> {
    let mode = match given {
        None => return Ok(default),
        Some(FileMode::Number(number)) => Some(*number),
        // YAML 1.1, and so Kubernetes, reads 0400 as octal.
        Some(FileMode::Text(text)) => {
            text.strip_prefix('0').and_then(|_| u32::from_str_radix(text, 8).ok())
        }
    };
    match mode.filter(|mode| *mode <= 0o777) {
        Some(mode) => Ok(mode),
        None => wrong(field, "a mode is 0 to 0777, octal with a 0 before it, or decimal"),
    }
}

/// One of `HostConfig.HyperFiles`: the volume at its place, or with `subPath` a file or directory
/// of it.
pub(super) fn mounted(mount: &VolumeMount, files: &[VolumeFile]) -> FieldResult<Value> {
    let one = |file: &VolumeFile, path: &str| {
        json!({
            "Path": path, "Mode": file.mode, "Secret": file.secret,
            "Content": STANDARD.encode(&file.content),
        })
    };
    let directory = |files: Vec<Value>| {
        json!({
            "Target": mount.mount_path, "Directory": true, "Mode": DIRECTORY_MODE, "Files": files,
        })
    };
    let Some(sub) = mount.sub_path.as_deref().filter(|sub| !sub.is_empty()) else {
        return Ok(directory(files.iter().map(|file| one(file, &file.path)).collect()));
    };
    let sub = sub.trim_matches('/');
    if let Some(file) = files.iter().find(|file| file.path == sub) {
        return Ok(json!({ "Target": mount.mount_path, "Files": [one(file, "")] }));
    }
    let prefix = format!("{sub}/");
    let below = files.iter().filter_map(|file| Some((file, file.path.strip_prefix(&prefix)?)));
    let below: Vec<Value> = below.map(|(file, path)| one(file, path)).collect();
    if below.is_empty() {
        return wrong("subPath", format!("the volume has no `{sub}`"));
    }
    Ok(directory(below))
}
