//! Directories of the host, as containerd's snapshots are, to EROFS images; converted once.
//!
//! ```text
//! DIR/layers/KEY/{blob, index, source}     one committed directory
//! DIR/images/KEY/{meta, image.json}        one stack of them
//! ```
//! A committed snapshot does not change, so its key is what identifies the directory: path, device,
//! inode, birth and change time. A directory that may change (a bind, an active snapshot) is
//! converted anew into the container's private directory each time. Entries appear by rename, so
//! they are whole; one lock serializes conversions of all supervisors. Layers whose directory is
//! gone or another one are removed when the next conversion runs; guests that use them have them
//! open.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hyper_erofs::{
    BlobRef, DirectoryError, ImageError, ImageOptions, LayerIndex, Limits, MergeError,
};
use hyper_task::rootfs::{DiskFile, RootfsImage};
use rustix::fs::{AtFlags, CWD, FlockOperation, StatxFlags, flock, statx};
use sha2::{Digest as _, Sha256};

/// Changes when the same directory would give other files.
const VERSION: &[u8] = b"hyper converted 1";

/// A directory to convert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub dir: PathBuf,
    /// Nobody changes it as long as it exists.
    pub committed: bool,
}

impl Source {
    pub fn committed(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), committed: true }
    }

    pub fn changing(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), committed: false }
    }
}

/// Why a directory could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("{action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("convert directory `{}`", dir.display())]
    Directory {
        dir: PathBuf,
        #[source]
        source: DirectoryError,
    },
    #[error("merge layers")]
    Merge(#[from] MergeError),
    #[error("write image `{}`", path.display())]
    Image {
        path: PathBuf,
        #[source]
        source: ImageError,
    },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ConvertError {
    let path = path.to_owned();
    move |source| ConvertError::Io { action, path, source }
}

/// Converts into a shared cache and a container's private directory.
#[derive(Debug)]
pub(crate) struct Converter<'a> {
    pub shared: &'a Path,
    pub private: &'a Path,
}

struct Layer {
    blob: PathBuf,
    index: LayerIndex,
}

impl Converter<'_> {
    /// The image of `sources`, the lowest first. Blocking, seconds when nothing is cached.
    pub fn image(&self, sources: &[Source]) -> Result<RootfsImage, ConvertError> {
        let keys = sources.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        let cached = keys.iter().all(Option::is_some);
        let dir = if cached {
            let mut hash = Sha256::new_with_prefix(VERSION);
            keys.iter().flatten().for_each(|key| hash.update(key));
            let dir = self.shared.join("images").join(hex(&hash.finalize()));
            if let Some(image) = whole_image(&dir) {
                return Ok(image);
            }
            dir
        } else {
            self.private.join("image")
        };
        make_dir(&self.shared.join("layers"))?;
        make_dir(&self.shared.join("images"))?;
        let _lock = self.lock()?;
        if let Some(image) = cached.then(|| whole_image(&dir)).flatten() {
            return Ok(image);
        }
        self.prune();
        let mut layers = Vec::with_capacity(sources.len());
        for (at, (source, key)) in sources.iter().zip(&keys).enumerate() {
            let dir = match key {
                Some(key) => self.shared.join("layers").join(key),
                None => self.private.join(format!("layer-{at}")),
            };
            layers.push(layer(&source.dir, &dir)?);
        }
        appear(&dir, |dir| write_image(&layers, dir))?;
        whole_image(&dir).ok_or_else(|| io("use", &dir)(std::io::ErrorKind::InvalidData.into()))
    }

    fn lock(&self) -> Result<File, ConvertError> {
        let path = self.shared.join("lock");
        let lock = || {
            let file = File::create(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(io("lock", &path))
    }

    /// Removes layers whose source is gone, and images that lost a layer.
    fn prune(&self) {
        for entry in std::fs::read_dir(self.shared.join("layers")).into_iter().flatten().flatten() {
            let dir = entry.path();
            let name = entry.file_name();
            let source = std::fs::read(dir.join("source")).unwrap_or_default();
            let source = Path::new(std::ffi::OsStr::from_bytes(&source));
            let same = key(&Source::committed(source)).ok().flatten();
            if same.is_none_or(|key| name != *key) {
                remove(&dir);
            }
        }
        for entry in std::fs::read_dir(self.shared.join("images")).into_iter().flatten().flatten() {
            if whole_image(&entry.path()).is_none() {
                remove(&entry.path());
            }
        }
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        tracing::warn!(path = %dir.display(), %error, "stale conversion not removed");
    }
}

/// Identity of a committed directory; `None` for one that may change.
fn key(source: &Source) -> Result<Option<String>, ConvertError> {
    if !source.committed {
        return Ok(None);
    }
    let dir = std::fs::canonicalize(&source.dir).map_err(io("open", &source.dir))?;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(CWD, &dir, AtFlags::empty(), wanted)
        .map_err(|error| io("look at", &dir)(error.into()))?;
    let mut hash = Sha256::new_with_prefix(VERSION);
    for number in [
        u64::from(stat.stx_dev_major),
        u64::from(stat.stx_dev_minor),
        stat.stx_ino,
        stat.stx_btime.tv_sec.cast_unsigned(),
        u64::from(stat.stx_btime.tv_nsec),
        stat.stx_ctime.tv_sec.cast_unsigned(),
        u64::from(stat.stx_ctime.tv_nsec),
    ] {
        hash.update(number.to_le_bytes());
    }
    hash.update(dir.as_os_str().as_bytes());
    Ok(Some(hex(&hash.finalize())))
}

/// The image of a directory under `images`, if all its files are there.
fn whole_image(dir: &Path) -> Option<RootfsImage> {
    let bytes = std::fs::read(dir.join("image.json")).ok()?;
    let image: RootfsImage = serde_json::from_slice(&bytes).ok()?;
    std::iter::once(&image.metadata)
        .chain(&image.layers)
        .all(|file| std::fs::metadata(&file.path).is_ok_and(|meta| meta.len() == file.bytes))
        .then_some(image)
}

fn layer(source: &Path, dir: &Path) -> Result<Layer, ConvertError> {
    if !dir.join("index").exists() {
        appear(dir, |dir| write_layer(source, dir))?;
    }
    let path = dir.join("index");
    let bytes = std::fs::read(&path).map_err(io("read", &path))?;
    let index = LayerIndex::decode(&bytes, &Limits::default()).map_err(|error| {
        // It is made again at the next try.
        remove(dir);
        io("understand", &path)(std::io::Error::other(error))
    })?;
    Ok(Layer { blob: dir.join("blob"), index })
}

fn write_layer(source: &Path, dir: &Path) -> Result<(), ConvertError> {
    let path = dir.join("blob");
    let fail = || io("write", &path);
    let mut blob = BufWriter::with_capacity(256 << 10, File::create(&path).map_err(fail())?);
    let index = hyper_erofs::convert_directory(source, &mut blob, &Limits::default())
        .map_err(|error| ConvertError::Directory { dir: source.to_owned(), source: error })?;
    blob.flush().map_err(fail())?;
    let path = dir.join("source");
    let canonical = std::fs::canonicalize(source).map_err(io("open", source))?;
    std::fs::write(&path, canonical.as_os_str().as_bytes()).map_err(io("write", &path))?;
    let path = dir.join("index");
    std::fs::write(&path, index.encode()).map_err(io("write", &path))
}

fn write_image(layers: &[Layer], dir: &Path) -> Result<(), ConvertError> {
    let path = dir.join("meta");
    let blobs: Vec<BlobRef> = layers
        .iter()
        .map(|layer| BlobRef { id: layer.blob.display().to_string(), len: layer.index.blob_len() })
        .collect();
    let tree = hyper_erofs::merge(layers.iter().map(|layer| &layer.index))?;
    let mut out = BufWriter::new(File::create(&path).map_err(io("write", &path))?);
    let layout = tree
        .write_metadata(&mut out, &blobs, &ImageOptions::default())
        .map_err(|source| ConvertError::Image { path: path.clone(), source })?;
    out.flush().map_err(io("write", &path))?;
    // The directory is renamed when it is whole; the JSON names the file's later path.
    let final_dir = dir.with_extension("");
    let image = RootfsImage {
        metadata: DiskFile { path: final_dir.join("meta"), bytes: layout.meta_len },
        layers: layout
            .blobs
            .iter()
            .map(|blob| DiskFile { path: layers[blob.layer].blob.clone(), bytes: blob.len })
            .collect(),
    };
    let path = dir.join("image.json");
    let json = serde_json::to_vec(&image).map_err(|error| io("write", &path)(error.into()))?;
    std::fs::write(&path, json).map_err(io("write", &path))
}

/// Lets `fill` write to `DIR.new` and renames it to `dir`. The caller holds the lock.
fn appear(
    dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let new = dir.with_extension("new");
    for old in [&new, dir] {
        if old.exists() {
            std::fs::remove_dir_all(old).map_err(io("remove", old))?;
        }
    }
    make_dir(&new)?;
    let filled = fill(&new)
        .and_then(|()| sync(&new))
        .and_then(|()| std::fs::rename(&new, dir).map_err(io("name", dir)));
    if filled.is_err() {
        let _ = std::fs::remove_dir_all(&new);
    }
    filled
}

/// A name must not survive a crash of the host that its contents did not.
fn sync(dir: &Path) -> Result<(), ConvertError> {
    for entry in std::fs::read_dir(dir).map_err(io("list", dir))? {
        let path = entry.map_err(io("list", dir))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(io("sync", &path))?;
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), ConvertError> {
    std::fs::create_dir_all(dir).map_err(io("make directory", dir))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn committed_directories_are_converted_once_and_forgotten_when_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, private) = (dir.path().join("s"), dir.path().join("p"));
        let low = dir.path().join("low");
        let top = dir.path().join("top");
        for (dir, file) in [(&low, "a"), (&top, "b")] {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(dir.join(file), file.repeat(5000)).unwrap();
        }
        let converter = Converter { shared: &shared, private: &private };
        let sources = [Source::committed(&low), Source::committed(&top)];
        let first = converter.image(&sources).unwrap();
        assert_eq!(first.layers.len(), 2);
        assert!(first.layers.iter().all(|layer| layer.bytes == 8192));
        let made = std::fs::metadata(&first.layers[0].path).unwrap().modified().unwrap();
        assert_eq!(converter.image(&sources).unwrap(), first);
        assert_eq!(std::fs::metadata(&first.layers[0].path).unwrap().modified().unwrap(), made);
        assert!(!private.exists());

        let changing = converter.image(&[Source::committed(&low), Source::changing(&top)]).unwrap();
        assert_eq!(changing.layers[0], first.layers[0]);
        assert!(changing.layers[1].path.starts_with(&private));

        std::fs::remove_dir_all(&top).unwrap();
        converter.image(&[Source::changing(&low)]).unwrap();
        assert!(!first.metadata.path.exists() && first.layers[0].path.exists());
        assert!(converter.image(&sources).unwrap_err().to_string().contains("top"));
    }
}
