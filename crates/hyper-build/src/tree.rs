//! Files to copy from: the context, a stage, an image, an archive. All are layers in the store's form, so one walk and
//! one set of rules for symbolic links serves them all, and no name of theirs is ever a path of the host.

use std::io;

use hyper_erofs::{Attributes, FileData, Follow, LookupError, MergeError, Node, NodeKind, Tree};
use hyper_image::ImageFiles;

use hyper_dockerfile::Ignore;

/// Symbolic links followed on the way to one file.
const MAX_LINKS: usize = 40;
/// Bytes read at once.
pub(crate) const PIECE: usize = 256 << 10;

/// Where files come from, with what is left out.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub files: ImageFiles,
    pub ignore: Ignore,
}

impl Files {
    /// Something to look things up in.
    pub fn view(&self) -> Result<View<'_>, MergeError> {
        Ok(View { tree: self.files.tree()?, source: self })
    }

    /// A file's bytes, at most `limit` of them.
    pub fn read(&self, layer: usize, data: FileData, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(data.size.min(limit)).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.files.read_at(layer, data, filled as u64, &mut bytes[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        Ok(bytes)
    }

    /// A file's bytes as a stream.
    pub fn reader(&self, layer: usize, data: FileData) -> FileReader<'_> {
        FileReader { files: self, layer, data, position: 0 }
    }
}

/// See [`Files::reader`].
#[derive(Debug)]
pub(crate) struct FileReader<'f> {
    files: &'f Files,
    layer: usize,
    data: FileData,
    position: u64,
}

impl io::Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.files.files.read_at(self.layer, self.data, self.position, buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// The merged tree of [`Files`].
#[derive(Debug)]
pub(crate) struct View<'f> {
    tree: Tree<'f>,
    pub source: &'f Files,
}

/// Where a path leads: its real name, and what is there.
#[derive(Debug)]
pub(crate) struct Place<'v> {
    /// Without links, `.` or `..`; no slash in front, empty for the root.
    pub path: Vec<u8>,
    /// `None` if there is nothing.
    pub node: Option<Node<'v>>,
}

/// A file found by a walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'v> {
    pub kind: NodeKind<'v>,
    pub attributes: &'v Attributes,
    pub links: u32,
    pub inode: u32,
}

impl<'v> From<Node<'v>> for Found<'v> {
    fn from(node: Node<'v>) -> Self {
        Self { kind: node.kind, attributes: node.attributes, links: node.links, inode: node.inode }
    }
}

impl View<'_> {
    /// Follows a path inside the root. What does not exist is appended as written; links at the end are followed.
    pub fn resolve(&self, path: &[u8]) -> Result<Place<'_>, LookupError> {
        let mut pending: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            if part == b".." {
                real.pop();
                continue;
            }
            real.push(part);
            match self.tree.lookup(&real.join(&b'/'), Follow::No) {
                Ok(Node { kind: NodeKind::Symlink { target }, .. }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LookupError::SymlinkLoop);
                    }
                    real.pop();
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    pending.extend(parts(target).rev().map(<[u8]>::to_vec));
                }
                Ok(Node { kind: NodeKind::Directory, .. }) | Err(LookupError::NotFound) => {}
                Ok(_) if pending.is_empty() => {}
                Ok(_) | Err(LookupError::NotDirectory) => return Err(LookupError::NotDirectory),
                Err(error) => return Err(error),
            }
        }
        let path = real.join(&b'/');
        let node = self.tree.lookup(&path, Follow::No).ok();
        Ok(Place { path, node })
    }

    /// What is at a real path, without following anything.
    pub fn at(&self, path: &[u8]) -> Option<Node<'_>> {
        self.tree.lookup(path, Follow::No).ok()
    }

    /// Whether a file is part of it: it is not ignored.
    pub fn has(&self, path: &[u8]) -> bool {
        !self.source.ignore.excludes(path)
    }

    /// Names in a real directory, sorted.
    pub fn names(&self, directory: &[u8]) -> Vec<Vec<u8>> {
        let listed = self.tree.read_directory(directory).unwrap_or_default();
        listed.into_iter().map(|(name, _)| name.to_vec()).collect()
    }

    /// Everything below a real directory, parents first and sorted; paths are relative to it. Directories that are
    /// ignored are there if something in them is not.
    pub fn walk(&self, top: &[u8]) -> Vec<(Vec<u8>, Found<'_>)> {
        let mut found: Vec<(Vec<u8>, Found<'_>)> = Vec::new();
        let mut queue: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(relative) = queue.pop() {
            let directory = join(top, &relative);
            for (name, node) in self.tree.read_directory(&directory).unwrap_or_default() {
                let path = join(&relative, name);
                if node.kind == NodeKind::Directory {
                    queue.push(path.clone());
                }
                found.push((path, node.into()));
            }
        }
        // Sorted by parts, not by bytes: `a/b` comes before `a-b`.
        found.sort_by(|(a, _), (b, _)| parts(a).cmp(parts(b)));
        if self.source.ignore.is_empty() {
            return found;
        }
        let kept: Vec<bool> = found.iter().map(|(path, _)| self.has(&join(top, path))).collect();
        let mut needed: std::collections::BTreeSet<Vec<u8>> = std::collections::BTreeSet::new();
        for ((path, _), _) in found.iter().zip(&kept).filter(|(_, kept)| **kept) {
            let mut parent = split(path).map(|(parent, _)| parent);
            while let Some(path) = parent.filter(|path| !path.is_empty()) {
                if !needed.insert(path.to_vec()) {
                    break;
                }
                parent = split(path).map(|(parent, _)| parent);
            }
        }
        let mut kept = kept.into_iter();
        found.retain(|(path, _)| kept.next().unwrap_or(false) || needed.contains(path));
        found
    }
}

/// The parts of a path, without empty ones and `.`.
pub(crate) fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// Parent and name; `None` for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        _ if path.is_empty() => None,
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((b"", path)),
    }
}

/// A path below another.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        (b"", name) => name.to_vec(),
        (directory, b"") => directory.to_vec(),
        (directory, name) => [directory, b"/", name].concat(),
    }
}

/// For people.
pub(crate) fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// A path of an instruction in normal form below `base`, which is absolute: `..` never leads above the root.
pub(crate) fn absolute(base: &str, path: &str) -> String {
    let mut all: Vec<&str> = Vec::new();
    let relative = if path.starts_with('/') { "" } else { base };
    for part in relative.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(all.pop()),
            part => all.push(part),
        }
    }
    format!("/{}", all.join("/"))
}
