//! The EROFS metadata image of a merged tree.
//!
//! ```text
//!  block 0                     meta_len          + blob0.len
//!  ├─ metadata image ──────────┼─ blob of layer 0 ┼─ blob of layer 1 ┼ …
//! ```
//! The image can be used in two ways: all parts stitched to one disk (mount it without options), or each part a
//! block device of its own (`-o device=/dev/ubdb,device=/dev/ubdc`, in the order of [`ImageLayout::blobs`]).

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
