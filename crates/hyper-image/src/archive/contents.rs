//! The files of an archive by name, whatever it came as.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use hyper_erofs::Limits;
use hyper_erofs::tar::{HeaderKind, Reader, TarError};
use tempfile::TempDir;

use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::store::Lease;
use crate::store::layout::{self, Layout};
use crate::unpack::{Compression, Unpacker};

/// Most files of an archive: some hundred images' worth.
const MAX_FILES: usize = 100_000;
/// Longest chain of links from one name to a file.
const MAX_LINKS: usize = 8;
/// Bytes copied at once.
const PIECE: usize = 256 << 10;

/// See the module.
#[derive(Debug)]
pub(super) enum Contents {
    /// Taken from a tar stream; removed with this value.
    Unpacked { _directory: TempDir, files: BTreeMap<String, Item> },
    /// An OCI layout on disk. Only names that hold no `..` are looked up.
    Directory(PathBuf),
}

/// What a name in a tar stream is.
#[derive(Debug)]
pub(super) enum Item {
    File { path: PathBuf, digest: Digest, size: u64 },
    Link(String),
}

/// A file of the archive.
#[derive(Debug, Clone)]
pub(super) struct Found {
    path: PathBuf,
    pub size: u64,
    /// Known if it came from a tar stream.
    digest: Option<Digest>,
}

impl Contents {
    pub(super) fn directory(path: PathBuf) -> Self {
        Self::Directory(path)
    }

    /// Takes a stream apart.
    pub(super) fn unpack(
        layout: &Layout,
        stream: impl Read + Send,
        unpacker: &Unpacker,
    ) -> Result<Self, Error> {
        unpacker
            .plain(stream, |stream| Self::take_apart(layout, stream, &unpacker.limits))
            .map_err(super::not_unpacked)?
    }

    fn take_apart(layout: &Layout, stream: impl Read, limits: &Limits) -> Result<Self, Error> {
        let directory = layout.scratch_directory()?;
        let mut charge = layout.charge();
        let mut sum: u64 = 0;
        let mut tar = Reader::new(stream, limits);
        let mut files = BTreeMap::new();
        while let Some(header) = tar.next_entry().map_err(unreadable)? {
            // A name that is no text is none that a manifest could ask for.
            let Some(name) = std::str::from_utf8(&header.path).ok().map(normalise) else {
                continue;
            };
            let item = match header.kind {
                HeaderKind::File { size } => {
                    let path = directory.path().join(files.len().to_string());
                    sum = sum.saturating_add(size);
                    charge.reach(sum)?;
                    let digest = save(&mut tar, &path, size)?;
                    Item::File { path, digest, size }
                }
                HeaderKind::Symlink { target } => {
                    let Ok(target) = String::from_utf8(target) else { continue };
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    Item::Link(normalise(&format!("{parent}/{target}")))
                }
                HeaderKind::HardLink { target } => {
                    let Ok(target) = String::from_utf8(target) else { continue };
                    Item::Link(normalise(&target))
                }
                _ => continue,
            };
            files.insert(name, item);
            if files.len() > MAX_FILES {
                return Err(Error::Archive {
                    reason: format!("it has more than {MAX_FILES} files"),
                });
            }
        }
        Ok(Self::Unpacked { _directory: directory, files })
    }

    /// The file that a name means.
    pub(super) fn find(&self, name: &str) -> Result<Option<Found>, Error> {
        let name = normalise(name);
        match self {
            Self::Unpacked { files, .. } => Ok(find_item(files, name)),
            Self::Directory(root) => {
                let path = root.join(&name);
                match fs::metadata(&path) {
                    Ok(metadata) if metadata.is_file() => {
                        Ok(Some(Found { path, size: metadata.len(), digest: None }))
                    }
                    Ok(_) => Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(layout::failed("examine", &path, error)),
                }
            }
        }
    }

    /// The file that a name means, which must be there.
    pub(super) fn require(&self, name: &str) -> Result<Found, Error> {
        let shown: String = name.chars().take(200).collect();
        self.find(name)?
            .ok_or_else(|| Error::Archive { reason: format!("`{shown}` is missing from it") })
    }
}

impl Found {
    /// All bytes of a small file.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>, Error> {
        layout::read(&self.path, limit)
    }

    /// How its first bytes say it is compressed.
    pub(super) fn compression(&self) -> Result<Compression, Error> {
        let mut start = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(4).read_to_end(&mut start));
        read.map_err(|error| layout::failed("read", &self.path, error))?;
        Ok(Compression::of(&start))
    }

    /// Puts it into the store as a blob; `expected` is what the archive says it is.
    pub(super) fn store(
        &self,
        layout: &Layout,
        lease: &Lease,
        expected: Option<Digest>,
    ) -> Result<Digest, Error> {
        let (digest, copy) = match self.digest {
            Some(digest) => (digest, None),
            None => {
                let copy = layout.scratch_file()?;
                let source = File::open(&self.path)
                    .map_err(|error| layout::failed("open", &self.path, error))?;
                let mut hashing = Hashing::new(copy.as_file());
                io::copy(&mut BufReader::with_capacity(PIECE, source), &mut hashing)
                    .map_err(|error| layout::full("copy", &self.path, self.size, error))?;
                let (_, digest, _) = hashing.finish();
                (digest, Some(copy))
            }
        };
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            let what = format!("`{expected}` of the archive");
            return Err(Error::DigestMismatch { what, expected, actual: digest });
        }
        lease.keep(digest);
        let target = layout.blob(&digest);
        if target.exists() {
            return Ok(digest);
        }
        match copy {
            Some(copy) => layout.publish_file(copy, &target)?,
            None => layout.publish_path(&self.path, &target)?,
        }
        Ok(digest)
    }
}

fn find_item(files: &BTreeMap<String, Item>, mut name: String) -> Option<Found> {
    for _ in 0..MAX_LINKS {
        match files.get(&name)? {
            Item::File { path, digest, size } => {
                return Some(Found { path: path.clone(), size: *size, digest: Some(*digest) });
            }
            Item::Link(target) => name.clone_from(target),
        }
    }
    None
}

fn save(tar: &mut Reader<impl Read>, path: &Path, size: u64) -> Result<Digest, Error> {
    let full = |error| layout::full("write", path, size, error);
    let mut file = Hashing::new(File::create_new(path).map_err(full)?);
    let mut piece = vec![0; PIECE];
    loop {
        let read = tar.read_data(&mut piece).map_err(unreadable)?;
        if read == 0 {
            return Ok(file.finish().1);
        }
        file.write_all(&piece[..read]).map_err(full)?;
    }
}

fn unreadable(error: TarError) -> Error {
    Error::ArchiveRead(error.into())
}

/// Without `.`, `..`, empty parts and a leading slash: `..` never leads above the archive's root.
fn normalise(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn names() {
        for (name, normal) in [
            ("./a/b", "a/b"),
            ("/a//b/", "a/b"),
            ("a/../../../etc/passwd", "etc/passwd"),
            ("../x/layer.tar", "x/layer.tar"),
            ("..", ""),
        ] {
            assert_eq!(normalise(name), normal);
        }
    }

    #[test]
    fn links_are_bounded() {
        let link = |to: &str| Item::Link(to.to_owned());
        let file = Item::File { path: "/0".into(), digest: Digest::of(b""), size: 0 };
        let files: BTreeMap<String, Item> = [
            ("loop".to_owned(), link("loop")),
            ("a".to_owned(), link("b")),
            ("b".to_owned(), file),
        ]
        .into();
        assert!(find_item(&files, "a".to_owned()).is_some());
        assert!(find_item(&files, "loop".to_owned()).is_none());
        assert!(find_item(&files, "gone".to_owned()).is_none());
    }
}
