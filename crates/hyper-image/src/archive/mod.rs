//! Images from archives: docker-archive (`docker save`) and OCI layouts, as tar streams or directories.
//!
//! ```text
//!  stream ─► decompress ─► tar ─► files aside, hashed ─┬─ index.json    ─► layout ─┐
//!                                                      └─ manifest.json ─► docker ─┴─► blobs ─► layers ─► names
//! ```
//! `docker save` writes the list of images last, so everything is put aside first: once to disk, never in memory.
//! Names in the archive are keys of a table and never host paths.

mod contents;
mod docker;
mod import;
mod oci;
mod save;
mod stream;

pub(crate) use import::import;
pub(crate) use save::save;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use contents::Contents;
use stream::{ChannelReader, pump};

use crate::digest::Digest;
use crate::error::Error;
use crate::image::Loaded;
use crate::progress::{Event, LayerState, Progress};
use crate::pull::{self, check_manifest, parse_config};
use crate::reference::Reference;
use crate::spec::{MAX_DOCUMENT, Manifest};
use crate::store::{Inner, Key, Lease, blocking, joined};
use crate::unpack::UnpackError;

/// Pieces between the reader and the thread that takes the archive apart.
const PIECES: usize = 8;

/// An image of an archive whose config and layers are in the store as blobs.
struct Found {
    manifest: Manifest,
    bytes: Vec<u8>,
    media_type: String,
    names: Vec<Reference>,
}

/// Loads all images of a stream.
pub(crate) async fn load<R>(
    inner: Arc<Inner>,
    archive: R,
    progress: Progress,
) -> Result<Vec<Loaded>, Error>
where
    R: AsyncRead + Send + Unpin + 'static,
{
    let (sender, receiver) = mpsc::channel(PIECES);
    let shared = Arc::clone(&inner);
    let unpack = tokio::task::spawn_blocking(move || {
        Contents::unpack(&shared.layout, ChannelReader::new(receiver), &shared.unpacker)
    });
    let read = pump(archive, sender).await;
    let unpacked = joined(unpack.await);
    // If the stream broke, the unpacker only saw its end.
    let contents = match (unpacked, read) {
        (_, Err(error)) => return Err(Error::ArchiveRead(error.into())),
        (unpacked, Ok(())) => unpacked?,
    };
    load_contents(inner, contents, progress).await
}

/// Loads all images of a file or of an OCI layout's directory.
pub(crate) async fn load_path(
    inner: Arc<Inner>,
    path: PathBuf,
    progress: Progress,
) -> Result<Vec<Loaded>, Error> {
    let failed = |source| Error::Io { action: "open", path: path.clone(), source };
    if tokio::fs::metadata(&path).await.map_err(failed)?.is_dir() {
        return load_contents(inner, Contents::directory(path), progress).await;
    }
    let file = tokio::fs::File::open(&path).await.map_err(failed)?;
    load(inner, file, progress).await
}

async fn load_contents(
    inner: Arc<Inner>,
    contents: Contents,
    progress: Progress,
) -> Result<Vec<Loaded>, Error> {
    let lease = Arc::new(inner.leases.lease());
    let outcome = keep(&inner, &lease, contents, &progress).await;
    inner.tidied(lease, outcome).await
}

async fn keep(
    inner: &Arc<Inner>,
    lease: &Arc<Lease>,
    contents: Contents,
    progress: &Progress,
) -> Result<Vec<Loaded>, Error> {
    let (shared, held) = (Arc::clone(inner), Arc::clone(lease));
    let (images, attached) = blocking(move || {
        let images = if contents.find("index.json")?.is_some() {
            oci::images(&shared, &contents, &held)?
        } else if contents.find("manifest.json")?.is_some() {
            (docker::images(&shared, &contents, &held)?, Vec::new())
        } else {
            let reason =
                "it has neither manifest.json (docker save) nor index.json (OCI layout)".to_owned();
            return Err(Error::Archive { reason });
        };
        Ok(images)
    })
    .await?;
    if images.is_empty() {
        return Err(Error::Archive { reason: "it lists no image".to_owned() });
    }
    let mut loaded = Vec::new();
    for image in images {
        loaded.push(finish(inner, lease, image, progress).await?);
    }
    let shared = Arc::clone(inner);
    blocking(move || shared.attach(attached)).await?;
    Ok(loaded)
}

/// Converts the layers of an image and names it.
async fn finish(
    inner: &Arc<Inner>,
    lease: &Arc<Lease>,
    found: Found,
    progress: &Progress,
) -> Result<Loaded, Error> {
    let id = found.manifest.config.digest;
    let shown = found.names.first().map_or_else(|| id.to_string(), Reference::familiar);
    check_manifest(&found.manifest, &shown)?;
    let (shared, config_type) = (Arc::clone(inner), found.manifest.config.media_type.clone());
    let name = shown.clone();
    let config = blocking(move || {
        let bytes = crate::store::layout::read(&shared.layout.blob(&id), MAX_DOCUMENT)?;
        parse_config(&bytes, &config_type, &name)
    })
    .await?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != found.manifest.layers.len() {
        let reason =
            format!("it has {} layers, its config {}", found.manifest.layers.len(), diff_ids.len());
        return Err(Error::NotAnImage { what: shown, reason });
    }
    diff_ids.iter().for_each(|diff_id| lease.keep(*diff_id));
    let blobs: Vec<Digest> = found.manifest.layers.iter().map(|layer| layer.digest).collect();
    for (layer, diff_id) in found.manifest.layers.iter().zip(diff_ids.iter().copied()) {
        let (blob, total) = (layer.digest, layer.size);
        let flight = inner
            .flights
            .acquire(Key::Layer(diff_id), || progress.layer(blob, LayerState::Waiting))
            .await;
        let (inner, lease, progress) = (Arc::clone(inner), Arc::clone(lease), progress.clone());
        blocking(move || {
            let _held = (flight, lease);
            if inner.has_layer(&diff_id) {
                progress.layer(blob, LayerState::Exists);
                return Ok(());
            }
            progress.layer(blob, LayerState::Extracting { current: 0, total });
            inner.convert_stored(blob, diff_id)?;
            progress.layer(blob, LayerState::Complete);
            Ok(())
        })
        .await?;
    }
    pull::rootfs(inner, id, &blobs, &diff_ids).await?;
    let digest = Digest::of(&found.bytes);
    let names = found.names.clone();
    let up_to_date =
        !names.is_empty() && names.iter().all(|name| inner.catalog().named(name) == Some(id));
    let (shared, held) = (Arc::clone(inner), Arc::clone(lease));
    blocking(move || {
        let _lease = held;
        shared.publish(&found.names, &found.bytes, &found.media_type)
    })
    .await?;
    if names.is_empty() {
        progress.send(Event::Done { reference: None, image: id, digest, up_to_date });
    }
    for name in &names {
        progress.send(Event::Done { reference: Some(name.clone()), image: id, digest, up_to_date });
    }
    let image =
        inner.catalog().image(&id).ok_or_else(|| Error::NoSuchImage { name: id.to_string() })?;
    Ok(Loaded { names: names.iter().map(Reference::familiar).collect(), image })
}

/// Why an archive was not taken apart.
fn not_unpacked(error: UnpackError) -> Error {
    match error {
        UnpackError::Input(source) => Error::ArchiveRead(source.into()),
        UnpackError::Stream(source) => Error::ArchiveRead(source),
        UnpackError::Stopped(error) => *error,
        error => Error::Unpacking { digest: None, source: error.into() },
    }
}
