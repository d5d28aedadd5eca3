//! docker-archive: `manifest.json` names config, layers and tags of each image.
//!
//! Source: moby `image/tarexport`, "Image Tarball Format" of image-spec v1.2. It has no manifests, so one is made: the
//! same archive gives the same manifest.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Found;
use super::contents::Contents;
use crate::error::Error;
use crate::reference::Reference;
use crate::spec::{
    Descriptor, MAX_DOCUMENT, MAX_LAYERS, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};
use crate::store::{Inner, Lease};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Puts all images' blobs into the store.
pub(super) fn images(
    inner: &Inner,
    contents: &Contents,
    lease: &Lease,
) -> Result<Vec<Found>, Error> {
    let items = contents.require("manifest.json")?.read(MAX_DOCUMENT)?;
    let items: Vec<Item> = serde_json::from_slice(&items).map_err(|error| Error::Malformed {
        what: "manifest.json of the archive".to_owned(),
        reason: error.to_string(),
    })?;
    items.iter().map(|item| image(inner, contents, lease, item)).collect()
}

/// Tags by config, for OCI layouts that `docker save` wrote too.
pub(super) fn tags(contents: &Contents) -> Result<Vec<(String, Vec<Reference>)>, Error> {
    let Some(file) = contents.find("manifest.json")? else { return Ok(Vec::new()) };
    let Ok(items) = serde_json::from_slice::<Vec<Item>>(&file.read(MAX_DOCUMENT)?) else {
        return Ok(Vec::new());
    };
    items.iter().map(|item| Ok((item.config.clone(), names(item)?))).collect()
}

fn image(inner: &Inner, contents: &Contents, lease: &Lease, item: &Item) -> Result<Found, Error> {
    let names = names(item)?;
    let layers = item.layers.as_deref().unwrap_or_default();
    if layers.len() > MAX_LAYERS {
        let what = names.first().map_or_else(|| item.config.clone(), Reference::familiar);
        let reason = format!("it has {} layers, more than {MAX_LAYERS}", layers.len());
        return Err(Error::NotAnImage { what, reason });
    }
    let store = |name: &str, media_type: String| {
        let found = contents.require(name)?;
        let digest = found.store(&inner.layout, lease, None)?;
        Ok::<_, Error>(Descriptor {
            media_type,
            digest,
            size: found.size,
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        })
    };
    let layers: Result<Vec<Descriptor>, Error> = layers
        .iter()
        .map(|name| {
            let compression = contents.require(name)?.compression()?;
            store(name, format!("{OCI_LAYER}{}", compression.suffix()))
        })
        .collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        subject: None,
        annotations: BTreeMap::new(),
        config: store(&item.config, OCI_CONFIG.to_owned())?,
        layers: layers?,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::Malformed {
        what: item.config.clone(),
        reason: error.to_string(),
    })?;
    let media_type = OCI_MANIFEST.to_owned();
    Ok(Found { manifest, bytes, media_type, names })
}

fn names(item: &Item) -> Result<Vec<Reference>, Error> {
    let tags = item.repo_tags.iter().flatten();
    tags.map(|tag| Ok(tag.parse::<Reference>()?.without_digest().or_latest())).collect()
}
