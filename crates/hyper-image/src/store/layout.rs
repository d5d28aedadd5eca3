//! Where things lie, and how files get there: written aside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::{NamedTempFile, TempDir};

use super::quota::{Charge, Quota};
use crate::digest::Digest;
use crate::error::Error;

/// Content of `oci-layout` (image-spec `image-layout.md`).
pub(crate) const OCI_LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// Paths under the store's root. Absolute, since guests are told them.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
    quota: Arc<Quota>,
}

impl Layout {
    /// Creates what is missing. `limit` is how many bytes it may hold.
    pub(crate) fn create(root: &Path, limit: Option<u64>) -> Result<Self, Error> {
        let root = std::path::absolute(root).map_err(|error| failed("find", root, error))?;
        let quota = Quota::new(&root, limit);
        let layout = Self { root, quota };
        // Hypervisors run as other users: they may pass through to a file they are told, and list nothing.
        let directories = [
            (layout.root.clone(), 0o711),
            (layout.root.join("blobs"), 0o700),
            (layout.root.join("blobs/sha256"), 0o700),
            (layout.root.join("layers"), 0o711),
            (layout.root.join("rootfs"), 0o711),
            (layout.ingest(), 0o700),
        ];
        for (path, mode) in directories {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(&path);
            made.map_err(|error| failed("create", &path, error))?;
        }
        let marker = layout.root.join("oci-layout");
        if !marker.exists() {
            layout.write(&marker, OCI_LAYOUT.as_bytes())?;
        }
        Ok(layout)
    }

    /// To count what is going to be written.
    pub(crate) fn charge(&self) -> Charge {
        Charge::new(&self.quota)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The directory of a converted layer.
    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    pub(crate) fn roots(&self) -> PathBuf {
        self.root.join("rootfs")
    }

    /// The directory of an assembled root.
    pub(crate) fn rootfs(&self, chain: &Digest) -> PathBuf {
        self.roots().join(chain.hex())
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// What has come of a blob so far.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.ingest().join(format!("{}.partial", digest.hex()))
    }

    /// A file of its own in `ingest/`, removed unless it is renamed away.
    pub(crate) fn scratch_file(&self) -> Result<NamedTempFile, Error> {
        let ingest = self.ingest();
        NamedTempFile::with_prefix_in("file-", &ingest)
            .map_err(|error| failed("create a file in", &ingest, error))
    }

    /// A directory of its own in `ingest/`, removed unless it is renamed away.
    pub(crate) fn scratch_directory(&self) -> Result<TempDir, Error> {
        let ingest = self.ingest();
        TempDir::with_prefix_in("dir-", &ingest)
            .map_err(|error| failed("create a directory in", &ingest, error))
    }

    /// Puts a small file in place atomically.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let need = bytes.len() as u64;
        let mut file = self.scratch_file()?;
        file.write_all(bytes).map_err(|error| full("write", path, need, error))?;
        self.publish_file(file, path)
    }

    /// Puts a small blob in place, unless it is there.
    pub(crate) fn write_blob(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        let path = self.blob(&digest);
        if !path.exists() {
            self.charge().reach(bytes.len() as u64)?;
            self.write(&path, bytes)?;
        }
        Ok(digest)
    }

    /// Gives a finished scratch file its name.
    pub(crate) fn publish_file(&self, file: NamedTempFile, path: &Path) -> Result<(), Error> {
        file.as_file().sync_data().map_err(|error| full("sync", path, 0, error))?;
        let mode = fs::Permissions::from_mode(0o644);
        file.as_file()
            .set_permissions(mode)
            .map_err(|error| failed("set the mode of", path, error))?;
        file.persist(path).map_err(|error| full("name", path, 0, error.error))?;
        sync_parent(path)
    }

    /// As [`publish_file`](Self::publish_file), for a file inside a scratch directory, which keeps its name there too.
    pub(crate) fn publish_path(&self, from: &Path, path: &Path) -> Result<(), Error> {
        let file = File::open(from).map_err(|error| failed("open", from, error))?;
        file.sync_data().map_err(|error| full("sync", path, 0, error))?;
        let mode = fs::Permissions::from_mode(0o644);
        file.set_permissions(mode).map_err(|error| failed("set the mode of", from, error))?;
        match fs::hard_link(from, path) {
            Ok(()) => sync_parent(path),
            Err(error) if taken(&error) => Ok(()),
            Err(error) => Err(full("name", path, 0, error)),
        }
    }

    /// Gives a finished scratch directory its name. Its files must be synced; if the name is taken, what is there
    /// stays: both hold the same content.
    pub(crate) fn publish_directory(&self, directory: TempDir, path: &Path) -> Result<(), Error> {
        let from = directory.path();
        let mode = fs::Permissions::from_mode(0o711);
        fs::set_permissions(from, mode).map_err(|error| failed("set the mode of", from, error))?;
        sync(from)?;
        match fs::rename(from, path) {
            Ok(()) => {
                // Its name is gone: nothing left to remove.
                let _ = directory.keep();
                sync_parent(path)
            }
            Err(error) if taken(&error) => Ok(()),
            Err(error) => Err(full("name", path, 0, error)),
        }
    }

    /// Takes a file or directory away: at once out of its place, then removed.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), Error> {
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        let grave = self.scratch_directory()?;
        match fs::rename(path, grave.path().join("it")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove", path, error)),
        }
        let dead = grave.path().to_owned();
        grave.close().map_err(|error| failed("remove", &dead, error))
    }
}

fn taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}

/// A directory's entries, sorted; empty if it does not exist.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", directory, error)),
    };
    let paths: io::Result<Vec<PathBuf>> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(|error| failed("list", directory, error))?;
    paths.sort();
    Ok(paths)
}

/// The digest that is the name of a file or directory of the store.
pub(crate) fn digest_of_name(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_name()?.to_str()?)
}

/// The digest of the blob that a file of `ingest/` is a part of.
pub(crate) fn digest_of_partial(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_name()?.to_str()?.strip_suffix(".partial")?)
}

/// A file's bytes, if it has at most `limit`.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    use io::Read as _;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| failed("read", path, error))?;
    if bytes.len() as u64 > limit {
        let reason = format!("it is larger than {limit} bytes");
        return Err(Error::Damaged { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

pub(crate) fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| full("sync", path, 0, error))
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), sync)
}

/// Bytes free for us on the file system of `path`; `u64::MAX` if it does not say.
pub(crate) fn available(path: &Path) -> u64 {
    let existing = path.ancestors().find(|path| path.exists());
    let Some(Ok(stat)) = existing.map(rustix::fs::statvfs) else { return u64::MAX };
    stat.f_bavail.saturating_mul(stat.f_frsize)
}

pub(crate) fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { action, path: path.to_owned(), source }
}

/// As [`failed`], but a full disk or quota is told as such, with what was to be written. An error of ours that went
/// through a writer comes out again.
pub(crate) fn full(action: &'static str, path: &Path, need: u64, source: io::Error) -> Error {
    let source = match source.downcast::<Error>() {
        Ok(error) => return error,
        Err(source) => source,
    };
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::NoSpace { path: path.to_owned(), need, available: available(path) }
        }
        _ => failed(action, path, source),
    }
}

/// Bytes of all files below a directory.
pub(crate) fn bytes_of(directory: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    for path in list(directory)? {
        // What is renamed away while we look no longer counts.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        bytes += if metadata.is_dir() { bytes_of(&path)? } else { metadata.len() };
    }
    Ok(bytes)
}
