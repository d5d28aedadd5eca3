//! The files of an image, to be read on the host: names from the layers' indexes, contents from their blobs.
//!
//! Nothing is mounted or unpacked; symbolic links are resolved inside the image by [`hyper_erofs::Tree`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use hyper_erofs::{FileData, LayerIndex, MergeError, Tree, merge};

use super::{Lease, Store, blocking, layout};
use crate::digest::Digest;
use crate::error::Error;
use crate::layer::read_index;

/// A converted layer: its index, and the blob that holds the contents.
#[derive(Debug)]
pub struct LayerFile {
    /// Names and attributes.
    pub index: LayerIndex,
    /// Contents.
    pub blob: File,
}

/// The layers of an image, bottom first. The image may be removed meanwhile: open files stay readable.
#[derive(Debug, Default)]
pub struct ImageFiles {
    layers: Vec<LayerFile>,
    _lease: Option<Arc<Lease>>,
}

impl ImageFiles {
    /// Layers that are not of a store.
    #[must_use]
    pub fn of(layers: Vec<LayerFile>) -> Self {
        Self { layers, _lease: None }
    }

    /// What an overlay of the layers would show. Takes milliseconds: to be kept.
    ///
    /// # Errors
    /// [`MergeError`]
    pub fn tree(&self) -> Result<Tree<'_>, MergeError> {
        merge(self.layers.iter().map(|layer| &layer.index))
    }

    /// Reads a file's content from `offset` on: at most up to its end; 0 is the end. Blocking.
    ///
    /// # Errors
    /// The file system's.
    pub fn read_at(
        &self,
        layer: usize,
        data: FileData,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let left = data.size.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if count == 0 {
            return Ok(0);
        }
        let Some(layer) = self.layers.get(layer) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        match layer.blob.read_at(&mut buffer[..count], data.offset() + offset)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            read => Ok(read),
        }
    }
}

impl Store {
    /// The files of an image.
    ///
    /// # Errors
    /// As [`Store::rootfs`].
    pub async fn files(&self, image: &Digest) -> Result<ImageFiles, Error> {
        let missing = || Error::NoSuchImage { name: image.to_string() };
        let lease = Arc::new(self.inner.leases.lease());
        let stored =
            Arc::clone(&self.inner.catalog().entries_of(image).last().ok_or_else(missing)?.stored);
        let diff_ids = stored.config.rootfs.diff_ids.clone();
        diff_ids.iter().for_each(|diff_id| lease.keep(*diff_id));
        // Converts what is not.
        self.rootfs(image).await?;
        let (inner, held) = (Arc::clone(&self.inner), lease);
        blocking(move || {
            let open = |diff_id: &Digest| {
                let index = read_index(&inner.layout, diff_id, &inner.limits)?;
                let path = inner.layout.layer(diff_id).join("blob");
                let blob =
                    File::open(&path).map_err(|error| layout::failed("open", &path, error))?;
                Ok(LayerFile { index, blob })
            };
            let layers = diff_ids.iter().map(open).collect::<Result<_, Error>>()?;
            Ok(ImageFiles { layers, _lease: Some(held) })
        })
        .await
    }
}
