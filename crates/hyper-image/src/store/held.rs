//! What of an image is here to be given away: its own manifest, and the index it came with if all of that is here.

use std::collections::BTreeMap;

use super::catalog::{Catalog, Entry};
use super::layout::{self, Layout};
use super::lease::Lease;
use super::referrers::Attached;
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use crate::spec::{self, MAX_DOCUMENT, Manifest};

/// A manifest or index, byte for byte.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// An image with everything it needs.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// What its name stands for: the index if there is a whole one, else the manifest.
    pub top: Document,
    /// The manifests of the index, or none.
    pub children: Vec<Document>,
    /// The manifest for this host's kernel, which is `top` or one of `children`.
    pub manifest: Manifest,
    /// Configs and layers with their sizes.
    pub blobs: BTreeMap<Digest, u64>,
    /// Layers of all manifests, bottom first.
    pub layers: Vec<Digest>,
    /// Documents about any of the manifests.
    pub referrers: Vec<(Attached, Document)>,
}

impl Held {
    /// Looks at what is here for a catalog's entry. All of it is leased. Blocking.
    pub(crate) fn of(
        layout: &Layout,
        catalog: &Catalog,
        entry: &Entry,
        lease: &Lease,
    ) -> Result<Self, Error> {
        let own = read(layout, entry.stored.digest, &entry.descriptor.media_type, lease)?;
        let manifest = entry.stored.manifest.clone();
        let found = whole_index(layout, catalog, entry, lease);
        let (top, children, manifests) = match found {
            Some((index, children, manifests)) => (index, children, manifests),
            None => (own, Vec::new(), vec![manifest.clone()]),
        };
        let mut held = Self {
            top,
            children,
            manifest,
            blobs: BTreeMap::new(),
            layers: Vec::new(),
            referrers: Vec::new(),
        };
        let subjects: Vec<Digest> =
            held.children.iter().chain([&held.top]).map(|document| document.digest).collect();
        for attached in subjects.iter().flat_map(|subject| catalog.referrers_of(subject)) {
            let document = attached.document(layout, lease)?;
            held.referrers.push((attached.clone(), document));
        }
        for manifest in &manifests {
            for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
                lease.keep(part.digest);
                held.blobs.insert(part.digest, part.size);
            }
            for layer in &manifest.layers {
                if !held.layers.contains(&layer.digest) {
                    held.layers.push(layer.digest);
                }
            }
        }
        for (digest, size) in &held.blobs {
            let path = layout.blob(digest);
            let found = std::fs::metadata(&path)
                .map_err(|error| layout::failed("examine", &path, error))?
                .len();
            if found != *size {
                let reason = format!("it has {found} bytes, its manifest says {size}");
                return Err(Error::Damaged { path, reason });
            }
        }
        Ok(held)
    }
}

/// The index that an image was pulled by, if all that it lists is here too.
fn whole_index(
    layout: &Layout,
    catalog: &Catalog,
    entry: &Entry,
    lease: &Lease,
) -> Option<(Document, Vec<Document>, Vec<Manifest>)> {
    let same = catalog.entries.iter().filter(|other| other.stored.digest == entry.stored.digest);
    let mut digests: Vec<Digest> = same
        .filter_map(|other| other.name.as_ref().and_then(Reference::digest))
        .filter(|digest| *digest != entry.stored.digest)
        .collect();
    digests.dedup();
    digests.into_iter().find_map(|digest| {
        let document = read(layout, digest, spec::OCI_INDEX, lease).ok()?;
        let Ok(spec::Document::Index(index)) =
            spec::Document::parse(&document.bytes, &document.media_type)
        else {
            return None;
        };
        let media_type = index.media_type.clone().unwrap_or(document.media_type);
        let mut children = Vec::new();
        let mut manifests = Vec::new();
        for child in &index.manifests {
            let found = read(layout, child.digest, &child.media_type, lease).ok()?;
            let Ok(spec::Document::Manifest(manifest)) =
                spec::Document::parse(&found.bytes, &found.media_type)
            else {
                return None;
            };
            let mut parts = std::iter::once(&manifest.config).chain(&manifest.layers);
            if !parts.all(|part| layout.blob(&part.digest).exists()) {
                return None;
            }
            children.push(found);
            manifests.push(manifest);
        }
        let listed = children.iter().any(|child| child.digest == entry.stored.digest);
        listed.then_some((Document { media_type, ..document }, children, manifests))
    })
}

fn read(
    layout: &Layout,
    digest: Digest,
    media_type: &str,
    lease: &Lease,
) -> Result<Document, Error> {
    lease.keep(digest);
    let path = layout.blob(&digest);
    let bytes = layout::read(&path, MAX_DOCUMENT)?;
    if Digest::of(&bytes) != digest {
        return Err(Error::Damaged { path, reason: "it is not what its name says".to_owned() });
    }
    Ok(Document { digest, media_type: media_type.to_owned(), bytes })
}
