//! From whatever a reference names to the manifest for one platform.

use crate::error::Error;
use crate::platform::Platform;
use crate::spec::{Descriptor, Index, LayerType, MAX_LAYERS, Manifest, layer_type};

/// Annotation of buildkit's provenance documents, which hide in indexes as images.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// The best manifest of an index for a platform.
pub(crate) fn select<'i>(
    index: &'i Index,
    wanted: &Platform,
    reference: &str,
) -> Result<&'i Descriptor, Error> {
    let images =
        || index.manifests.iter().filter(|entry| !entry.annotations.contains_key(REFERENCE_TYPE));
    let best = images()
        .filter_map(|entry| Some((wanted.accepts(entry.platform.as_ref()?)?, entry)))
        .min_by_key(|(rank, _)| *rank);
    if let Some((_, entry)) = best {
        return Ok(entry);
    }
    // An index whose only entry does not say what it is: the config will.
    if let [only] = images().collect::<Vec<_>>().as_slice()
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut offered: Vec<String> = images()
        .map(|entry| {
            entry
                .platform
                .as_ref()
                .map_or_else(|| "unknown".to_owned(), |p| p.normalised().to_string())
        })
        .collect();
    offered.sort();
    offered.dedup();
    offered.truncate(30);
    let offered = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
    Err(Error::NoPlatform { reference: reference.to_owned(), wanted: wanted.clone(), offered })
}

/// Refuses what cannot become a root file system before anything is fetched.
pub(crate) fn check_manifest(manifest: &Manifest, reference: &str) -> Result<(), Error> {
    let refused = |reason: String| Error::NotAnImage { what: reference.to_owned(), reason };
    if manifest.schema_version != 2 {
        return Err(refused(format!("manifest schema version {}", manifest.schema_version)));
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(refused(format!(
            "it has {} layers, more than {MAX_LAYERS}",
            manifest.layers.len()
        )));
    }
    for layer in &manifest.layers {
        match layer_type(&layer.media_type) {
            LayerType::Tar => {}
            LayerType::Foreign => {
                return Err(Error::ForeignLayer {
                    digest: layer.digest,
                    media_type: layer.media_type.clone(),
                });
            }
            LayerType::Unknown => {
                return Err(refused(format!(
                    "layer {} has media type `{}`",
                    layer.digest, layer.media_type
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().map(|platform| Descriptor {
            platform: platform.parse().ok(),
            ..Descriptor::of("", platform.as_bytes())
        });
        Index { schema_version: 2, media_type: None, manifests: manifests.collect() }
    }

    #[test]
    fn the_best_platform() {
        let amd64: Platform = "linux/amd64".parse().unwrap();
        let chosen = |platforms: &[&str]| {
            let index = index(platforms);
            select(&index, &amd64, "x").map(|entry| entry.platform.clone().map(|p| p.to_string()))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(chosen(&["linux/arm64", "linux/amd64"]).unwrap(), some("linux/amd64"));
        assert_eq!(chosen(&["linux/amd64/v3", "linux/amd64"]).unwrap(), some("linux/amd64"));
        assert_eq!(chosen(&["linux/amd64/v3"]).unwrap(), some("linux/amd64/v3"));
        assert_eq!(chosen(&["?"]).unwrap(), None);
        let error =
            chosen(&["linux/arm64", "windows/amd64", "linux/arm64/v8"]).unwrap_err().to_string();
        assert!(error.contains("linux/amd64; it offers linux/arm64, windows/amd64"), "{error}");
        assert!(chosen(&[]).unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn attestations_are_not_images() {
        let mut index = index(&["linux/arm64", "linux/amd64"]);
        index.manifests[1].annotations.insert(REFERENCE_TYPE.into(), "attestation-manifest".into());
        assert!(select(&index, &"linux/amd64".parse().unwrap(), "x").is_err());
    }
}
