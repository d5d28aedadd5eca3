//! The merged tree of an image: what an overlay of its layers would show.
//!
//! Inodes and names are apart, so that hard links share an inode, across layers as well. All names and attributes are
//! borrowed from the layers' indexes; the tree itself is one vector of inodes. Depth is not bounded by that of the
//! layers (a link can lead one layer's names below another's), so nothing here or in its users may recurse.

mod lookup;
mod merge;

pub use lookup::{Follow, LookupError};
pub use merge::{MergeError, merge};

use crate::image::{self, BlobRef, ImageError, ImageLayout, ImageOptions};
use crate::index::{Attributes, FileData, LayerIndex};
use std::collections::BTreeMap;
use std::io::Write;

/// The merged tree of an image. Borrows the layers it was made from.
#[derive(Debug)]
pub struct Tree<'a> {
    pub(crate) layers: Vec<&'a LayerIndex>,
    /// Inodes that lost their last name stay here, unreachable. The root is the first.
    inodes: Vec<Inode<'a>>,
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

pub(crate) type InodeId = u32;
pub(crate) const ROOT: InodeId = 0;

/// A directory's content.
pub(crate) type Children<'a> = BTreeMap<&'a [u8], InodeId>;

#[derive(Debug)]
struct Inode<'a> {
    attributes: &'a Attributes,
    content: Content<'a>,
    /// Names of what is not a directory.
    links: u32,
}

#[derive(Debug)]
enum Content<'a> {
    Directory(Children<'a>),
    Other(NodeKind<'a>),
}

/// Directories that no layer describes: the root, and parents an archive does not mention.
static IMPLICIT: Attributes = Attributes {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: crate::index::Timestamp { seconds: 0, nanoseconds: 0 },
    xattrs: Vec::new(),
};

impl<'a> Tree<'a> {
    /// Writes the metadata image: an EROFS file system whose file contents lie in the blobs that follow it.
    /// `blobs` has one element per layer, in the same order; `out` is written sequentially, without seeking.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn write_metadata<W: Write>(
        &self,
        out: W,
        blobs: &[BlobRef],
        options: &ImageOptions,
    ) -> Result<ImageLayout, ImageError> {
        image::write(self, out, blobs, options)
    }

    pub(crate) fn children(&self, id: InodeId) -> Option<&Children<'a>> {
        match &self.inodes[id as usize].content {
            Content::Directory(children) => Some(children),
            Content::Other(_) => None,
        }
    }

    pub(crate) fn kind(&self, id: InodeId) -> NodeKind<'_> {
        match self.inodes[id as usize].content {
            Content::Directory(_) => NodeKind::Directory,
            Content::Other(kind) => kind,
        }
    }

    pub(crate) fn attributes(&self, id: InodeId) -> &Attributes {
        self.inodes[id as usize].attributes
    }

    /// Counts subdirectories: not to be called for a directory from each of its children.
    pub(crate) fn node(&self, id: InodeId) -> Node<'_> {
        let inode = &self.inodes[id as usize];
        let (kind, links) = match &inode.content {
            Content::Directory(children) => {
                let subdirectories =
                    children.values().filter(|id| self.children(**id).is_some()).count();
                (NodeKind::Directory, 2 + u32::try_from(subdirectories).unwrap_or(u32::MAX - 2))
            }
            Content::Other(kind) => (*kind, inode.links),
        };
        Node { kind, attributes: inode.attributes, links, inode: id }
    }

    /// Upper bound of inode ids.
    pub(crate) fn inode_count(&self) -> usize {
        self.inodes.len()
    }
}
