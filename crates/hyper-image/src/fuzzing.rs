//! What the fuzz targets call: parsers of hostile bytes, with what must hold of their results.

use crate::config::ImageConfig;
use crate::platform::Platform;
use crate::pull::{check_manifest, select};
use crate::reference::Reference;
use crate::registry::parse_challenge;
use crate::spec::{Document, MAX_LAYERS};

/// A manifest or index, in every media type it may be given as.
pub fn document(bytes: &[u8]) {
    for media_type in [crate::spec::OCI_MANIFEST, crate::spec::OCI_INDEX, ""] {
        match Document::parse(bytes, media_type) {
            Ok(Document::Manifest(manifest)) => {
                if check_manifest(&manifest, "x").is_ok() {
                    assert!(manifest.layers.len() <= MAX_LAYERS);
                    assert_eq!(manifest.schema_version, 2);
                }
            }
            Ok(Document::Index(index)) => {
                if let Ok(chosen) = select(&index, &Platform::host(), "x") {
                    assert!(index.manifests.contains(chosen));
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// An image's config: what is read and written again reads the same.
pub fn config(bytes: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(bytes) {
        let again = serde_json::to_vec(&config).ok();
        let again = again.and_then(|bytes| serde_json::from_slice::<ImageConfig>(&bytes).ok());
        assert_eq!(again.as_ref(), Some(&config));
    }
}

/// A reference (whose canonical and familiar forms mean the same), a challenge.
pub fn text(text: &str) {
    if let Ok(reference) = text.parse::<Reference>() {
        for form in [reference.to_string(), reference.familiar()] {
            assert_eq!(form.parse::<Reference>().ok().as_ref(), Some(&reference), "{form}");
        }
    }
    parse_challenge(text);
}
