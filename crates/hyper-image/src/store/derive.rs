//! Images made here: layers written by this program, and images of a base's layers and one more.
//!
//! ```text
//!  tar bytes ─► LayerWriter ─┬─ diff id
//!                            └─ gzip ─► ingest/ ─► add_layer: blobs/, layers/ ─► NewLayer ─► derive: an image
//! ```
//! A [`NewLayer`] keeps its content from removal until it is dropped; an image of it keeps it from then on. Nothing is
//! named before all of it is there, as with images that are pulled.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::NamedTempFile;

use super::catalog::Origin;
use super::quota::Charge;
use super::{Key, Lease, Store, blocking};
use super::{layout, sweep};
use crate::config::ImageConfig;
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::image::Image;
use crate::spec::{
    Descriptor, MAX_LAYERS, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, oci_layer_type,
};

/// Takes an uncompressed layer archive. Blocking; what is not given to [`Store::add_layer`] leaves nothing.
pub struct LayerWriter {
    tar: Hashing<GzEncoder<Hashing<NamedTempFile>>>,
    /// Bytes it may become: a guest that sends its changes is not believed to end.
    limit: u64,
    charge: Charge,
}

impl std::fmt::Debug for LayerWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerWriter").field("bytes", &self.tar.passed()).finish_non_exhaustive()
    }
}

impl Write for LayerWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tar.passed() + bytes.len() as u64 > self.limit {
            return Err(io::Error::other(format!("a layer of more than {} bytes", self.limit)));
        }
        // What compression makes of it is not known yet; it is not much more than there was.
        self.charge
            .reach(self.tar.get_mut().get_ref().passed() + bytes.len() as u64)
            .map_err(io::Error::other)?;
        self.tar.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tar.flush()
    }
}

/// A layer of the store that need not be part of an image yet. Kept while this lives.
#[derive(Debug, Clone)]
pub struct NewLayer {
    descriptor: Descriptor,
    diff_id: Digest,
    _lease: Arc<Lease>,
}

impl NewLayer {
    /// Digest of the uncompressed archive.
    #[must_use]
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }
}

/// An image to make.
#[derive(Debug)]
pub struct Derivation {
    /// The image whose layers come first, and which becomes the parent.
    pub base: Option<Digest>,
    /// One more layer.
    pub layer: Option<NewLayer>,
    /// What the image says about itself; its `rootfs` is filled in.
    pub config: ImageConfig,
    /// What was done to the base: see [`Store::made_from`].
    pub step: Option<Digest>,
}

impl Store {
    /// A place to write a layer to. Blocking.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub fn layer_writer(&self) -> Result<LayerWriter, Error> {
        let file = Hashing::new(self.inner.layout.scratch_file()?);
        // Built layers are pushed at most once and read often: the fast setting is 5 % larger at a third of the time.
        let tar = Hashing::new(GzEncoder::new(file, Compression::fast()));
        Ok(LayerWriter {
            tar,
            limit: self.inner.limits.max_stream_bytes,
            charge: self.inner.layout.charge(),
        })
    }

    /// Makes what was written a layer of the store. Ends the archive's compression, not the archive.
    ///
    /// # Errors
    /// [`Error::Layer`] if it is no layer archive; disk.
    pub async fn add_layer(&self, writer: LayerWriter) -> Result<NewLayer, Error> {
        let lease = Arc::new(self.inner.leases.lease());
        let (inner, held) = (Arc::clone(&self.inner), Arc::clone(&lease));
        let (descriptor, diff_id) = blocking(move || {
            let (encoder, diff_id, _) = writer.tar.finish();
            let path = inner.layout.ingest();
            let ended = encoder.finish().map_err(|error| layout::full("write", &path, 0, error))?;
            let (file, blob, size) = ended.finish();
            held.keep(diff_id);
            held.keep(blob);
            let target = inner.layout.blob(&blob);
            if !target.exists() {
                inner.layout.publish_file(file, &target)?;
            }
            let media_type = format!("{OCI_LAYER}+gzip");
            let annotations = BTreeMap::new();
            let descriptor = Descriptor {
                media_type,
                digest: blob,
                size,
                platform: None,
                artifact_type: None,
                annotations,
            };
            Ok((descriptor, diff_id))
        })
        .await?;
        let flight = self.inner.flights.acquire(Key::Layer(diff_id), || {}).await;
        let (inner, held, blob) = (Arc::clone(&self.inner), Arc::clone(&lease), descriptor.digest);
        let converted = blocking(move || {
            let _held = (flight, held);
            if inner.has_layer(&diff_id) { Ok(()) } else { inner.convert_stored(blob, diff_id) }
        })
        .await;
        if let Err(error) = converted {
            // What is no layer is of no use to anybody.
            drop(lease);
            let inner = Arc::clone(&self.inner);
            blocking(move || sweep::forget(&inner.layout, &inner.leases, &inner.catalog(), &blob))
                .await?;
            return Err(error);
        }
        Ok(NewLayer { descriptor, diff_id, _lease: lease })
    }

    /// Layer number `index` from the bottom of an image of the store.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], if the image is gone or has no such layer.
    pub fn layer_of(&self, image: &Digest, index: usize) -> Result<NewLayer, Error> {
        let missing = || Error::NoSuchImage { name: image.to_string() };
        let lease = self.inner.leases.lease();
        let catalog = self.inner.catalog();
        let stored = &catalog.entries_of(image).last().ok_or_else(missing)?.stored;
        let diff_id = stored.config.rootfs.diff_ids.get(index).ok_or_else(missing)?;
        let descriptor = stored.manifest.layers.get(index).ok_or_else(missing)?;
        lease.keep(*diff_id);
        lease.keep(descriptor.digest);
        // Removed before it was leased?
        if self.inner.catalog().entries_of(image).next().is_none() {
            return Err(missing());
        }
        Ok(NewLayer { descriptor: descriptor.clone(), diff_id: *diff_id, _lease: Arc::new(lease) })
    }

    /// Makes an image; it has no name yet.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`] if the base is gone; [`Error::NotAnImage`] for too many layers; disk.
    pub async fn derive(&self, wanted: Derivation) -> Result<Image, Error> {
        let inner = Arc::clone(&self.inner);
        let id = blocking(move || {
            let lease = inner.leases.lease();
            let Derivation { base, layer, mut config, step } = wanted;
            let mut layers = Vec::new();
            let mut diff_ids = Vec::new();
            if let Some(base) = base {
                let missing = || Error::NoSuchImage { name: base.to_string() };
                let stored = Arc::clone(
                    &inner.catalog().entries_of(&base).last().ok_or_else(missing)?.stored,
                );
                layers.clone_from(&stored.manifest.layers);
                diff_ids.clone_from(&stored.config.rootfs.diff_ids);
                layers.iter().for_each(|layer| lease.keep(layer.digest));
                diff_ids.iter().for_each(|diff_id| lease.keep(*diff_id));
                // Removed before it was leased?
                inner.catalog().entries_of(&base).next().ok_or_else(missing)?;
            }
            if let Some(layer) = &layer {
                layers.push(layer.descriptor.clone());
                diff_ids.push(layer.diff_id);
            }
            if layers.len() > MAX_LAYERS {
                let what = "the image".to_owned();
                let reason = format!("it would have {} layers, {MAX_LAYERS} at most", layers.len());
                return Err(Error::NotAnImage { what, reason });
            }
            for layer in &mut layers {
                layer.media_type = oci_layer_type(&layer.media_type);
            }
            config.rootfs.kind = "layers".to_owned();
            config.rootfs.diff_ids = diff_ids;
            let raw_config = json(&config)?;
            let config = Descriptor {
                media_type: OCI_CONFIG.to_owned(),
                digest: Digest::of(&raw_config),
                size: raw_config.len() as u64,
                platform: None,
                artifact_type: None,
                annotations: BTreeMap::new(),
            };
            lease.keep(config.digest);
            inner.layout.write_blob(&raw_config)?;
            let media_type = Some(OCI_MANIFEST.to_owned());
            let manifest = json(&Manifest {
                schema_version: 2,
                media_type,
                artifact_type: None,
                config,
                layers,
                subject: None,
                annotations: BTreeMap::new(),
            })?;
            lease.keep(Digest::of(&manifest));
            let origin = Origin { parent: base, step };
            inner.publish_from(&[], &manifest, OCI_MANIFEST, origin)
        })
        .await?;
        self.image(&id)
    }

    /// The newest image that was made from `parent` (or from nothing) by `step`.
    #[must_use]
    pub fn made_from(&self, parent: Option<&Digest>, step: &Digest) -> Option<Image> {
        let catalog = self.inner.catalog();
        let made = catalog.entries.iter().map(|entry| &entry.stored).filter(|stored| {
            stored.origin.step == Some(*step) && stored.origin.parent.as_ref() == parent
        });
        let newest = made.max_by(|a, b| a.config.created.cmp(&b.config.created))?;
        catalog.image(&newest.id())
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Malformed {
        what: "the image's description".to_owned(),
        reason: error.to_string(),
    })
}
