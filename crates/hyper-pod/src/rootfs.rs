//! A container's root file system, from what the caller mounted to disks for its guest.
//!
//! ```text
//! hyper.erofs (RootfsImage) ─────────────────────────────► image disk   + upper=… | memory
//! overlay lowerdir=… upperdir=… ─┐
//! bind DIR                       ├─ convert (cached) ────► image disk   + fresh ext4
//! (none: BUNDLE/rootfs)         ─┘
//! ```
//! Of containerd's overlay only what is in the directories now is used: a non-empty `upperdir` is
//! one more layer on top. What the container writes goes to an ext4 disk of its own and dies with
//! it; it is not put back into containerd's `upperdir`, so `ctr snapshot commit` of a container's
//! snapshot does not hold it.

use std::path::{Path, PathBuf};

use hyper_hypervisor::{Disk, Extent};
use hyper_task::rootfs::{MOUNT_TYPE, RootfsImage, RootfsOptions, UnknownOption};

use crate::Settings;
use crate::convert::{ConvertError, Converter, Source};

/// Largest JSON of a [`RootfsImage`] in bytes.
const MAX_IMAGE_JSON: u64 = 1 << 20;

/// A mount of the Task API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsMount {
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// Why a root file system cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("{0} rootfs mounts are given, at most one can be used")]
    TooMany(usize),
    #[error("rootfs mount of type `{0}` is not one of {MOUNT_TYPE}, overlay, bind")]
    Kind(String),
    #[error(transparent)]
    Option(#[from] UnknownOption),
    #[error("overlay option `{0}` is not understood")]
    OverlayOption(String),
    #[error("overlay without lowerdir")]
    NoLower,
    #[error("neither a rootfs mount nor `root.path` in config.json")]
    Nothing,
    #[error("read rootfs image `{}`", path.display())]
    Image {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("writable disk")]
    Upper(#[source] hyper_disk::DiskError),
}

/// The disks of one container.
#[derive(Debug, Clone)]
pub(crate) struct RootDisks {
    /// Metadata first, then the layers.
    pub image: Disk,
    /// `None`: writes stay in guest memory.
    pub upper: Option<Disk>,
    pub read_only: bool,
    /// Files made here, to be removed with the container.
    pub owned: Vec<PathBuf>,
}

/// Finds or makes the disks. Blocking. On failure nothing made here stays.
pub(crate) fn prepare(
    settings: &Settings,
    container: &str,
    mounts: &[RootfsMount],
    root: Option<&Path>,
) -> Result<RootDisks, RootfsError> {
    match mounts {
        [] => {
            let root = root.ok_or(RootfsError::Nothing)?;
            converted(settings, container, &[Source::changing(root)], false)
        }
        [mount] if mount.kind == MOUNT_TYPE => ours(mount),
        [mount] if mount.kind == "overlay" => {
            let (sources, read_only) = overlay(mount)?;
            converted(settings, container, &sources, read_only)
        }
        [mount]
            if mount.kind == "bind"
                || mount.options.iter().any(|o| o == "rbind" || o == "bind") =>
        {
            let read_only = mount.options.iter().any(|option| option == "ro");
            let source = [Source::changing(Path::new(&mount.source))];
            converted(settings, container, &source, read_only)
        }
        [mount] => Err(RootfsError::Kind(mount.kind.clone())),
        several => Err(RootfsError::TooMany(several.len())),
    }
}

fn ours(mount: &RootfsMount) -> Result<RootDisks, RootfsError> {
    let options = RootfsOptions::from_options(&mount.options)?;
    let path = PathBuf::from(&mount.source);
    let fail = |source| RootfsError::Image { path: path.clone(), source };
    let length = std::fs::metadata(&path).map_err(fail)?.len();
    if length > MAX_IMAGE_JSON {
        return Err(fail(std::io::Error::other(format!("{length} bytes are too many"))));
    }
    let bytes = std::fs::read(&path).map_err(fail)?;
    let image: RootfsImage = serde_json::from_slice(&bytes).map_err(|error| fail(error.into()))?;
    let upper = match options.upper {
        None => None,
        Some(path) => {
            let bytes = std::fs::metadata(&path)
                .map_err(|source| RootfsError::Image { path: path.clone(), source })?
                .len();
            Some(writable(path, bytes, options.ephemeral))
        }
    };
    Ok(RootDisks {
        image: image_disk(&image),
        upper,
        read_only: options.read_only,
        owned: Vec::new(),
    })
}

fn converted(
    settings: &Settings,
    container: &str,
    sources: &[Source],
    read_only: bool,
) -> Result<RootDisks, RootfsError> {
    let private = settings.disk_dir.join(container);
    let undo = |error: RootfsError| {
        // Nothing more can be done about a directory that does not go.
        let _ = std::fs::remove_dir_all(&private);
        error
    };
    let io = |source| RootfsError::Image { path: private.clone(), source };
    std::fs::create_dir_all(&private).map_err(io)?;
    let converter = Converter { shared: &settings.converted_dir, private: &private };
    let image = converter.image(sources).map_err(|error| undo(error.into()))?;
    let upper = private.join("upper.ext4");
    hyper_disk::fresh_ext4_from(&settings.template_dir, &upper, settings.upper_bytes)
        .map_err(|error| undo(RootfsError::Upper(error)))?;
    Ok(RootDisks {
        image: image_disk(&image),
        upper: Some(writable(upper, settings.upper_bytes, true)),
        read_only,
        owned: vec![private],
    })
}

fn image_disk(image: &RootfsImage) -> Disk {
    let files = std::iter::once(&image.metadata).chain(&image.layers);
    Disk {
        extents: files.map(|file| Extent { path: file.path.clone(), bytes: file.bytes }).collect(),
        read_only: true,
        ephemeral: false,
        mapped: false,
    }
}

fn writable(path: PathBuf, bytes: u64, ephemeral: bool) -> Disk {
    Disk { extents: vec![Extent { path, bytes }], read_only: false, ephemeral, mapped: false }
}

/// The directories of an overlay mount, the lowest first, and whether it is read-only.
fn overlay(mount: &RootfsMount) -> Result<(Vec<Source>, bool), RootfsError> {
    let mut lower = Vec::new();
    let mut upper = None;
    let mut read_only = true;
    for option in &mount.options {
        match option.split_once('=') {
            Some(("lowerdir", dirs)) => lower = split_dirs(dirs),
            Some(("upperdir", dir)) => upper = Some(unescape(dir)),
            Some((
                "workdir" | "index" | "xino" | "metacopy" | "redirect_dir" | "nfs_export",
                _,
            )) => {}
            None if matches!(option.as_str(), "ro" | "rw" | "userxattr" | "volatile") => {}
            _ => return Err(RootfsError::OverlayOption(option.clone())),
        }
    }
    if lower.is_empty() {
        return Err(RootfsError::NoLower);
    }
    let mut sources: Vec<Source> = lower.iter().rev().map(|dir| Source::committed(dir)).collect();
    if let Some(dir) = upper {
        read_only = mount.options.iter().any(|option| option == "ro");
        let mut entries = std::fs::read_dir(&dir)
            .map_err(|source| RootfsError::Image { path: dir.clone(), source })?;
        if entries.next().is_some() {
            sources.push(Source::changing(&dir));
        }
    }
    Ok((sources, read_only))
}

/// `a:b\:c`, top first: Documentation/filesystems/overlayfs.rst.
fn split_dirs(dirs: &str) -> Vec<PathBuf> {
    let mut parts = vec![String::new()];
    let mut characters = dirs.chars();
    while let Some(character) = characters.next() {
        let part = parts.last_mut();
        match (character, part) {
            ('\\', Some(part)) => part.extend(characters.next()),
            (':', _) => parts.push(String::new()),
            (other, Some(part)) => part.push(other),
            (_, None) => {}
        }
    }
    parts.into_iter().filter(|part| !part.is_empty()).map(PathBuf::from).collect()
}

fn unescape(dir: &str) -> PathBuf {
    split_dirs(&dir.replace(':', "\\:")).into_iter().next().unwrap_or_default()
}

#[cfg(test)]
mod test {
    use super::*;

    fn mount(options: &[&str]) -> RootfsMount {
        RootfsMount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn overlays_are_read_bottom_up() {
        let dir = tempfile::tempdir().unwrap();
        let empty = format!("upperdir={}", dir.path().display());
        let (sources, read_only) =
            overlay(&mount(&["index=off", "workdir=/w", &empty, "lowerdir=/top:/mid\\:dle:/low"]))
                .unwrap();
        let committed = |path: &str| Source::committed(Path::new(path));
        assert_eq!(sources, [committed("/low"), committed("/mid:dle"), committed("/top")]);
        assert!(!read_only);
        std::fs::write(dir.path().join("x"), "").unwrap();
        let (sources, _) = overlay(&mount(&[&empty, "lowerdir=/low"])).unwrap();
        assert_eq!(sources, [committed("/low"), Source::changing(dir.path())]);
        assert!(overlay(&mount(&["lowerdir=/a:/b"])).unwrap().1, "no upper is read-only");
        assert!(matches!(overlay(&mount(&[&empty])), Err(RootfsError::NoLower)));
        let odd = overlay(&mount(&["lowerdir=/a", "verity=require"]));
        assert!(
            matches!(odd, Err(RootfsError::OverlayOption(option)) if option == "verity=require")
        );
    }
}
