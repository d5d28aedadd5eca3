//! Manifests, indexes and descriptors of OCI image-spec 1.1 and Docker's image manifest v2 schema 2.
//!
//! Own types rather than `oci-spec`'s: both dialects share them, annotations are sorted (what we write is the same
//! bytes every time), and an unknown media type is a value to be refused by name, not a parse error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Annotation of an index entry that holds its name (image-spec `annotations.md`).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Largest manifest, index or config that is read, in bytes. Registries refuse manifests over 4 MiB; configs
/// with long histories stay far below it too.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;
/// Most layers of one image. overlayfs stops at 500; Docker at 127.
pub(crate) const MAX_LAYERS: usize = 500;

/// A reference to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Of a referrer, in a list of referrers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

#[cfg(test)]
impl Descriptor {
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What sort of document it is, if it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
    /// What it is about, if it is a referrer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Images for several platforms, or the names of an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
}

/// What a manifest document turns out to be.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one lives for a moment, and most are manifests")]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
    /// Docker's manifest v1, whose layers have no verifiable digests.
    Schema1,
    /// Something else; the text says what.
    Other(String),
}

impl Document {
    /// Judges bytes by their own fields first and by the given media type second: the content is covered by the
    /// digest, the header is not.
    pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            #[serde(default)]
            schema_version: u32,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = serde_json::from_slice(bytes)?;
        if probe.schema_version == 1 || probe.fs_layers.is_some() {
            return Ok(Self::Schema1);
        }
        let declared = probe.media_type.as_deref().unwrap_or(media_type);
        if probe.manifests.is_some() && (probe.layers.is_some() || probe.config.is_some()) {
            // CVE-2021-41190: a document that can be read as both is neither.
            return Ok(Self::Other("a document that is both an index and a manifest".to_owned()));
        }
        match declared {
            OCI_INDEX | DOCKER_LIST => serde_json::from_slice(bytes).map(Self::Index),
            OCI_MANIFEST | DOCKER_MANIFEST => serde_json::from_slice(bytes).map(Self::Manifest),
            _ if probe.manifests.is_some() => serde_json::from_slice(bytes).map(Self::Index),
            _ if probe.config.is_some() => serde_json::from_slice(bytes).map(Self::Manifest),
            other => Ok(Self::Other(format!("media type `{other}`"))),
        }
    }
}

/// What a layer's media type says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerType {
    /// A tar stream; its compression is read from its first bytes, since media types are often wrong about it.
    Tar,
    /// Not to be distributed: its content is somewhere else.
    Foreign,
    /// Not a layer of a Linux root file system.
    Unknown,
}

pub(crate) fn layer_type(media_type: &str) -> LayerType {
    const FOREIGN: [&str; 2] = [
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ];
    let base = media_type
        .strip_suffix("+gzip")
        .or_else(|| media_type.strip_suffix(".gzip"))
        .or_else(|| media_type.strip_suffix("+zstd"))
        .or_else(|| media_type.strip_suffix(".zstd"))
        // What archives with such layers are given here; no registry has them.
        .or_else(|| media_type.strip_suffix("+bzip2"))
        .or_else(|| media_type.strip_suffix("+xz"))
        .unwrap_or(media_type);
    match base {
        OCI_LAYER | DOCKER_LAYER => LayerType::Tar,
        base if FOREIGN.contains(&base) => LayerType::Foreign,
        _ => LayerType::Unknown,
    }
}

/// The OCI name of a layer's media type, for manifests made here of layers that came in Docker's.
pub(crate) fn oci_layer_type(media_type: &str) -> String {
    match media_type.strip_prefix(DOCKER_LAYER) {
        None => media_type.to_owned(),
        Some(".gzip") => format!("{OCI_LAYER}+gzip"),
        Some(".zstd" | "+zstd") => format!("{OCI_LAYER}+zstd"),
        Some(_) => OCI_LAYER.to_owned(),
    }
}

/// `null` for a missing list or map, as some writers in Go produce it.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let digest = Digest::of(b"");
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":0}},"layers":null}}"#
        );
        let parse = |text: &str, media| Document::parse(text.as_bytes(), media).unwrap();
        assert!(matches!(parse(&manifest, OCI_MANIFEST), Document::Manifest(_)));
        assert!(matches!(parse(&manifest, ""), Document::Manifest(_)));
        assert!(matches!(parse(r#"{"schemaVersion":2,"manifests":[]}"#, ""), Document::Index(_)));
        assert!(matches!(parse(r#"{"schemaVersion":1,"fsLayers":[]}"#, ""), Document::Schema1));
        assert!(matches!(parse("{}", "text/html"), Document::Other(_)));
        let both = manifest.replace("\"layers\":null", "\"manifests\":[]");
        assert!(matches!(parse(&both, OCI_INDEX), Document::Other(_)));
        assert!(Document::parse(b"<html>", "text/html").is_err());
    }

    #[test]
    fn layer_types() {
        for suffix in ["", "+gzip", "+zstd"] {
            assert_eq!(layer_type(&format!("{OCI_LAYER}{suffix}")), LayerType::Tar);
        }
        assert_eq!(layer_type("application/vnd.docker.image.rootfs.diff.tar.gzip"), LayerType::Tar);
        assert_eq!(
            layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            LayerType::Foreign
        );
        assert_eq!(
            layer_type("application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
            LayerType::Unknown
        );
    }
}
