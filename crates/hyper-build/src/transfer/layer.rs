//! Selected files as a layer archive on top of an image.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Write};

use hyper_erofs::tar::write::{END, encode, padding_of};
use hyper_erofs::tar::{Header, HeaderKind};
use hyper_erofs::{Attributes, LookupError, NodeKind, Timestamp};

use super::{Placing, Selection};
use crate::BuildError;
use crate::owner::Owner;
use crate::tree::{Found, PIECE, Place, View, join, parts, shown, split};

/// One entry to be: what it is, and where its content comes from.
struct Planned<'v> {
    found: Found<'v>,
    /// Number of the selection.
    from: usize,
    attributes: Attributes,
}

/// The files of one `COPY` or `ADD`, named in the image.
pub(crate) struct LayerFiles<'v> {
    /// By their parts, so that parents come first.
    entries: BTreeMap<Vec<Vec<u8>>, Entry<'v>>,
    placing: &'v Placing,
    image: &'v View<'v>,
    views: &'v [View<'v>],
}

enum Entry<'v> {
    /// A directory that is there already, or is made on the way.
    Parent(Attributes),
    Planned(Planned<'v>),
}

impl<'v> LayerFiles<'v> {
    /// Places what was selected; `views` has one element per selection.
    pub fn plan(
        selections: &[Selection],
        views: &'v [View<'v>],
        image: &'v View<'v>,
        placing: &'v Placing,
    ) -> Result<Self, BuildError> {
        let mut files = Self { entries: BTreeMap::new(), placing, image, views };
        let count: usize = selections.iter().map(|selection| selection.selected.len()).sum();
        let into = placing.destination.ends_with('/');
        if count > 1 && !into {
            return Err(BuildError::Invalid(format!(
                "When using {} with more than one source file, the destination must be a directory \
                 and end with a /",
                placing.name
            )));
        }
        for (from, selection) in selections.iter().enumerate() {
            for selected in &selection.selected {
                let target = files.target()?;
                let is_directory = target.node.is_some_and(|node| node.kind == NodeKind::Directory);
                if selected.directory {
                    if target.node.is_some() && !is_directory {
                        return Err(files.not_a_directory(&target.path));
                    }
                    files.contents(from, selection, &selected.path, &target.path)?;
                } else {
                    let path = match into || is_directory {
                        true => files.inside(&target, &selected.name)?,
                        false => target.path,
                    };
                    let node = views[from].at(&selected.path).ok_or_else(|| {
                        BuildError::Invalid(format!("{} is gone", shown(&selected.path)))
                    })?;
                    files.add(from, selection, &path, node.into())?;
                }
            }
        }
        Ok(files)
    }

    fn target(&self) -> Result<Place<'v>, BuildError> {
        self.resolve(self.placing.destination.as_bytes())
    }

    fn resolve(&self, path: &[u8]) -> Result<Place<'v>, BuildError> {
        self.image.resolve(path).map_err(|error| match error {
            LookupError::NotDirectory => self.not_a_directory(path),
            error => {
                let (name, path) = (self.placing.name, String::from_utf8_lossy(path));
                BuildError::Invalid(format!("{name} failed: destination {path}: {error}"))
            }
        })
    }

    fn not_a_directory(&self, path: &[u8]) -> BuildError {
        let path = String::from_utf8_lossy(path);
        let (name, path) = (self.placing.name, path.trim_start_matches('/'));
        BuildError::Invalid(format!("{name} failed: cannot copy to non-directory: /{path}"))
    }

    /// The real path of a file in the destination; a link that is there gives way.
    fn inside(&self, target: &Place<'_>, name: &[u8]) -> Result<Vec<u8>, BuildError> {
        if target.node.is_some_and(|node| node.kind != NodeKind::Directory) {
            return Err(self.not_a_directory(&target.path));
        }
        Ok(join(&target.path, name))
    }

    /// All that is in a directory, into another.
    fn contents(
        &mut self,
        from: usize,
        selection: &Selection,
        top: &[u8],
        target: &[u8],
    ) -> Result<(), BuildError> {
        self.parents(target)?;
        let existing = self.image.at(target).is_some() || target.is_empty();
        if !existing {
            let owner = self.placing.owner.unwrap_or_default();
            self.entries.entry(key(target)).or_insert(Entry::Parent(made(owner)));
        }
        for (path, found) in self.views[from].walk(top) {
            self.add(from, selection, &join(target, &path), found)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        from: usize,
        selection: &Selection,
        path: &[u8],
        found: Found<'v>,
    ) -> Result<(), BuildError> {
        if path.is_empty() {
            return Err(self.not_a_directory(b""));
        }
        self.parents(split(path).map_or(&b""[..], |(parent, _)| parent))?;
        let mut attributes = found.attributes.clone();
        let own = selection.unpacked.then_some(Owner { uid: attributes.uid, gid: attributes.gid });
        let Owner { uid, gid } = self.placing.owner.or(own).unwrap_or_default();
        (attributes.uid, attributes.gid) = (uid, gid);
        if let Some(mode) =
            self.placing.mode.filter(|_| !matches!(found.kind, NodeKind::Symlink { .. }))
        {
            attributes.mode = mode;
        }
        self.entries.insert(key(path), Entry::Planned(Planned { found, from, attributes }));
        Ok(())
    }

    /// The directories above and at `path`: as they are in the image, or new.
    fn parents(&mut self, path: &[u8]) -> Result<(), BuildError> {
        let mut above: Vec<Vec<u8>> = Vec::new();
        for part in parts(path) {
            above.push(part.to_vec());
            if self.entries.contains_key(&above) {
                continue;
            }
            let attributes = match self.image.at(&above.join(&b'/')) {
                Some(node) if node.kind == NodeKind::Directory => {
                    // As if there was nothing below: what is there stays as it is.
                    if self.placing.link {
                        continue;
                    }
                    node.attributes.clone()
                }
                Some(_) => return Err(self.not_a_directory(&above.join(&b'/'))),
                None if self.placing.link => continue,
                None => made(self.placing.owner.unwrap_or_default()),
            };
            self.entries.insert(above.clone(), Entry::Parent(attributes));
        }
        Ok(())
    }

    /// Writes the archive. Blocking.
    pub fn write(&self, selections: &[Selection], mut out: impl Write) -> Result<(), BuildError> {
        let full = |e| BuildError::file("write a layer", e);
        // Names of one inode of one source, after the first, are links.
        let mut first_names: HashMap<(usize, u32), Vec<u8>> = HashMap::new();
        for (key, entry) in &self.entries {
            let path = key.join(&b'/');
            let planned = match entry {
                Entry::Parent(attributes) => {
                    let head = head(path, HeaderKind::Directory, attributes);
                    out.write_all(&encode(&head)).map_err(full)?;
                    continue;
                }
                Entry::Planned(planned) => planned,
            };
            let found = planned.found;
            let kind = match found.kind {
                NodeKind::Directory => HeaderKind::Directory,
                NodeKind::File { data, .. } => HeaderKind::File { size: data.size },
                NodeKind::Symlink { target } => HeaderKind::Symlink { target: target.to_vec() },
                NodeKind::CharDevice { major, minor } => HeaderKind::CharDevice { major, minor },
                NodeKind::BlockDevice { major, minor } => HeaderKind::BlockDevice { major, minor },
                NodeKind::Fifo => HeaderKind::Fifo,
            };
            let linked = found.links > 1 && found.kind != NodeKind::Directory;
            if linked {
                let id = (planned.from, found.inode);
                if let Some(target) = first_names.get(&id) {
                    let kind = HeaderKind::HardLink { target: target.clone() };
                    out.write_all(&encode(&head(path, kind, &planned.attributes))).map_err(full)?;
                    continue;
                }
                first_names.insert(id, path.clone());
            }
            out.write_all(&encode(&head(path, kind, &planned.attributes))).map_err(full)?;
            if let NodeKind::File { layer, data } = found.kind {
                let mut reader = selections[planned.from].files.reader(layer, data);
                let mut piece = vec![0; PIECE];
                loop {
                    let read = reader
                        .read(&mut piece)
                        .map_err(|e| BuildError::file("read what is copied", e))?;
                    if read == 0 {
                        break;
                    }
                    out.write_all(&piece[..read]).map_err(full)?;
                }
                out.write_all(padding_of(data.size)).map_err(full)?;
            }
        }
        out.write_all(&END).map_err(full)
    }
}

/// The archive of a directory that `WORKDIR` makes, with those above it that are missing; `None` if it is there.
pub(crate) fn directory(image: &View<'_>, path: &str) -> Result<Option<Vec<u8>>, BuildError> {
    let wrong = |why: &dyn std::fmt::Display| {
        BuildError::Invalid(format!("WORKDIR {path} cannot be made in the image: {why}"))
    };
    let place = image.resolve(path.as_bytes()).map_err(|e| wrong(&e))?;
    match place.node.map(|node| node.kind) {
        Some(NodeKind::Directory) => return Ok(None),
        Some(_) => return Err(wrong(&"it is not a directory")),
        None if place.path.is_empty() => return Ok(None),
        None => {}
    }
    let mut archive = Vec::new();
    let mut above = Vec::new();
    for part in parts(&place.path) {
        above = join(&above, part);
        let attributes =
            image.at(&above).map_or_else(|| made(Owner::default()), |node| node.attributes.clone());
        archive.extend(encode(&head(above.clone(), HeaderKind::Directory, &attributes)));
    }
    archive.extend_from_slice(&END);
    Ok(Some(archive))
}

fn key(path: &[u8]) -> Vec<Vec<u8>> {
    parts(path).map(<[u8]>::to_vec).collect()
}

/// A directory that nobody described. Its time is fixed: the same build gives the same layer.
fn made(owner: Owner) -> Attributes {
    Attributes {
        mode: 0o755,
        uid: owner.uid,
        gid: owner.gid,
        mtime: Timestamp::default(),
        xattrs: Vec::new(),
    }
}

fn head(mut path: Vec<u8>, kind: HeaderKind, attributes: &Attributes) -> Header {
    if kind == HeaderKind::Directory {
        path.push(b'/');
    }
    Header {
        path,
        kind,
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime,
        xattrs: attributes.xattrs.clone(),
    }
}
