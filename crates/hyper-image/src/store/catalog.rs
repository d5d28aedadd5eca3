//! The names and images of a store: `index.json` read into memory, and written back whole.
//!
//! An entry of `index.json` is a manifest's descriptor. Its `org.opencontainers.image.ref.name` is a tag
//! (`docker.io/library/busybox:latest`) or a digest (`…@sha256:…`, what the tag stood for when it was pulled); an
//! entry without one keeps an image nobody named. Catalogs are immutable: a change makes a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Image;
use crate::reference::Reference;
use crate::spec::{Descriptor, Document, Index, MAX_DOCUMENT, Manifest, OCI_INDEX, REF_NAME};
use crate::store::layout::{self, Layout};
use crate::store::referrers::Attached;

/// Annotation of an entry: bytes of all file contents, so that opening a store need not read every layer's index.
const CONTENT_BYTES: &str = "io.hyper.image.content-bytes";
/// Annotation of an entry: the image that this one was made from here, step by step.
const PARENT: &str = "io.hyper.image.parent";
/// Annotation of an entry: what was done to the parent, as a digest; the builder's cache looks for it.
const STEP: &str = "io.hyper.image.step";
/// Largest `index.json` that is read, in bytes: some hundred thousand names.
const MAX_INDEX_JSON: u64 = 256 << 20;

/// One name (or none) for one manifest.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: Option<Reference>,
    /// As in `index.json`, with all annotations.
    pub descriptor: Descriptor,
    pub stored: Arc<Stored>,
}

/// A manifest and what it holds together.
#[derive(Debug)]
pub(crate) struct Stored {
    pub digest: Digest,
    pub manifest: Manifest,
    pub config: Arc<ImageConfig>,
    pub raw_config: Arc<[u8]>,
    /// Bytes of all file contents.
    pub size: u64,
    pub origin: Origin,
}

/// Where an image that was made here comes from; empty for one that was pulled or loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub parent: Option<Digest>,
    pub step: Option<Digest>,
}

impl Stored {
    /// The image's id.
    pub(crate) fn id(&self) -> Digest {
        self.manifest.config.digest
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Catalog {
    pub entries: Vec<Entry>,
    /// Entries whose content cannot be read: kept for [`verify`](crate::Store::verify), replaced by the next pull.
    pub broken: Vec<(Descriptor, String)>,
    /// Documents about what is here, sorted.
    pub referrers: Vec<Attached>,
}

impl Catalog {
    /// Reads `index.json`; a store without one is empty.
    pub(crate) fn read(layout: &Layout) -> Result<Self, Error> {
        let path = layout.index();
        if !path.exists() {
            return Ok(Self::default());
        }
        let bytes = layout::read(&path, MAX_INDEX_JSON)?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
        let mut catalog = Self::default();
        let mut known: BTreeMap<Digest, Arc<Stored>> = BTreeMap::new();
        for descriptor in index.manifests {
            match Attached::of_entry(layout, &descriptor) {
                None => {}
                Some(Ok(attached)) => {
                    catalog.referrers.push(attached);
                    continue;
                }
                Some(Err(error)) => {
                    catalog.set_aside(descriptor, error.chain());
                    continue;
                }
            }
            let loaded = match known.get(&descriptor.digest) {
                Some(stored) => Ok(Arc::clone(stored)),
                None => load(layout, &descriptor).map(Arc::new),
            };
            let name = descriptor
                .annotations
                .get(REF_NAME)
                .map(|name| name.parse::<Reference>())
                .transpose();
            match (loaded, name) {
                (Ok(stored), Ok(name)) => {
                    known.insert(stored.digest, Arc::clone(&stored));
                    catalog.entries.push(Entry { name, descriptor, stored });
                }
                (Err(error), _) => catalog.set_aside(descriptor, error.chain()),
                (_, Err(error)) => catalog.set_aside(descriptor, error.to_string()),
            }
        }
        Ok(catalog)
    }

    fn set_aside(&mut self, descriptor: Descriptor, reason: String) {
        tracing::warn!(manifest = %descriptor.digest, reason, "an image of the store cannot be used");
        self.broken.push((descriptor, reason));
    }

    /// Writes `index.json`.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), Error> {
        let entries = self.entries.iter().map(|entry| entry.descriptor.clone());
        let broken = self.broken.iter().map(|(descriptor, _)| descriptor.clone());
        let referrers = self.referrers.iter().map(Attached::entry);
        let index = Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.to_owned()),
            manifests: entries.chain(referrers).chain(broken).collect(),
        };
        let path = layout.index();
        let bytes = serde_json::to_vec(&index)
            .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
        layout.write(&path, &bytes)
    }

    /// Points `name` to a manifest, taking it from whatever had it. An image that lost its last name keeps an entry
    /// without one.
    pub(crate) fn set(
        &mut self,
        name: Option<&Reference>,
        media_type: &str,
        stored: &Arc<Stored>,
        length: u64,
    ) {
        if let Some(name) = name {
            self.take(name);
            self.broken.retain(|(descriptor, _)| {
                descriptor.annotations.get(REF_NAME) != Some(&name.to_string())
            });
        }
        let has_entry = self.entries.iter().any(|entry| entry.stored.id() == stored.id());
        if name.is_none() && has_entry {
            return;
        }
        // The place holder of an image without names goes when it gets one.
        self.entries.retain(|entry| entry.name.is_some() || entry.stored.id() != stored.id());
        let mut annotations = BTreeMap::from([(CONTENT_BYTES.to_owned(), stored.size.to_string())]);
        if let Some(name) = name {
            annotations.insert(REF_NAME.to_owned(), name.to_string());
        }
        let Origin { parent, step } = stored.origin;
        for (key, digest) in [(PARENT, parent), (STEP, step)] {
            annotations.extend(digest.map(|digest| (key.to_owned(), digest.to_string())));
        }
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: stored.digest,
            size: length,
            platform: Some(stored.config.platform()),
            artifact_type: None,
            annotations,
        };
        self.entries.push(Entry { name: name.cloned(), descriptor, stored: Arc::clone(stored) });
        self.entries.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Takes a name away. Its image stays, without a name if that was the last.
    pub(crate) fn take(&mut self, name: &Reference) {
        let Some(at) = self.entries.iter().position(|entry| entry.name.as_ref() == Some(name))
        else {
            return;
        };
        let mut entry = self.entries.remove(at);
        if !self.entries.iter().any(|other| other.stored.id() == entry.stored.id()) {
            entry.name = None;
            entry.descriptor.annotations.remove(REF_NAME);
            self.entries.push(entry);
        }
    }

    /// Forgets an image and all its names.
    pub(crate) fn forget(&mut self, id: &Digest) {
        self.entries.retain(|entry| entry.stored.id() != *id);
    }

    /// Whether an image was made here from this one.
    pub(crate) fn has_children(&self, id: &Digest) -> bool {
        self.entries.iter().any(|entry| entry.stored.origin.parent == Some(*id))
    }

    /// Ids of all images.
    pub(crate) fn ids(&self) -> BTreeSet<Digest> {
        self.entries.iter().map(|entry| entry.stored.id()).collect()
    }

    /// The entries of one image.
    pub(crate) fn entries_of(&self, id: &Digest) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.stored.id() == *id)
    }

    /// The entry of exactly this name.
    pub(crate) fn entry_named(&self, name: &Reference) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name.as_ref() == Some(name))
    }

    /// The image a name points to.
    pub(crate) fn named(&self, name: &Reference) -> Option<Digest> {
        self.entry_named(name).map(|entry| entry.stored.id())
    }

    /// What an id means, as queries return it.
    pub(crate) fn image(&self, id: &Digest) -> Option<Image> {
        let newest = self.entries_of(id).last()?;
        let names = |tagged: bool| {
            let of_kind = self.entries_of(id).filter_map(|entry| entry.name.as_ref());
            let mut names: Vec<String> = of_kind
                .filter(|name| name.tag().is_some() == tagged)
                .map(Reference::familiar)
                .collect();
            names.sort();
            names
        };
        Some(Image {
            id: *id,
            manifest: newest.stored.digest,
            repo_tags: names(true),
            repo_digests: names(false),
            size: newest.stored.size,
            config: Arc::clone(&newest.stored.config),
            parent: newest.stored.origin.parent,
            step: newest.stored.origin.step,
            intermediate: self.entries_of(id).all(|entry| entry.name.is_none())
                && self.has_children(id),
            raw_config: Arc::clone(&newest.stored.raw_config),
        })
    }

    /// Docker's order: a name, else an id or the unique start of one.
    pub(crate) fn resolve(&self, name_or_id: &str) -> Result<Digest, Error> {
        let missing = || Error::NoSuchImage { name: name_or_id.to_owned() };
        let hex = name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id);
        if let Some(id) = Digest::from_hex(hex) {
            return if self.ids().contains(&id) { Ok(id) } else { Err(missing()) };
        }
        let parsed =
            if hex.len() == name_or_id.len() { name_or_id.parse::<Reference>().ok() } else { None };
        if let Some(name) = &parsed
            && let Some(id) = self.find_name(name)
        {
            return Ok(id);
        }
        if hex.is_empty() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            // Neither an id nor a name: say what is wrong with the name.
            return match (parsed, name_or_id.parse::<Reference>()) {
                (None, Err(error)) => Err(error.into()),
                _ => Err(missing()),
            };
        }
        let found: Vec<Digest> =
            self.ids().into_iter().filter(|id| id.hex().starts_with(hex)).collect();
        match found.as_slice() {
            [] => Err(missing()),
            [id] => Ok(*id),
            several => Err(Error::AmbiguousId {
                prefix: name_or_id.to_owned(),
                candidates: several
                    .iter()
                    .take(5)
                    .map(Digest::short)
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// `name:tag@digest` is the image of the digest; the tag is decoration, as in Docker. A digest may also be that
    /// of the platform's own manifest instead of the index's.
    fn find_name(&self, name: &Reference) -> Option<Digest> {
        let Some(digest) = name.digest() else { return self.named(&name.clone().or_latest()) };
        let of_manifest = || {
            let same = |entry: &&Entry| {
                entry.stored.digest == digest
                    && entry.name.as_ref().is_some_and(|other| other.name() == name.name())
            };
            self.entries.iter().find(same).map(|entry| entry.stored.id())
        };
        self.named(&name.at_digest(digest)).or_else(of_manifest)
    }
}

/// Reads a manifest and its config.
fn load(layout: &Layout, descriptor: &Descriptor) -> Result<Stored, Error> {
    let path = layout.blob(&descriptor.digest);
    let bytes = layout::read(&path, MAX_DOCUMENT)?;
    let manifest = match Document::parse(&bytes, &descriptor.media_type) {
        Ok(Document::Manifest(manifest)) if Digest::of(&bytes) == descriptor.digest => manifest,
        _ => {
            return Err(Error::Damaged {
                path,
                reason: "it is not the manifest it was".to_owned(),
            });
        }
    };
    let path = layout.blob(&manifest.config.digest);
    let raw_config: Arc<[u8]> = layout::read(&path, MAX_DOCUMENT)?.into();
    if Digest::of(&raw_config) != manifest.config.digest {
        return Err(Error::Damaged { path, reason: "it is not the config it was".to_owned() });
    }
    let config = serde_json::from_slice(&raw_config)
        .map_err(|error| Error::Damaged { path, reason: error.to_string() })?;
    let size =
        descriptor.annotations.get(CONTENT_BYTES).and_then(|size| size.parse().ok()).unwrap_or(0);
    let digest_in = |key| descriptor.annotations.get(key).and_then(|text| text.parse().ok());
    Ok(Stored {
        digest: descriptor.digest,
        manifest,
        config: Arc::new(config),
        raw_config,
        size,
        origin: Origin { parent: digest_in(PARENT), step: digest_in(STEP) },
    })
}
