//! Garbage: what no image refers to and nobody has leased.
//!
//! The caller holds the writer's lock, so no new reference can appear; leases are asked for each thing at the moment
//! it is taken out of its place.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::catalog::Catalog;
use super::layout::{self, Layout};
use super::lease::Leases;
use super::roots;
use crate::digest::Digest;
use crate::error::Error;

/// Everything the images of a catalog need.
#[derive(Debug, Default)]
pub(crate) struct Reachable {
    pub blobs: BTreeSet<Digest>,
    /// By diff id.
    pub layers: BTreeSet<Digest>,
    /// By chain.
    pub roots: BTreeSet<Digest>,
}

impl Reachable {
    pub(crate) fn of(catalog: &Catalog) -> Self {
        let mut reachable = Self::default();
        for entry in &catalog.entries {
            let manifest = &entry.stored.manifest;
            reachable.blobs.insert(entry.stored.digest);
            reachable.blobs.insert(manifest.config.digest);
            reachable.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
            // What the name stood for: the index, if there was one.
            reachable.blobs.extend(entry.name.as_ref().and_then(crate::Reference::digest));
            let diff_ids = &entry.stored.config.rootfs.diff_ids;
            reachable.layers.extend(diff_ids);
            reachable.roots.insert(roots::chain(diff_ids));
        }
        for attached in &catalog.referrers {
            reachable.blobs.insert(attached.descriptor.digest);
            reachable.blobs.extend(attached.parts().iter().map(|part| part.digest));
        }
        for (descriptor, _) in &catalog.broken {
            reachable.blobs.insert(descriptor.digest);
        }
        reachable
    }
}

/// Removes everything not needed by `catalog` that is older than `grace`.
pub(crate) fn sweep(
    layout: &Layout,
    catalog: &Catalog,
    leases: &Leases,
    grace: Duration,
) -> Result<(), Error> {
    let reachable = Reachable::of(catalog);
    let kinds = [
        (layout.roots(), &reachable.roots),
        (layout.layers(), &reachable.layers),
        (layout.blobs(), &reachable.blobs),
    ];
    for (directory, needed) in kinds {
        for path in layout::list(&directory)? {
            let Some(digest) = layout::digest_of_name(&path) else { continue };
            if !needed.contains(&digest) && !is_young(&path, grace) {
                discard(layout, leases, &digest, &path)?;
            }
        }
    }
    Ok(())
}

/// Removes what `before` needed and `after` does not; returns the diff ids of the layers removed.
pub(crate) fn release(
    layout: &Layout,
    leases: &Leases,
    before: &Catalog,
    after: &Catalog,
) -> Result<Vec<Digest>, Error> {
    let (before, after) = (Reachable::of(before), Reachable::of(after));
    for chain in before.roots.difference(&after.roots) {
        discard(layout, leases, chain, &layout.rootfs(chain))?;
    }
    let mut removed = Vec::new();
    for diff_id in before.layers.difference(&after.layers) {
        if discard(layout, leases, diff_id, &layout.layer(diff_id))? {
            removed.push(*diff_id);
        }
    }
    for digest in before.blobs.difference(&after.blobs) {
        discard(layout, leases, digest, &layout.blob(digest))?;
    }
    Ok(removed)
}

/// Removes a blob that was put and turned out to be of no use, unless something else has it.
pub(crate) fn forget(
    layout: &Layout,
    leases: &Leases,
    catalog: &Catalog,
    blob: &Digest,
) -> Result<(), Error> {
    if !Reachable::of(catalog).blobs.contains(blob) {
        discard(layout, leases, blob, &layout.blob(blob))?;
    }
    Ok(())
}

/// Removes one thing unless it is leased or not there.
fn discard(layout: &Layout, leases: &Leases, digest: &Digest, path: &Path) -> Result<bool, Error> {
    if !path.exists() {
        return Ok(false);
    }
    // A directory is emptied after the leases are unlocked again: that may take long.
    let grave = leases.unless_held(digest, || bury(layout, path)).transpose()?;
    Ok(grave.is_some())
}

/// Removes what an earlier process left in `ingest/`, but for blobs that a pull may want to go on with.
pub(crate) fn clean_ingest(layout: &Layout, grace: Duration) -> Result<(), Error> {
    for path in layout::list(&layout.ingest())? {
        let resumable = path.extension().is_some_and(|extension| extension == "partial");
        if resumable && is_young(&path, grace) {
            continue;
        }
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| layout::failed("remove", &path, error))?;
    }
    Ok(())
}

/// Removes what came of blobs that nobody is fetching now.
pub(crate) fn drop_partials(layout: &Layout, leases: &Leases) -> Result<(), Error> {
    for path in layout::list(&layout.ingest())? {
        let Some(digest) = layout::digest_of_partial(&path) else { continue };
        let removed = leases.unless_held(&digest, || fs::remove_file(&path)).unwrap_or(Ok(()));
        removed.map_err(|error| layout::failed("remove", &path, error))?;
    }
    Ok(())
}

/// Out of its place by a rename; gone when the result is dropped.
fn bury(layout: &Layout, path: &Path) -> Result<tempfile::TempDir, Error> {
    let grave = layout.scratch_directory()?;
    match fs::rename(path, grave.path().join("it")) {
        Ok(()) => Ok(grave),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(grave),
        Err(error) => Err(layout::failed("remove", path, error)),
    }
}

/// Changed within `grace`. A clock that jumped makes things young, never old.
fn is_young(path: &Path, grace: Duration) -> bool {
    if grace.is_zero() {
        return false;
    }
    let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
    changed
        .is_ok_and(|changed| SystemTime::now().duration_since(changed).is_ok_and(|age| age < grace))
}
