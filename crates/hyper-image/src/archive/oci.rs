//! OCI image layouts: `index.json` names manifests, everything else is a blob named by its digest.
//!
//! Names: `io.containerd.image.name` if there is one, else `org.opencontainers.image.ref.name` if it is a whole name;
//! a bare word there is a tag without a repository and names nothing. `docker save` also writes `manifest.json`, whose
//! tags are taken when the index has no names.

use crate::digest::Digest;
use crate::error::Error;
use crate::platform::Platform;
use crate::pull::{check_manifest, parse_document, select};
use crate::reference::Reference;
use crate::spec::{Descriptor, Document, Index, MAX_DOCUMENT, Manifest, REF_NAME};
use crate::store::referrers::{Attached, MAX_BYTES, MAX_PARTS, MAX_REFERRERS};
use crate::store::{Inner, Lease};

use super::contents::{Contents, Found as File};
use super::{Found, docker};

/// The name containerd and Docker write.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Most manifests of one layout.
const MAX_MANIFESTS: usize = 10_000;

/// Puts all images' blobs into the store.
pub(super) fn images(
    inner: &Inner,
    contents: &Contents,
    lease: &Lease,
) -> Result<(Vec<Found>, Vec<Attached>), Error> {
    let bytes = contents.require("index.json")?.read(MAX_DOCUMENT)?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| Error::Malformed {
        what: "index.json of the archive".to_owned(),
        reason: error.to_string(),
    })?;
    if index.manifests.len() > MAX_MANIFESTS {
        return Err(Error::Archive {
            reason: format!("it lists more than {MAX_MANIFESTS} images"),
        });
    }
    let tags = docker::tags(contents)?;
    let attached = referrers(inner, contents, lease, &index)?;
    let host = Platform::host();
    let mut found: Vec<Found> = Vec::new();
    for entry in &index.manifests {
        if attached.iter().any(|other| other.descriptor.digest == entry.digest) {
            continue;
        }
        // Side by side for several platforms, as skopeo writes them with --all.
        let foreign =
            entry.platform.as_ref().is_some_and(|platform| host.accepts(platform).is_none());
        if foreign && index.manifests.len() > 1 {
            continue;
        }
        let mut image = image(inner, contents, lease, entry, &host)?;
        if image.names.is_empty() {
            let config = image.manifest.config.digest.hex();
            image.names = tags
                .iter()
                .filter(|(path, _)| path.contains(&config))
                .flat_map(|(_, names)| names.clone())
                .collect();
        }
        match found.iter_mut().find(|other| other.bytes == image.bytes) {
            Some(same) => same.names.extend(image.names),
            None => found.push(image),
        }
    }
    if found.is_empty() && !index.manifests.is_empty() {
        select(&index, &host, "the archive")?;
    }
    Ok((found, attached))
}

/// The documents about images of the layout: entries without a name that have a subject.
fn referrers(
    inner: &Inner,
    contents: &Contents,
    lease: &Lease,
    index: &Index,
) -> Result<Vec<Attached>, Error> {
    let mut found: Vec<Attached> = Vec::new();
    for entry in &index.manifests {
        let named = [IMAGE_NAME, REF_NAME].iter().any(|name| entry.annotations.contains_key(*name));
        if named || contents.find(&blob_name(&entry.digest))?.is_none() {
            continue;
        }
        let bytes = document(contents, entry)?;
        let Some(attached) = Attached::parse(&bytes, &entry.media_type) else { continue };
        let of_subject = found.iter().filter(|other| other.subject == attached.subject).count();
        let parts = attached.parts();
        let size = parts.iter().map(|part| part.size).fold(0, u64::saturating_add);
        if of_subject >= MAX_REFERRERS || parts.len() > MAX_PARTS || size > MAX_BYTES {
            let reason = format!(
                "referrer {} goes over a limit: {MAX_REFERRERS} for an image, {MAX_PARTS} parts, \
                 {MAX_BYTES} bytes",
                entry.digest
            );
            return Err(Error::Archive { reason });
        }
        for part in parts {
            let file = blob(contents, part)?;
            file.store(&inner.layout, lease, Some(part.digest))?;
        }
        lease.keep(entry.digest);
        inner.layout.write_blob(&bytes)?;
        found.push(attached);
    }
    Ok(found)
}

fn image(
    inner: &Inner,
    contents: &Contents,
    lease: &Lease,
    entry: &Descriptor,
    host: &Platform,
) -> Result<Found, Error> {
    let name = |annotation: &str| {
        entry.annotations.get(annotation).filter(|name| name.contains([':', '/']))
    };
    let shown = name(IMAGE_NAME)
        .or_else(|| name(REF_NAME))
        .cloned()
        .unwrap_or_else(|| entry.digest.to_string());
    let names = match name(IMAGE_NAME).or_else(|| name(REF_NAME)) {
        // A reference by digest is no tag.
        Some(name) => match name.parse::<Reference>()? {
            reference if reference.tag().is_none() && reference.digest().is_some() => Vec::new(),
            reference => vec![reference.without_digest().or_latest()],
        },
        None => Vec::new(),
    };
    let (mut bytes, mut media_type) = (document(contents, entry)?, entry.media_type.clone());
    if let Document::Index(index) = parse_document(&bytes, &media_type, &shown)? {
        let chosen = select(&index, host, &shown)?;
        (bytes, media_type) = (document(contents, chosen)?, chosen.media_type.clone());
    }
    let Document::Manifest(manifest) = parse_document(&bytes, &media_type, &shown)? else {
        return Err(Error::NotAnImage {
            what: shown,
            reason: "it is an index of indexes".to_owned(),
        });
    };
    check_manifest(&manifest, &shown)?;
    store_blobs(inner, contents, lease, &manifest)?;
    lease.keep(Digest::of(&bytes));
    let media_type = manifest.media_type.clone().unwrap_or(media_type);
    Ok(Found { manifest, bytes, media_type, names })
}

fn store_blobs(
    inner: &Inner,
    contents: &Contents,
    lease: &Lease,
    manifest: &Manifest,
) -> Result<(), Error> {
    for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
        let file = blob(contents, descriptor)?;
        file.store(&inner.layout, lease, Some(descriptor.digest))?;
    }
    Ok(())
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A small blob, checked.
fn document(contents: &Contents, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    let bytes = blob(contents, descriptor)?.read(MAX_DOCUMENT)?;
    let actual = Digest::of(&bytes);
    if actual != descriptor.digest {
        let what = format!("`{}` of the archive", descriptor.digest);
        return Err(Error::DigestMismatch { what, expected: descriptor.digest, actual });
    }
    Ok(bytes)
}

fn blob(contents: &Contents, descriptor: &Descriptor) -> Result<File, Error> {
    let file = contents.require(&blob_name(&descriptor.digest))?;
    if file.size != descriptor.size {
        let what = format!("`{}` of the archive", descriptor.digest);
        return Err(Error::SizeMismatch { what, expected: descriptor.size, actual: file.size });
    }
    Ok(file)
}
