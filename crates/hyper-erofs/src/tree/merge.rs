//! Merging layers, the lowest first.
//!
//! Each layer is applied in two passes: its whiteouts and opaque marks to the tree of the layers below, then its other
//! entries in the order of the archive. So a whiteout never hides anything of its own layer, wherever it stands in
//! the archive, as the OCI image specification demands ("Whiteout files MUST only apply to resources in lower/parent layers").
//!
//! Parents that are symbolic links are followed inside the tree, as containerd does when it unpacks a layer:
//! `lib/x` in a layer above one with `lib -> usr/lib` is `usr/lib/x`. A directory entry replaces a link of its name.

use super::lookup::MAX_LINKS;
use super::{Children, Content, IMPLICIT, Inode, InodeId, NodeKind, ROOT, Tree};
use crate::index::{Attributes, Entry, Kind, LayerIndex};
use crate::limits::MAX_NAME;
use crate::path::{components, shown, split_last};
use thiserror::Error;

/// Why layers could not be merged. `layer` counts from the bottom, from 0.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A hard link names a file that neither this layer nor one below has.
    #[error("layer {layer}: hard link {path:?} names the missing file {target:?}")]
    LinkTargetMissing {
        /// Number of the layer.
        layer: usize,
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// A hard link names a directory.
    #[error("layer {layer}: hard link {path:?} names the directory {target:?}")]
    LinkToDirectory {
        /// Number of the layer.
        layer: usize,
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// A path leads through too many symbolic links.
    #[error("layer {layer}: {path:?} leads through more than 40 symbolic links")]
    SymlinkLoop {
        /// Number of the layer.
        layer: usize,
        /// The path.
        path: String,
    },
    /// More steps than any real image takes: links made to lead each path through thousands of directories.
    #[error("layer {layer}: paths lead through too many directories, {path:?} is one of them")]
    TooManySteps {
        /// Number of the layer.
        layer: usize,
        /// The path at which it was noticed.
        path: String,
    },
    /// A directory would have to be made, below a symbolic link, with a name longer than 255 bytes.
    #[error(
        "layer {layer}: {path:?} leads through a symbolic link to a name of more than 255 bytes"
    )]
    NameTooLong {
        /// Number of the layer.
        layer: usize,
        /// The path.
        path: String,
    },
    /// More than 2^32 files.
    #[error("layer {layer}: the image has too many files")]
    TooManyFiles {
        /// Number of the layer.
        layer: usize,
    },
}

/// Merges layers, the lowest first, as an overlay of them would look.
///
/// # Errors
/// [`MergeError`]
pub fn merge<'a>(layers: impl IntoIterator<Item = &'a LayerIndex>) -> Result<Tree<'a>, MergeError> {
    let root =
        Inode { attributes: &IMPLICIT, content: Content::Directory(Children::new()), links: 1 };
    let layers: Vec<&LayerIndex> = layers.into_iter().collect();
    let mut tree = Tree { layers: Vec::new(), inodes: vec![root] };
    for (layer, index) in layers.iter().enumerate() {
        let steps = STEPS_FREE + STEPS_PER_ENTRY * index.entries.len() as u64;
        Applying { tree: &mut tree, layer, steps }.apply(&index.entries)?;
    }
    tree.layers = layers;
    Ok(tree)
}

/// Directories that paths may lead through, links followed: far above what real layers need, so that only a layer
/// built to waste time meets it.
const STEPS_FREE: u64 = 10_000_000;
const STEPS_PER_ENTRY: u64 = 256;

/// One layer being applied.
struct Applying<'t, 'a> {
    tree: &'t mut Tree<'a>,
    layer: usize,
    steps: u64,
}

impl<'a> Applying<'_, 'a> {
    fn apply(&mut self, entries: &'a [Entry]) -> Result<(), MergeError> {
        for Entry { path, kind } in entries {
            match kind {
                Kind::Whiteout => self.whiteout(path)?,
                Kind::Opaque => self.opaque(path)?,
                _ => {}
            }
        }
        for Entry { path, kind } in entries {
            self.entry(path, kind)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &'a [u8]) -> Result<(), MergeError> {
        let Some((parent, name)) = split_last(path) else { return Ok(()) };
        if let Some(parent) = self.walk(parent, Missing::Stop)? {
            self.detach(parent, name);
        }
        Ok(())
    }

    fn opaque(&mut self, path: &'a [u8]) -> Result<(), MergeError> {
        let Some(id) = self.walk(path, Missing::Stop)? else { return Ok(()) };
        if let Content::Directory(children) = &mut self.tree.inodes[id as usize].content {
            let children = std::mem::take(children);
            self.release(children.into_values().collect());
        }
        Ok(())
    }

    fn entry(&mut self, path: &'a [u8], kind: &'a Kind) -> Result<(), MergeError> {
        let (attributes, node) = match kind {
            Kind::Whiteout | Kind::Opaque => return Ok(()),
            Kind::HardLink { target } => return self.hard_link(path, target),
            Kind::Directory { attributes } => return self.directory(path, attributes),
            Kind::File { attributes, data } => {
                (attributes, NodeKind::File { layer: self.layer, data: *data })
            }
            Kind::Symlink { attributes, target } => (attributes, NodeKind::Symlink { target }),
            Kind::CharDevice { attributes, major, minor } => {
                (attributes, NodeKind::CharDevice { major: *major, minor: *minor })
            }
            Kind::BlockDevice { attributes, major, minor } => {
                (attributes, NodeKind::BlockDevice { major: *major, minor: *minor })
            }
            Kind::Fifo { attributes } => (attributes, NodeKind::Fifo),
        };
        // An index has no root entry of these kinds.
        let Some((parent, name)) = split_last(path) else { return Ok(()) };
        let parent = self.walk_creating(parent)?;
        self.detach(parent, name);
        let id = self.add(Inode { attributes, content: Content::Other(node), links: 1 })?;
        self.attach(parent, name, id);
        Ok(())
    }

    fn directory(&mut self, path: &'a [u8], attributes: &'a Attributes) -> Result<(), MergeError> {
        let id = match split_last(path) {
            None => ROOT,
            Some((parent, name)) => {
                let parent = self.walk_creating(parent)?;
                match self.child(parent, name) {
                    Some(id) if self.tree.children(id).is_some() => id,
                    _ => self.new_directory(parent, name)?,
                }
            }
        };
        self.tree.inodes[id as usize].attributes = attributes;
        Ok(())
    }

    fn hard_link(&mut self, path: &'a [u8], target: &'a [u8]) -> Result<(), MergeError> {
        let existing = match split_last(target) {
            Some((parent, name)) => {
                self.walk(parent, Missing::Stop)?.and_then(|parent| self.child(parent, name))
            }
            None => Some(ROOT),
        };
        let describe = || (self.layer, shown(path), shown(target));
        let Some(existing) = existing else {
            let (layer, path, target) = describe();
            return Err(MergeError::LinkTargetMissing { layer, path, target });
        };
        if self.tree.children(existing).is_some() {
            let (layer, path, target) = describe();
            return Err(MergeError::LinkToDirectory { layer, path, target });
        }
        let Some((parent, name)) = split_last(path) else { return Ok(()) };
        let parent = self.walk_creating(parent)?;
        // Taken before the old name goes: it may be another name of the same file, or hold it.
        self.tree.inodes[existing as usize].links += 1;
        self.detach(parent, name);
        self.attach(parent, name, existing);
        Ok(())
    }

    fn walk_creating(&mut self, path: &'a [u8]) -> Result<InodeId, MergeError> {
        // With `Create` there always is a directory in the end.
        Ok(self.walk(path, Missing::Create)?.unwrap_or(ROOT))
    }

    /// The directory at `path`, links followed inside the tree.
    fn walk(&mut self, path: &'a [u8], missing: Missing) -> Result<Option<InodeId>, MergeError> {
        let mut above: Vec<InodeId> = Vec::new();
        let mut current = ROOT;
        let mut links = 0;
        let mut pending: Vec<&'a [u8]> = components(path).rev().collect();
        while let Some(name) = pending.pop() {
            self.charge(1, path)?;
            match name {
                b"." => continue,
                b".." => {
                    current = above.pop().unwrap_or(ROOT);
                    continue;
                }
                _ => {}
            }
            if name.len() > MAX_NAME {
                let (layer, path) = (self.layer, shown(path));
                return match missing {
                    Missing::Create => Err(MergeError::NameTooLong { layer, path }),
                    Missing::Stop => Ok(None),
                };
            }
            let child = self.child(current, name);
            let next = match child.map(|id| (id, &self.tree.inodes[id as usize].content)) {
                Some((id, Content::Directory(_))) => id,
                Some((_, Content::Other(NodeKind::Symlink { target }))) => {
                    links += 1;
                    if links > MAX_LINKS {
                        let (layer, path) = (self.layer, shown(path));
                        return Err(MergeError::SymlinkLoop { layer, path });
                    }
                    if target.starts_with(b"/") {
                        above.clear();
                        current = ROOT;
                    }
                    // Taking a target apart costs, even if the walk ends at its first name.
                    let target = *target;
                    self.charge(target.len() as u64 / 2, path)?;
                    pending.extend(components(target).rev());
                    continue;
                }
                // A file where a directory is needed gives way, as under an overlay.
                Some(_) | None if missing == Missing::Create => {
                    self.new_directory(current, name)?
                }
                Some(_) | None => return Ok(None),
            };
            above.push(current);
            current = next;
        }
        Ok(Some(current))
    }

    fn charge(&mut self, steps: u64, path: &[u8]) -> Result<(), MergeError> {
        let left = self.steps.checked_sub(steps);
        self.steps =
            left.ok_or_else(|| MergeError::TooManySteps { layer: self.layer, path: shown(path) })?;
        Ok(())
    }

    fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.tree.children(parent)?.get(name).copied()
    }

    fn new_directory(&mut self, parent: InodeId, name: &'a [u8]) -> Result<InodeId, MergeError> {
        self.detach(parent, name);
        let content = Content::Directory(Children::new());
        let id = self.add(Inode { attributes: &IMPLICIT, content, links: 1 })?;
        self.attach(parent, name, id);
        Ok(id)
    }

    fn add(&mut self, inode: Inode<'a>) -> Result<InodeId, MergeError> {
        let id = InodeId::try_from(self.tree.inodes.len())
            .map_err(|_| MergeError::TooManyFiles { layer: self.layer })?;
        self.tree.inodes.push(inode);
        Ok(id)
    }

    fn attach(&mut self, parent: InodeId, name: &'a [u8], id: InodeId) {
        if let Content::Directory(children) = &mut self.tree.inodes[parent as usize].content {
            children.insert(name, id);
        }
    }

    fn detach(&mut self, parent: InodeId, name: &[u8]) {
        if let Content::Directory(children) = &mut self.tree.inodes[parent as usize].content
            && let Some(id) = children.remove(name)
        {
            self.release(vec![id]);
        }
    }

    /// Takes away one name of each inode, and everything inside directories.
    fn release(&mut self, mut pending: Vec<InodeId>) {
        while let Some(id) = pending.pop() {
            let inode = &mut self.tree.inodes[id as usize];
            inode.links -= 1;
            if let Content::Directory(children) = &mut inode.content {
                pending.extend(std::mem::take(children).into_values());
            }
        }
    }
}

/// What to do about directories that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Stop,
    Create,
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
