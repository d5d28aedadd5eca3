//! Finding files in the tree without a guest.

use super::{Content, InodeId, Node, NodeKind, ROOT, Tree};
use crate::path::components;
use thiserror::Error;

/// Symbolic links followed in one look-up, as in Linux (`MAXSYMLINKS`).
pub(super) const MAX_LINKS: usize = 40;

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

impl Tree<'_> {
    /// The node at `path` (absolute or relative to the root, `.` and `..` allowed), symbolic links resolved inside
    /// the tree, `..` of the root being the root.
    ///
    /// # Errors
    /// [`LookupError`]
    pub fn lookup(&self, path: &[u8], follow: Follow) -> Result<Node<'_>, LookupError> {
        self.find(path, follow).map(|id| self.node(id))
    }

    /// Names and nodes of the directory at `path` (a symbolic link there is followed), sorted by name.
    ///
    /// # Errors
    /// [`LookupError`]
    pub fn read_directory(&self, path: &[u8]) -> Result<Vec<(&[u8], Node<'_>)>, LookupError> {
        let id = self.find(path, Follow::Yes)?;
        let children = self.children(id).ok_or(LookupError::NotDirectory)?;
        Ok(children.iter().map(|(name, id)| (*name, self.node(*id))).collect())
    }

    fn find(&self, path: &[u8], follow: Follow) -> Result<InodeId, LookupError> {
        let mut above: Vec<InodeId> = Vec::new();
        let mut current = ROOT;
        let mut links = 0;
        let mut pending: Vec<&[u8]> = components(path).rev().collect();
        while let Some(component) = pending.pop() {
            let Content::Directory(children) = &self.inodes[current as usize].content else {
                return Err(LookupError::NotDirectory);
            };
            match component {
                b"." => {}
                b".." => current = above.pop().unwrap_or(ROOT),
                name => {
                    let child = *children.get(name).ok_or(LookupError::NotFound)?;
                    match self.inodes[child as usize].content {
                        Content::Other(NodeKind::Symlink { target })
                            if !pending.is_empty() || follow == Follow::Yes =>
                        {
                            links += 1;
                            if links > MAX_LINKS {
                                return Err(LookupError::SymlinkLoop);
                            }
                            if target.starts_with(b"/") {
                                above.clear();
                                current = ROOT;
                            }
                            pending.extend(components(target).rev());
                        }
                        _ => {
                            above.push(current);
                            current = child;
                        }
                    }
                }
            }
        }
        Ok(current)
    }
}
