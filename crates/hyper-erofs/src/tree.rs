//! Layers merged into one tree.
use crate::{Attributes, BlobRef, FileData, ImageError, ImageLayout, ImageOptions, LayerIndex};
use std::io::Write;
use thiserror::Error;

/// Why layers could not be merged.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A hard link names a file that neither this layer nor one below has.
    #[error("layer {layer}: hard link {path:?} names the missing file {target:?}")]
    LinkTargetMissing {
        /// Number of the layer from the bottom, from 0.
        layer: usize,
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// A hard link names a directory.
    #[error("layer {layer}: hard link {path:?} names the directory {target:?}")]
    LinkToDirectory {
        /// Number of the layer from the bottom, from 0.
        layer: usize,
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// The root is made something else than a directory.
    #[error("layer {layer}: the root must be a directory")]
    RootNotDirectory {
        /// Number of the layer from the bottom, from 0.
        layer: usize,
    },
    /// A path leads through too many symbolic links.
    #[error("layer {layer}: {path:?} leads through more than 40 symbolic links")]
    SymlinkLoop {
        /// Number of the layer from the bottom, from 0.
        layer: usize,
        /// The path.
        path: String,
    },
}

/// Why a path has no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LookupError {
    /// Nothing there.
    #[error("no such file or directory")]
    NotFound,
    /// A component before the last is not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// More than 40 symbolic links.
    #[error("too many levels of symbolic links")]
    SymlinkLoop,
}

/// Whether [`Tree::lookup`] follows a symbolic link at the end of the path; those before it are always followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// `stat`.
    Yes,
    /// `lstat`.
    No,
}

/// The merged tree of an image. Borrows the layers it was made from.
#[derive(Debug)]
pub struct Tree<'a> {
    layers: Vec<&'a LayerIndex>,
}

/// A file of the tree.
#[derive(Debug, Clone, Copy)]
pub struct Node<'t> {
    /// What it is.
    pub kind: NodeKind<'t>,
    /// Owner, mode and so on.
    pub attributes: &'t Attributes,
    /// Number of names (of a directory: 2 + its subdirectories).
    pub links: u32,
    /// Equal for two names exactly if they are the same file.
    pub inode: u32,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind<'t> {
    /// A directory.
    Directory,
    /// A regular file, with its content in the blob of layer `layer`.
    File {
        /// Number of the layer from the bottom, from 0.
        layer: usize,
        /// Place in that layer's blob.
        data: FileData,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: &'t [u8],
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Merges layers, the lowest first, as an overlay of them would look.
///
/// # Errors
/// [`MergeError`]
pub fn merge<'a>(layers: impl IntoIterator<Item = &'a LayerIndex>) -> Result<Tree<'a>, MergeError> {
    Ok(Tree { layers: layers.into_iter().collect() })
}

impl<'a> Tree<'a> {
    /// The node at `path` (absolute or relative to the root, `.` and `..` allowed), symbolic links resolved inside the tree.
    ///
    /// # Errors
    /// [`LookupError`]
    pub fn lookup(&self, _path: &[u8], _follow: Follow) -> Result<Node<'_>, LookupError> {
        todo!()
    }

    /// Names and nodes of the directory at `path`, sorted by name.
    ///
    /// # Errors
    /// [`LookupError`]
    pub fn read_directory(&self, _path: &[u8]) -> Result<Vec<(&[u8], Node<'_>)>, LookupError> {
        todo!()
    }

    /// Writes the metadata image: an EROFS file system whose file contents lie in the blobs that follow it.
    /// `blobs` has one element per layer, in the same order; `out` is written sequentially.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn write_metadata<W: Write>(&self, _out: W, _blobs: &[BlobRef], _options: &ImageOptions) -> Result<ImageLayout, ImageError> {
        let _ = &self.layers;
        todo!()
    }
}
