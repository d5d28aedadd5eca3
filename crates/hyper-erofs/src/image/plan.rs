//! Decides where everything lies before a byte is written, so that the image can be written in one go.
//!
//! Inodes are placed breadth first, those of one directory next to each other in order of names: reading a directory and looking at
//! its files touches few blocks. A tail (the last piece of a directory, a link's target) lies behind its inode if it
//! fits into the same block, as the format demands.

use super::directory::{self, Dirent};
use super::format::{
    BLOCK, DEVICE_SLOT_SIZE, DEVICE_TABLE_OFFSET, DataLayout, INODE_SIZE, INODE_SLOT,
};
use super::xattr::SharedXattrs;
use super::{ImageError, ImageOptions};
use crate::tree::{InodeId, NodeKind, ROOT, Tree};

/// Blobs of one image. The root inode's number has 16 bits, so the table before it cannot be very long.
const MAX_DEVICES: usize = 4096;
const UNPLACED: u64 = u64::MAX;

pub(super) struct Plan<'t, 'a> {
    pub(super) tree: &'t Tree<'a>,
    pub(super) shared: SharedXattrs<'t>,
    pub(super) inodes: Vec<Placed>,
    /// By inode id: its position in bytes.
    positions: Vec<u64>,
    /// By layer: whether a file of it is visible.
    used: Vec<bool>,
    /// End of the inodes in bytes.
    pub(super) inodes_end: u64,
    /// Blocks for directories and links that lie outside of their inodes.
    data_blocks: u64,
}

/// One inode and its place.
pub(super) struct Placed {
    pub(super) id: InodeId,
    /// Of directories: the parent.
    pub(super) parent: InodeId,
    pub(super) position: u64,
    pub(super) layout: DataLayout,
    pub(super) size: u64,
    /// Of directories and links: first of its blocks, counted from the first data block.
    pub(super) data_block: u64,
    pub(super) xattr_size: u64,
}

impl<'t, 'a> Plan<'t, 'a> {
    pub(super) fn new(tree: &'t Tree<'a>, options: &ImageOptions) -> Result<Self, ImageError> {
        let order = order(tree);
        let mut used = vec![false; tree.layers.len()];
        for (id, _) in &order {
            if let NodeKind::File { layer, data } = tree.kind(*id) {
                used[layer] |= data.size > 0;
            }
        }
        let devices = used.iter().filter(|used| **used).count();
        if devices > MAX_DEVICES {
            return Err(ImageError::TooLarge { what: "layers" });
        }
        let ids: Vec<InodeId> = order.iter().map(|(id, _)| *id).collect();
        let table = if options.device_table { devices as u64 * DEVICE_SLOT_SIZE } else { 0 };
        let mut plan = Self {
            tree,
            shared: SharedXattrs::new(tree, &ids),
            inodes: Vec::with_capacity(order.len()),
            positions: vec![UNPLACED; tree.inode_count()],
            used,
            inodes_end: DEVICE_TABLE_OFFSET + table,
            data_blocks: 0,
        };
        for (id, parent) in order {
            plan.place(id, parent);
        }
        Ok(plan)
    }

    /// Layers whose blobs the image refers to.
    pub(super) fn used_layers(&self) -> impl Iterator<Item = usize> {
        self.used.iter().enumerate().filter(|(_, used)| **used).map(|(layer, _)| layer)
    }

    /// Number of an inode in the file system.
    pub(super) fn nid(&self, id: InodeId) -> u64 {
        self.positions[id as usize] / INODE_SLOT
    }

    /// First block of the shared xattrs.
    pub(super) fn xattr_block(&self) -> u64 {
        self.inodes_end.div_ceil(BLOCK)
    }

    /// First block of directories and links outside of their inodes.
    pub(super) fn first_data_block(&self) -> u64 {
        self.xattr_block() + self.shared.size().div_ceil(BLOCK)
    }

    /// Length of the whole metadata in blocks.
    pub(super) fn meta_blocks(&self) -> u64 {
        self.first_data_block() + self.data_blocks
    }

    /// The entries of a directory, in order.
    pub(super) fn dirents(&self, placed: &Placed) -> Vec<Dirent<'a>> {
        match self.tree.children(placed.id) {
            Some(children) => directory::entries(children, placed.id, placed.parent),
            None => Vec::new(),
        }
    }

    fn place(&mut self, id: InodeId, parent: InodeId) {
        let tree = self.tree;
        let kind = tree.kind(id);
        let mut placed = Placed {
            id,
            parent,
            position: 0,
            layout: DataLayout::Plain,
            size: 0,
            data_block: self.data_blocks,
            xattr_size: self.shared.inode_size(&tree.attributes(id).xattrs),
        };
        let tail = match kind {
            NodeKind::Directory => {
                placed.size = directory::size(&self.dirents(&placed));
                placed.size % BLOCK
            }
            NodeKind::Symlink { target } => {
                placed.size = target.len() as u64;
                placed.size
            }
            NodeKind::File { data, .. } => {
                placed.size = data.size;
                0
            }
            NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } | NodeKind::Fifo => 0,
        };
        let (position, tail_fits) = position(self.inodes_end, INODE_SIZE + placed.xattr_size, tail);
        placed.position = position;
        if tail_fits {
            placed.layout = DataLayout::Inline;
        }
        if matches!(kind, NodeKind::Directory | NodeKind::Symlink { .. }) {
            let outside = if tail_fits { placed.size - tail } else { placed.size };
            self.data_blocks += outside.div_ceil(BLOCK);
        }
        let inline = if tail_fits { tail } else { 0 };
        self.inodes_end = position + INODE_SIZE + placed.xattr_size + inline;
        self.positions[id as usize] = position;
        self.inodes.push(placed);
    }
}

/// Every reachable inode once, with the directory it was found in, breadth first; the root first, its own parent.
fn order(tree: &Tree<'_>) -> Vec<(InodeId, InodeId)> {
    let mut seen = vec![false; tree.inode_count()];
    seen[ROOT as usize] = true;
    let mut order = vec![(ROOT, ROOT)];
    let mut next = 0;
    while let Some((directory, _)) = order.get(next).copied() {
        next += 1;
        for id in tree.children(directory).into_iter().flat_map(|children| children.values()) {
            if !std::mem::replace(&mut seen[*id as usize], true) {
                order.push((*id, directory));
            }
        }
    }
    order
}

/// The first place from `start` on for an inode of `head` bytes and a tail, and whether the tail can be there.
///
/// The inode proper must not cross a block boundary (a reader's convenience), its tail cannot; what is between may.
fn position(start: u64, head: u64, tail: u64) -> (u64, bool) {
    let mut position = start.next_multiple_of(INODE_SLOT);
    if position % BLOCK + INODE_SIZE > BLOCK {
        position = position.next_multiple_of(BLOCK);
    }
    if tail == 0 {
        return (position, false);
    }
    let fits = |position: u64| (position + head) % BLOCK + tail <= BLOCK;
    let next = position.next_multiple_of(BLOCK);
    if fits(position) {
        (position, true)
    } else if fits(next) {
        (next, true)
    } else {
        (position, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_obey_the_format() {
        for start in (1152..16384).step_by(4) {
            for head in [64, 76, 80, 300, 4096, 5000] {
                for tail in [0, 1, 31, 100, 2000, 4032, 4095] {
                    let (position, inline) = position(start, head, tail);
                    assert!(position >= start && position % 32 == 0);
                    assert!(position % 4096 + 64 <= 4096);
                    if inline {
                        assert!(tail > 0 && (position + head) % 4096 + tail <= 4096);
                    }
                    assert!(position < start + 4096 + 32);
                }
            }
        }
        assert_eq!(position(4096, 64, 4032), (4096, true));
        assert_eq!(position(4096, 64, 4033), (4096, false));
        assert_eq!(position(4160, 64, 4032), (8192, true));
    }
}
