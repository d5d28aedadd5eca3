//! The EROFS metadata image of a merged tree.
//!
//! ```text
//!  block 0                     meta_len          + blob0.len
//!  ├─ metadata image ──────────┼─ blob of layer 0 ┼─ blob of layer 1 ┼ …
//! ```
//! The image can be used in two ways: all parts stitched to one disk (mount it without options), or each part a
//! block device of its own (`-o device=/dev/ubdb,device=/dev/ubdc`, in the order of [`ImageLayout::blobs`]).
//!
//! Both work from the same bytes because files are plain extents at absolute block numbers: without `device=` Linux
//! takes the primary device as "flattened" and reads those numbers there (`flatdev` in fs/erofs/super.c, Linux 6.4);
//! with it, `erofs_map_dev` (fs/erofs/data.c) looks up the device whose `uniaddr … + blocks` holds the number.
//!
//! The metadata itself, block numbers from 0:
//! ```text
//!  │ 1 KiB unused │ superblock │ device table │ inodes, each with its xattrs and its tail │ shared xattrs │ directory blocks │
//! ```
//! Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux.

mod directory;
mod emit;
mod format;
mod plan;
mod xattr;

use crate::tree::Tree;
use sha2::{Digest, Sha256};
use std::io::Write;
use thiserror::Error;

/// A layer's blob as the image refers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    /// Digest or path: not interpreted, returned in the layout, and part of the image's UUID.
    pub id: String,
    /// Length in bytes, a multiple of 4096: [`LayerIndex::blob_len`](crate::LayerIndex::blob_len).
    pub len: u64,
}

/// How to write the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// With the device table (the default), which Linux >= 6.4 needs to mount the blobs as separate devices and
    /// which it ignores for a stitched disk. Without it, the image mounts on Linux >= 5.4, stitched only.
    pub device_table: bool,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self { device_table: true }
    }
}

/// How the parts of the image lie one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayout {
    /// Length of the metadata in bytes, a multiple of 4096.
    pub meta_len: u64,
    /// The blobs the image refers to, in order of their addresses, without gaps after the metadata. Blobs of which no file
    /// is visible any more are left out.
    pub blobs: Vec<PlacedBlob>,
    /// UUID of the file system, derived from its content.
    pub uuid: [u8; 16],
}

impl ImageLayout {
    /// Length of the stitched disk in bytes.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.meta_len + self.blobs.iter().map(|blob| blob.len).sum::<u64>()
    }
}

/// A blob and its place in the stitched disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBlob {
    /// Number of its layer from the bottom, from 0.
    pub layer: usize,
    /// As in [`BlobRef`].
    pub id: String,
    /// Offset in bytes in the stitched disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Why an image could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The writer failed.
    #[error("cannot write the metadata image")]
    Write(#[from] std::io::Error),
    /// The number of blobs is not that of the layers.
    #[error("{blobs} blobs given for {layers} layers")]
    BlobCount {
        /// Given.
        blobs: usize,
        /// Expected.
        layers: usize,
    },
    /// A blob is not the one its layer was converted to.
    #[error("blob {id:?} has {found} bytes where its layer index says {expected}")]
    BlobLength {
        /// Which.
        id: String,
        /// Given.
        found: u64,
        /// Expected.
        expected: u64,
    },
    /// More than 16 TiB, or more devices than the format can count.
    #[error("the image has too many {what}")]
    TooLarge {
        /// Of what.
        what: &'static str,
    },
}

/// Writes the image of `tree`; see [`Tree::write_metadata`].
pub(crate) fn write<W: Write>(
    tree: &Tree<'_>,
    out: W,
    blobs: &[BlobRef],
    options: &ImageOptions,
) -> Result<ImageLayout, ImageError> {
    check_blobs(tree, blobs)?;
    let plan = plan::Plan::new(tree, options)?;
    let mut offset = plan.meta_blocks() * crate::BLOCK_SIZE;
    let meta_len = offset;
    let mut placed = Vec::new();
    for layer in plan.used_layers() {
        let BlobRef { id, len } = &blobs[layer];
        placed.push(PlacedBlob { layer, id: id.clone(), offset, len: *len });
        offset += len;
    }
    let layout = ImageLayout { meta_len, blobs: placed, uuid: uuid(tree, blobs, options) };
    if layout.total_len() / crate::BLOCK_SIZE >= u64::from(u32::MAX) {
        return Err(ImageError::TooLarge { what: "blocks" });
    }
    emit::emit(&plan, &layout, options, out)?;
    Ok(layout)
}

fn check_blobs(tree: &Tree<'_>, blobs: &[BlobRef]) -> Result<(), ImageError> {
    if blobs.len() != tree.layers.len() {
        return Err(ImageError::BlobCount { blobs: blobs.len(), layers: tree.layers.len() });
    }
    for (blob, layer) in blobs.iter().zip(&tree.layers) {
        if blob.len != layer.blob_len() {
            let (id, found, expected) = (blob.id.clone(), blob.len, layer.blob_len());
            return Err(ImageError::BlobLength { id, found, expected });
        }
    }
    Ok(())
}

/// A UUID of everything the image is made from: version 8 (RFC 9562, "custom"), the rest a SHA-256.
fn uuid(tree: &Tree<'_>, blobs: &[BlobRef], options: &ImageOptions) -> [u8; 16] {
    let mut hash = Sha256::new_with_prefix(b"hyper-erofs image 1");
    hash.update([u8::from(options.device_table)]);
    for (blob, layer) in blobs.iter().zip(&tree.layers) {
        let index = layer.encode();
        hash.update((blob.id.len() as u64).to_le_bytes());
        hash.update(&blob.id);
        hash.update((index.len() as u64).to_le_bytes());
        hash.update(&index);
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.finalize()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
