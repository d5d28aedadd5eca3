//! Referrers: documents about an image (signatures, bills of materials, attestations) that name it as their subject.
//!
//! They are entries of `index.json` without a name, as OCI layouts have them, and live as long as their subject has a
//! name or an image. Source: OCI distribution-spec 1.1, "Listing Referrers".

use std::collections::BTreeSet;

use super::catalog::Catalog;
use super::layout::{self, Layout};
use super::lease::Lease;
use super::{Document, Inner, Store};
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use crate::spec::{self, Descriptor, MAX_DOCUMENT, Manifest};

/// Annotation of an entry of `index.json`: what the referrer is about.
const SUBJECT: &str = "io.hyper.image.subject";
/// Most referrers of one subject that are kept.
pub(crate) const MAX_REFERRERS: usize = 64;
/// Most parts of one referrer.
pub(crate) const MAX_PARTS: usize = 32;
/// Most bytes of all parts of the referrers of one subject that are fetched.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub subject: Digest,
    /// As a registry lists it, with its artifact type and annotations.
    pub descriptor: Descriptor,
    pub manifest: Manifest,
}

/// A document about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// What it is about: the image's manifest, or the index it was pulled by.
    pub subject: Digest,
    /// Of its manifest.
    pub digest: Digest,
    /// What sort of document it is, as its author says.
    pub artifact_type: String,
    /// Bytes of its parts.
    pub size: u64,
    /// As its author wrote them.
    pub annotations: std::collections::BTreeMap<String, String>,
}

impl Attached {
    /// A document that names its subject; `None` if it is none.
    pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Option<Self> {
        let Ok(spec::Document::Manifest(manifest)) = spec::Document::parse(bytes, media_type)
        else {
            return None;
        };
        let subject = manifest.subject.as_ref()?.digest;
        let artifact_type =
            manifest.artifact_type.clone().unwrap_or_else(|| manifest.config.media_type.clone());
        let descriptor = Descriptor {
            media_type: manifest.media_type.clone().unwrap_or_else(|| media_type.to_owned()),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            artifact_type: Some(artifact_type),
            annotations: manifest.annotations.clone(),
        };
        Some(Self { subject, descriptor, manifest })
    }

    /// Config and layers, each once.
    pub(crate) fn parts(&self) -> Vec<&Descriptor> {
        let mut seen = BTreeSet::new();
        let all = std::iter::once(&self.manifest.config).chain(&self.manifest.layers);
        all.filter(|part| seen.insert(part.digest)).collect()
    }

    fn public(&self) -> Referrer {
        Referrer {
            subject: self.subject,
            digest: self.descriptor.digest,
            artifact_type: self.descriptor.artifact_type.clone().unwrap_or_default(),
            size: self.parts().iter().map(|part| part.size).fold(0, u64::saturating_add),
            annotations: self.manifest.annotations.clone(),
        }
    }

    /// As an entry of the store's index.
    pub(crate) fn entry(&self) -> Descriptor {
        let mut entry = self.descriptor.clone();
        entry.annotations.insert(SUBJECT.to_owned(), self.subject.to_string());
        entry
    }

    /// From an entry of the store's index; `None` if the entry is an image's.
    pub(crate) fn of_entry(layout: &Layout, entry: &Descriptor) -> Option<Result<Self, Error>> {
        entry.annotations.get(SUBJECT)?;
        let path = layout.blob(&entry.digest);
        let read = || {
            let bytes = layout::read(&path, MAX_DOCUMENT)?;
            let parsed = Self::parse(&bytes, &entry.media_type);
            parsed.filter(|found| found.descriptor.digest == entry.digest).ok_or_else(|| {
                let reason = "it is not the referrer it was".to_owned();
                Error::Damaged { path: path.clone(), reason }
            })
        };
        Some(read())
    }

    /// What is to be pushed or saved. Leased.
    pub(crate) fn document(&self, layout: &Layout, lease: &Lease) -> Result<Document, Error> {
        lease.keep(self.descriptor.digest);
        for part in self.parts() {
            lease.keep(part.digest);
        }
        let path = layout.blob(&self.descriptor.digest);
        let bytes = layout::read(&path, MAX_DOCUMENT)?;
        let media_type = self.descriptor.media_type.clone();
        Ok(Document { digest: self.descriptor.digest, media_type, bytes })
    }
}

impl Catalog {
    /// What documents can be about: every manifest here, and the indexes they came with.
    pub(crate) fn subjects(&self) -> BTreeSet<Digest> {
        let of_entry = |entry: &super::Entry| {
            [Some(entry.stored.digest), entry.name.as_ref().and_then(Reference::digest)]
        };
        self.entries.iter().flat_map(of_entry).flatten().collect()
    }

    /// Adds what is not known yet.
    pub(crate) fn attach(&mut self, found: Vec<Attached>) {
        for attached in found {
            let known = |other: &Attached| other.descriptor.digest == attached.descriptor.digest;
            if !self.referrers.iter().any(known) {
                self.referrers.push(attached);
            }
        }
        self.referrers.sort_by_key(|attached| (attached.subject, attached.descriptor.digest));
    }

    /// Forgets those whose subject is gone.
    pub(crate) fn detach(&mut self) {
        if !self.referrers.is_empty() {
            let subjects = self.subjects();
            self.referrers.retain(|attached| subjects.contains(&attached.subject));
        }
    }

    /// Those of a subject.
    pub(crate) fn referrers_of(&self, subject: &Digest) -> impl Iterator<Item = &Attached> {
        self.referrers.iter().filter(move |attached| attached.subject == *subject)
    }
}

impl Inner {
    /// Adds referrers whose blobs are all in the store. Blocking; the caller leases them.
    pub(crate) fn attach(&self, found: Vec<Attached>) -> Result<(), Error> {
        let catalog = self.catalog();
        let new: Vec<Attached> = found
            .into_iter()
            .filter(|attached| {
                let same = |other: &Attached| other.descriptor.digest == attached.descriptor.digest;
                !catalog.referrers.iter().any(same)
            })
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        self.change(
            |catalog| {
                catalog.attach(new);
                Ok(())
            },
            |_, _, _, ()| Ok(()),
        )
    }
}

impl Store {
    /// The documents about an image that came with it.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::AmbiguousId`], [`Error::Reference`]
    pub fn referrers(&self, name_or_id: &str) -> Result<Vec<Referrer>, Error> {
        let catalog = self.inner.catalog();
        let id = catalog.resolve(name_or_id)?;
        let mut subjects = BTreeSet::new();
        for entry in catalog.entries_of(&id) {
            subjects.insert(entry.stored.digest);
            subjects.extend(entry.name.as_ref().and_then(Reference::digest));
        }
        let of_image = |attached: &&Attached| subjects.contains(&attached.subject);
        Ok(catalog.referrers.iter().filter(of_image).map(Attached::public).collect())
    }
}
