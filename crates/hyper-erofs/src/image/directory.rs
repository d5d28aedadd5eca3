//! Directory blocks: entries, then their names; names in byte order over the whole directory.
//!
//! ```text
//!  one 4 KiB block: │ inode, name offset, type │ … │ name │ name … │ zeros
//! ```
//! Linux finds a name by binary search, first over blocks, then inside one (fs/erofs/namei.c).

use super::format::{BLOCK, DIRENT_SIZE};
use crate::tree::{Children, InodeId, NodeKind};

/// One entry, `.` and `..` among them.
#[derive(Clone, Copy)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: InodeId,
}

/// All entries in order. `.` and `..` have no fixed place: `!` and `-` sort before them, `..a` after.
pub(super) fn entries<'a>(
    children: &Children<'a>,
    own: InodeId,
    parent: InodeId,
) -> Vec<Dirent<'a>> {
    let mut entries = Vec::with_capacity(children.len() + 2);
    let mut dots = [(&b"."[..], own), (&b".."[..], parent)].into_iter().peekable();
    for (name, inode) in children {
        while let Some((name, inode)) = dots.next_if(|(dot, _)| dot < name) {
            entries.push(Dirent { name, inode });
        }
        entries.push(Dirent { name, inode: *inode });
    }
    entries.extend(dots.map(|(name, inode)| Dirent { name, inode }));
    entries
}

/// Splits entries into as many as fit in a block each.
pub(super) struct Blocks<'e, 'a> {
    rest: &'e [Dirent<'a>],
}

pub(super) fn blocks<'e, 'a>(entries: &'e [Dirent<'a>]) -> Blocks<'e, 'a> {
    Blocks { rest: entries }
}

impl<'e, 'a> Iterator for Blocks<'e, 'a> {
    type Item = &'e [Dirent<'a>];

    fn next(&mut self) -> Option<Self::Item> {
        let mut used = 0;
        let fitting = self.rest.iter().take_while(|entry| {
            used += DIRENT_SIZE + entry.name.len();
            used as u64 <= BLOCK
        });
        let (block, rest) = self.rest.split_at(fitting.count());
        self.rest = rest;
        (!block.is_empty()).then_some(block)
    }
}

/// Bytes that a block of these entries uses.
pub(super) fn used(block: &[Dirent<'_>]) -> u64 {
    block.iter().map(|entry| (DIRENT_SIZE + entry.name.len()) as u64).sum()
}

/// Size of the directory: whole blocks, and what the last one uses.
pub(super) fn size(entries: &[Dirent<'_>]) -> u64 {
    let mut size = 0;
    for block in blocks(entries) {
        size = u64::next_multiple_of(size, BLOCK) + used(block);
    }
    size
}

/// Appends a block's bytes, without the zeros at its end.
pub(super) fn encode(
    out: &mut Vec<u8>,
    block: &[Dirent<'_>],
    describe: impl Fn(InodeId) -> (u64, NodeKindByte),
) {
    let mut offset = block.len() * DIRENT_SIZE;
    for entry in block {
        let (nid, NodeKindByte(kind)) = describe(entry.inode);
        out.extend_from_slice(&nid.to_le_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "below the block size")]
        out.extend_from_slice(&(offset as u16).to_le_bytes());
        out.extend_from_slice(&[kind, 0]);
        offset += entry.name.len();
    }
    for entry in block {
        out.extend_from_slice(entry.name);
    }
}

/// A file type as directories store it (`FT_*` of include/linux/fs_types.h).
#[derive(Clone, Copy)]
pub(super) struct NodeKindByte(u8);

impl From<NodeKind<'_>> for NodeKindByte {
    fn from(kind: NodeKind<'_>) -> Self {
        Self(match kind {
            NodeKind::File { .. } => 1,
            NodeKind::Directory => 2,
            NodeKind::CharDevice { .. } => 3,
            NodeKind::BlockDevice { .. } => 4,
            NodeKind::Fifo => 5,
            NodeKind::Symlink { .. } => 7,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_sorted_among_the_names() {
        let names: [&[u8]; 6] = [b"!", b"-x", b".\x01", b"..\x01", b".a", b"z"];
        let children: Children<'_> = names.iter().map(|name| (*name, 7)).collect();
        let entries = entries(&children, 1, 2);
        let mut sorted: Vec<&[u8]> = entries.iter().map(|entry| entry.name).collect();
        assert_eq!(sorted.len(), 8);
        assert!(sorted.is_sorted());
        sorted.retain(|name| [&b"."[..], b".."].contains(name));
        assert_eq!(sorted.len(), 2);
    }

    #[test]
    fn blocks_hold_what_fits() {
        // 12 + 244 bytes each: sixteen fill a block to the last byte.
        let names: Vec<Vec<u8>> =
            (0..33).map(|number| format!("{number:0244}").into_bytes()).collect();
        let entries: Vec<Dirent<'_>> = names.iter().map(|name| Dirent { name, inode: 0 }).collect();
        let lens: Vec<usize> = blocks(&entries).map(<[_]>::len).collect();
        assert_eq!(lens, [16, 16, 1]);
        assert_eq!(size(&entries[..32]), 8192);
        assert_eq!(size(&entries), 8192 + 256);
    }
}
