//! Checking a store: every blob against its name, every converted layer and assembled root by making it again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use super::catalog::Catalog;
use super::layout::{self, Layout};
use super::sweep::Reachable;
use super::{VerifyReport, roots};
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::layer::read_index;
use crate::unpack::Unpacker;

/// Reads everything. Problems go into the report.
pub(crate) fn verify(
    layout: &Layout,
    catalog: &Catalog,
    unpacker: &Unpacker,
) -> Result<VerifyReport, Error> {
    let limits = &unpacker.limits;
    let mut report = VerifyReport::default();
    for (descriptor, reason) in &catalog.broken {
        report.problems.push(format!("manifest {} cannot be used: {reason}", descriptor.digest));
    }
    for path in layout::list(&layout.blobs())? {
        match (layout::digest_of_name(&path), hash(&path)) {
            (Some(named), Ok(actual)) if named == actual => report.blobs += 1,
            (Some(_), Ok(actual)) => {
                report.problems.push(format!("{} has digest {actual}", path.display()));
            }
            (None, _) => report.problems.push(format!("{} is not a blob", path.display())),
            (_, Err(error)) => report.problems.push(error.chain()),
        }
    }
    let needed = Reachable::of(catalog);
    for digest in needed.blobs.iter().filter(|digest| !layout.blob(digest).exists()) {
        report.problems.push(format!("blob {digest} is missing"));
    }
    let sources = sources(catalog);
    for path in layout::list(&layout.layers())? {
        let Some(diff_id) = layout::digest_of_name(&path) else {
            report.problems.push(format!("{} is not a layer", path.display()));
            continue;
        };
        match check_layer(layout, &diff_id, sources.get(&diff_id), unpacker) {
            Ok(()) => report.layers += 1,
            Err(problem) => report.problems.push(problem),
        }
    }
    for diff_id in needed.layers.iter().filter(|diff_id| !layout.layer(diff_id).exists()) {
        report.problems.push(format!("converted layer {diff_id} is missing"));
    }
    for id in catalog.ids() {
        let Some(entry) = catalog.entries_of(&id).last() else { continue };
        let diff_ids = &entry.stored.config.rootfs.diff_ids;
        if !layout.rootfs(&roots::chain(diff_ids)).exists() {
            // Made when it is asked for.
            continue;
        }
        match roots::is_sound(layout, &id, diff_ids, limits) {
            Ok(true) => report.roots += 1,
            Ok(false) => report
                .problems
                .push(format!("the assembled root of image {id} is not that of its layers")),
            Err(error) => report.problems.push(error.chain()),
        }
    }
    Ok(report)
}

/// The blob each converted layer was made from.
fn sources(catalog: &Catalog) -> BTreeMap<Digest, Digest> {
    let of_entry = |entry: &super::catalog::Entry| {
        let layers: Vec<Digest> =
            entry.stored.manifest.layers.iter().map(|layer| layer.digest).collect();
        entry.stored.config.rootfs.diff_ids.clone().into_iter().zip(layers)
    };
    catalog.entries.iter().flat_map(of_entry).collect()
}

/// Converts the layer again and compares. One that no image refers to is only read.
fn check_layer(
    layout: &Layout,
    diff_id: &Digest,
    source: Option<&Digest>,
    unpacker: &Unpacker,
) -> Result<(), String> {
    let name = format!("converted layer {diff_id}");
    let index = read_index(layout, diff_id, &unpacker.limits).map_err(|error| error.chain())?;
    let Some(source) = source.filter(|source| layout.blob(source).exists()) else { return Ok(()) };
    let failed =
        |error: &dyn std::fmt::Display| format!("{name} cannot be compared with {source}: {error}");
    let open = |path: &Path| File::open(path).map_err(|error| failed(&error));
    let stored = BufReader::with_capacity(256 << 10, open(&layout.blob(source))?);
    let blob = open(&layout.layer(diff_id).join("blob"))?;
    let (again, same) = unpacker.compare(stored, &blob).map_err(|error| failed(&error))?;
    if again.digest != *diff_id {
        return Err(format!("layer {source} unpacks to {}, not to {diff_id}", again.digest));
    }
    if !same || again.index != index {
        return Err(format!("{name} is not what {source} converts to"));
    }
    Ok(())
}

fn hash(path: &Path) -> Result<Digest, Error> {
    let read = File::open(path).and_then(|file| {
        let mut hashing = Hashing::new(io::sink());
        io::copy(&mut BufReader::with_capacity(256 << 10, file), &mut hashing)?;
        Ok(hashing.finish().1)
    });
    read.map_err(|error| layout::failed("read", path, error))
}
