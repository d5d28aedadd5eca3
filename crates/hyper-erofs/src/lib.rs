//! From OCI layer tar streams to one read-only guest root file system.
//!
//! ```text
//!  layer tar ──convert_layer──┐                         ┌─► metadata image (EROFS)
//!                             ├─► blob file  (4 KiB-aligned file contents, per layer, shared by images)
//!  host tree ─convert_directory┘  LayerIndex (all names and attributes, per layer)
//!                                      │
//!                       merge (bottom → top) ─► Tree ─write_metadata─► [meta][blob0][blob1]…
//! ```
//! A layer is converted once, in one streaming pass, and is immutable afterwards. An image is only metadata:
//! merging some layers and writing it takes milliseconds and copies no file content.
//!
//! Invariants
//! - Nothing is ever written to a host path taken from an archive: names are data, blobs are the caller's writers.
//! - The same input gives the same bytes: no clock, no random numbers, no dependence on hash order.
//! - Archives and index files are hostile: every length is checked against [`Limits`] before memory is taken.
#![forbid(unsafe_code)]

mod blob;
mod directory;
pub mod image;
mod index;
mod layer;
mod limits;
mod path;
pub mod tar;
mod tree;

pub use directory::{DirectoryError, convert_directory};
pub use image::{BlobRef, ImageError, ImageLayout, ImageOptions, PlacedBlob};
pub use index::{Attributes, Entry, FileData, IndexError, Kind, LayerIndex, Timestamp, Xattr};
pub use layer::{LayerError, convert_layer};
pub use limits::{LimitExceeded, Limits};
pub use path::PathError;
pub use tree::{Follow, LookupError, MergeError, Node, NodeKind, Tree, merge};

/// Size in bytes of one block of a blob and of the image: all file contents start on such a boundary.
pub const BLOCK_SIZE: u64 = 4096;
