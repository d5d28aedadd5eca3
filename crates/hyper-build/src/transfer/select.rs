//! Which files a source means.

use std::io::Read as _;
use std::sync::Arc;

use hyper_erofs::{LookupError, NodeKind};
use sha2::{Digest as _, Sha256};

use super::hex;
use crate::BuildError;
use crate::tree::{Files, Found, PIECE, View, join, parts, shown, split};
use hyper_dockerfile::{Wildcard, has_wildcards};

/// What one source of the instruction means.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    pub files: Arc<Files>,
    pub selected: Vec<Selected>,
    /// It is an archive that is taken apart: owners are kept.
    pub unpacked: bool,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selected {
    /// Its real path in the source.
    pub path: Vec<u8>,
    /// Its name, if it is copied into a directory.
    pub name: Vec<u8>,
    pub directory: bool,
}

/// Finds what `source` means: a path, or a pattern if it has wildcards. Blocking.
pub(crate) fn select(
    files: &Arc<Files>,
    source: &str,
    name: &str,
) -> Result<Selection, BuildError> {
    let view = files.view().map_err(|e| BuildError::Context(Box::new(e)))?;
    let wanted: Vec<Vec<u8>> = if has_wildcards(source) {
        matching(&view, source)?
    } else {
        vec![parts(source.as_bytes()).collect::<Vec<_>>().join(&b'/')]
    };
    let mut selected = Vec::new();
    for path in wanted {
        selected.push(one(&view, &path, source, name)?);
    }
    if selected.is_empty() {
        return Err(missing(source, name));
    }
    Ok(Selection { files: Arc::clone(files), selected, unpacked: false })
}

fn missing(source: &str, name: &str) -> BuildError {
    BuildError::Invalid(format!(
        "{name} failed: file not found in build context or excluded by .dockerignore: stat \
         {source}: file does not exist"
    ))
}

fn one(view: &View<'_>, path: &[u8], source: &str, name: &str) -> Result<Selected, BuildError> {
    let place = view.resolve(path).map_err(|error| match error {
        LookupError::NotFound | LookupError::NotDirectory => missing(source, name),
        error => BuildError::Invalid(format!("{name} failed: {source}: {error}")),
    })?;
    let node = place.node.filter(|_| place.path.is_empty() || view.has(&place.path));
    let kind = match node {
        Some(node) => node.kind,
        // A directory that is ignored may hold something that is not.
        None if place.node.is_some_and(|node| node.kind == NodeKind::Directory)
            && !view.walk(&place.path).is_empty() =>
        {
            NodeKind::Directory
        }
        None => return Err(missing(source, name)),
    };
    // The name is what was asked for, even if that is a link to something of another name.
    let last = split(path).map_or(&b""[..], |(_, last)| last);
    Ok(Selected {
        name: if last == b".." { Vec::new() } else { last.to_vec() },
        directory: kind == NodeKind::Directory,
        path: place.path,
    })
}

/// Paths that match a pattern part by part; directories that cannot match are not entered.
fn matching(view: &View<'_>, pattern: &str) -> Result<Vec<Vec<u8>>, BuildError> {
    let mut found: Vec<Vec<u8>> = vec![Vec::new()];
    for part in pattern.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let wildcard = Wildcard::new(part).map_err(BuildError::Invalid)?;
        let mut next = Vec::new();
        for directory in &found {
            let Ok(place) = view.resolve(directory) else { continue };
            for name in view.names(&place.path) {
                if wildcard.matches(&name) {
                    next.push(join(directory, &name));
                }
            }
        }
        found = next;
    }
    let there = |path: &Vec<u8>| {
        view.resolve(path)
            .is_ok_and(|place| view.has(&place.path) || !view.walk(&place.path).is_empty())
    };
    Ok(found.into_iter().filter(there).collect())
}

/// The digest of one thing: times do not count, and owners only if they are kept.
pub(super) fn digest(selection: &Selection, selected: &Selected) -> Result<String, BuildError> {
    let view = selection.files.view().map_err(|e| BuildError::Context(Box::new(e)))?;
    let mut hasher = Sha256::new();
    let mut add = |path: &[u8], found: &Found<'_>| -> Result<(), BuildError> {
        let attributes = found.attributes;
        let owner = if selection.unpacked { (attributes.uid, attributes.gid) } else { (0, 0) };
        let (kind, detail) = match found.kind {
            NodeKind::Directory => ("d", String::new()),
            NodeKind::File { data, .. } => ("f", data.size.to_string()),
            NodeKind::Symlink { target } => ("l", hex(target)),
            NodeKind::CharDevice { major, minor } => ("c", format!("{major}:{minor}")),
            NodeKind::BlockDevice { major, minor } => ("b", format!("{major}:{minor}")),
            NodeKind::Fifo => ("p", String::new()),
        };
        let head = format!(
            "{}\n{kind} {:o} {owner:?} {detail} {}\n",
            hex(path),
            attributes.mode,
            attributes.xattrs.len()
        );
        hasher.update(head);
        for xattr in &attributes.xattrs {
            hasher.update(format!("{} {}\n", hex(&xattr.name), hex(&xattr.value)));
        }
        if let NodeKind::File { layer, data } = found.kind {
            let mut reader = selection.files.reader(layer, data);
            let mut piece = vec![0; PIECE];
            loop {
                let read = reader
                    .read(&mut piece)
                    .map_err(|e| BuildError::file("read what is copied", e))?;
                if read == 0 {
                    break;
                }
                hasher.update(&piece[..read]);
            }
        }
        Ok(())
    };
    if selected.directory {
        for (path, found) in view.walk(&selected.path) {
            add(&path, &found)?;
        }
        return Ok(format!("dir:{}", hex(&hasher.finalize())));
    }
    let gone = || BuildError::Invalid(format!("{}: file does not exist", shown(&selected.path)));
    let node = view.at(&selected.path).ok_or_else(gone)?;
    add(&selected.name, &node.into())?;
    Ok(format!("file:{}", hex(&hasher.finalize())))
}
