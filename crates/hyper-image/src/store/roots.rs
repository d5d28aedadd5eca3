//! Assembled roots: `rootfs/CHAIN/{meta.erofs,rootfs.json}`.
//!
//! A chain is the digest of the diff ids and of what else the result depends on, so images with the same layers share
//! one. The metadata is a function of the layers' indexes: it can be made again at any time and is checked by making
//! it again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hyper_erofs::{BlobRef, ImageLayout, ImageOptions, LayerIndex, Limits, merge};
use hyper_task::rootfs::{DiskFile, RootfsImage};

use super::layout::{self, Layout};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Rootfs;
use crate::layer::read_index;
use crate::unpack::Compare;

/// To be changed when the same layers give other metadata.
const FORMAT: &str = "hyper-rootfs-1";
/// Largest `rootfs.json`, in bytes.
const MAX_JSON: u64 = 4 << 20;

/// The name of the root of some layers, bottom first.
pub(crate) fn chain(diff_ids: &[Digest]) -> Digest {
    let mut text = FORMAT.to_owned();
    for diff_id in diff_ids {
        text.push('\n');
        text.push_str(&diff_id.hex());
    }
    Digest::of(text.as_bytes())
}

/// An assembled root, if it is there, whole, and where its JSON says.
pub(crate) fn find(layout: &Layout, diff_ids: &[Digest]) -> Option<Rootfs> {
    let directory = layout.rootfs(&chain(diff_ids));
    let path = directory.join("rootfs.json");
    let image: RootfsImage = serde_json::from_slice(&layout::read(&path, MAX_JSON).ok()?).ok()?;
    let whole = |file: &DiskFile| {
        std::fs::metadata(&file.path).is_ok_and(|found| found.len() == file.bytes)
    };
    let ours = image.metadata.path == directory.join("meta.erofs")
        && image.layers.iter().all(|layer| layer.path.starts_with(layout.layers()));
    (ours && whole(&image.metadata) && image.layers.iter().all(whole))
        .then_some(Rootfs { path, image })
}

/// Assembles a root of converted layers.
pub(crate) fn assemble(
    layout: &Layout,
    id: &Digest,
    diff_ids: &[Digest],
    limits: &Limits,
) -> Result<Rootfs, Error> {
    let indexes = read_indexes(layout, diff_ids, limits)?;
    let target = layout.rootfs(&chain(diff_ids));
    let scratch = layout.scratch_directory()?;
    let metadata = scratch.path().join("meta.erofs");
    let file =
        File::create_new(&metadata).map_err(|error| layout::failed("create", &metadata, error))?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    let image = write(&mut out, id, diff_ids, &indexes, &metadata)?;
    let synced = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| {
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.sync_data()
    });
    synced.map_err(|error| layout::full("write", &metadata, image.meta_len, error))?;
    layout.charge().reach(image.meta_len)?;
    let described = describe(layout, &target, diff_ids, &image);
    let json = serde_json::to_vec(&described)
        .map_err(|error| Error::Rootfs { image: *id, source: error.into() })?;
    layout.write(&scratch.path().join("rootfs.json"), &json)?;
    // One that is there but not whole (its files were moved or cut) gives way.
    layout.discard(&target)?;
    layout.publish_directory(scratch, &target)?;
    Ok(Rootfs { path: target.join("rootfs.json"), image: described })
}

/// Makes an assembled root again and says whether it is the same.
pub(crate) fn is_sound(
    layout: &Layout,
    id: &Digest,
    diff_ids: &[Digest],
    limits: &Limits,
) -> Result<bool, Error> {
    let indexes = read_indexes(layout, diff_ids, limits)?;
    let directory = layout.rootfs(&chain(diff_ids));
    let path = directory.join("meta.erofs");
    let file = File::open(&path).map_err(|error| layout::failed("open", &path, error))?;
    let mut compare = Compare::new(BufReader::new(file));
    let image = write(&mut compare, id, diff_ids, &indexes, &path)?;
    let same = compare.finish().map_err(|error| layout::failed("read", &path, error))?;
    let found = find(layout, diff_ids).map(|rootfs| rootfs.image);
    Ok(same && found == Some(describe(layout, &directory, diff_ids, &image)))
}

/// Bytes of all file contents of some converted layers.
pub(crate) fn content_bytes(
    layout: &Layout,
    diff_ids: &[Digest],
    limits: &Limits,
) -> Result<u64, Error> {
    let indexes = read_indexes(layout, diff_ids, limits)?;
    Ok(indexes.iter().map(LayerIndex::content_bytes).fold(0, u64::saturating_add))
}

fn read_indexes(
    layout: &Layout,
    diff_ids: &[Digest],
    limits: &Limits,
) -> Result<Vec<LayerIndex>, Error> {
    diff_ids.iter().map(|diff_id| read_index(layout, diff_id, limits)).collect()
}

fn write(
    out: impl io::Write,
    id: &Digest,
    diff_ids: &[Digest],
    indexes: &[LayerIndex],
    path: &Path,
) -> Result<ImageLayout, Error> {
    let failed = |source: crate::error::Source| Error::Rootfs { image: *id, source };
    let tree = merge(indexes).map_err(|error| failed(error.into()))?;
    let blob = |(diff_id, index): (&Digest, &LayerIndex)| BlobRef {
        id: diff_id.to_string(),
        len: index.blob_len(),
    };
    let blobs: Vec<BlobRef> = diff_ids.iter().zip(indexes).map(blob).collect();
    tree.write_metadata(out, &blobs, &ImageOptions::default()).map_err(|error| match error {
        hyper_erofs::ImageError::Write(source) => layout::full("write", path, 0, source),
        other => failed(other.into()),
    })
}

/// The files of an assembled root, in the order of its device table.
fn describe(
    layout: &Layout,
    directory: &Path,
    diff_ids: &[Digest],
    image: &ImageLayout,
) -> RootfsImage {
    let layers = image.blobs.iter().filter_map(|blob| {
        let path = layout.layer(diff_ids.get(blob.layer)?).join("blob");
        Some(DiskFile { path, bytes: blob.len })
    });
    RootfsImage {
        metadata: DiskFile { path: directory.join("meta.erofs"), bytes: image.meta_len },
        layers: layers.collect(),
    }
}
