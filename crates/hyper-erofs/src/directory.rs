//! A directory of the host, typically an overlayfs layer directory of containerd, as a layer.
//!
//! Every file is opened by `openat2` below the root, refusing symbolic links in any component, and looked at again
//! after it was opened: whoever can rename files below the root cannot make the walk leave it or open a device.

use crate::blob::{BlobWriter, CopyError};
use crate::index::{Attributes, Entry, Kind, LayerIndex, Timestamp, Xattr};
use crate::layer::{Usage, overlay_attribute};
use crate::limits::{LimitExceeded, Limits, MAX_PATH};
use crate::path;
use rustix::fs::{self, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a directory could not be converted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Below the directory, or the directory itself.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The blob could not be written.
    #[error("cannot write the layer blob")]
    Blob(#[source] std::io::Error),
    /// The tree was changed while it was read.
    #[error("{path:?} changed while it was read")]
    Changed {
        /// What.
        path: PathBuf,
    },
    /// Overlayfs features whose layers mean nothing without the layers below.
    #[error("{path:?} has the overlayfs attribute {xattr:?}, whose meaning needs the layers below")]
    Overlay {
        /// Where.
        path: PathBuf,
        /// Which.
        xattr: String,
    },
    /// The tree is too large in some respect.
    #[error("{path:?} goes over a limit")]
    Limit {
        /// Where.
        path: PathBuf,
        /// Which limit.
        #[source]
        source: LimitExceeded,
    },
}

/// Converts a directory tree of the host as [`convert_layer`](crate::convert_layer) does an archive.
///
/// Overlayfs marks become what they mean: a character device 0:0, or an empty file with the xattr
/// `trusted.overlay.whiteout`, is a whiteout; `trusted.overlay.opaque=y` makes a directory opaque (`user.overlay.` is
/// taken for `trusted.overlay.`). Sockets are skipped. Symbolic links are never followed. Of another file system
/// mounted inside, the empty mount point is taken.
///
/// # Errors
/// [`DirectoryError`]; the blob is then incomplete and must be thrown away.
pub fn convert_directory<W: Write>(
    root: &Path,
    blob: W,
    limits: &Limits,
) -> Result<LayerIndex, DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened =
        fs::open(root, flags, Mode::empty()).and_then(|fd| fs::fstat(&fd).map(|stat| (fd, stat)));
    let (root_fd, stat) = opened.map_err(|errno| DirectoryError::Io {
        action: "open",
        path: root.to_owned(),
        source: errno.into(),
    })?;
    let mut walk = Walk {
        root: root_fd,
        root_path: root,
        device: stat.st_dev,
        blob: BlobWriter::new(blob),
        usage: Usage::new(limits),
        links: HashMap::new(),
        entries: Vec::new(),
    };
    walk.run(&stat)?;
    let blob_blocks = walk.blob.finish().map_err(DirectoryError::Blob)?;
    Ok(LayerIndex { entries: walk.entries, blob_blocks })
}

struct Walk<'a, W> {
    root: OwnedFd,
    root_path: &'a Path,
    device: u64,
    blob: BlobWriter<W>,
    usage: Usage<'a>,
    /// Device and inode of files with several names, and the first of their names.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: Vec<Entry>,
}

/// What overlayfs' own xattrs say about a file.
#[derive(Default)]
struct Marks {
    opaque: bool,
    whiteout: bool,
}

impl<W: Write> Walk<'_, W> {
    fn run(&mut self, root: &Stat) -> Result<(), DirectoryError> {
        // Depth first, in order of names: the last directory pushed is the next one read.
        let mut pending = vec![(Vec::new(), *root)];
        while let Some((path, stat)) = pending.pop() {
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.file(path, &stat)?;
                continue;
            }
            let fd = self.open(&path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.directory(&path, &fd, &stat)?;
            if stat.st_dev != self.device {
                continue;
            }
            let mut names = self.names(&path, &fd)?;
            // Reversed, since they are popped from the end.
            names.sort_unstable_by(|one, other| other.cmp(one));
            for name in names {
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let child = [&path, separator, &name].concat();
                path::normalise(&child, self.usage.limits.max_depth).map_err(
                    |error| match error {
                        path::PathError::Limit(source) => self.limit(&child, source),
                        _ => self.changed(&child),
                    },
                )?;
                let stat = fs::statat(&fd, OsStr::from_bytes(&name), fs::AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| self.io("stat", &child, errno))?;
                self.usage.entry(child.len()).map_err(|source| self.limit(&child, source))?;
                pending.push((child, stat));
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8], fd: &OwnedFd, stat: &Stat) -> Result<(), DirectoryError> {
        let (attributes, marks) = self.attributes(path, fd, stat)?;
        self.entries.push(Entry { path: path.to_vec(), kind: Kind::Directory { attributes } });
        if marks.opaque {
            self.entries.push(Entry { path: path.to_vec(), kind: Kind::Opaque });
        }
        Ok(())
    }

    fn file(&mut self, path: Vec<u8>, stat: &Stat) -> Result<(), DirectoryError> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        if file_type == FileType::Socket {
            return Ok(());
        }
        if file_type == FileType::CharacterDevice && (major, minor) == (0, 0) {
            self.entries.push(Entry { path, kind: Kind::Whiteout });
            return Ok(());
        }
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            self.entries.push(Entry { path, kind: Kind::HardLink { target: first.clone() } });
            return Ok(());
        }
        let kind = match file_type {
            FileType::RegularFile => {
                let fd = self.open_same(
                    &path,
                    OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
                    stat,
                )?;
                let (attributes, marks) = self.attributes(&path, &fd, stat)?;
                if marks.whiteout { Kind::Whiteout } else { self.regular(&path, &fd, attributes)? }
            }
            FileType::Symlink => {
                let fd = self.open_same(&path, OFlags::PATH, stat)?;
                let target = fs::readlinkat(&fd, "", Vec::new())
                    .map_err(|errno| self.io("read the link", &path, errno))?
                    .into_bytes();
                LimitExceeded::check(
                    "bytes in a symbolic link",
                    target.len() as u64,
                    MAX_PATH as u64,
                )
                .and_then(|()| self.usage.bytes(target.len()))
                .map_err(|source| self.limit(&path, source))?;
                let (attributes, _) = self.attributes(&path, &fd, stat)?;
                Kind::Symlink { attributes, target }
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                let fd = self.open_same(&path, OFlags::PATH, stat)?;
                let (attributes, _) = self.attributes(&path, &fd, stat)?;
                match file_type {
                    FileType::CharacterDevice => Kind::CharDevice { attributes, major, minor },
                    FileType::BlockDevice => Kind::BlockDevice { attributes, major, minor },
                    _ => Kind::Fifo { attributes },
                }
            }
            _ => return Err(self.changed(&path)),
        };
        if stat.st_nlink > 1 && kind != Kind::Whiteout {
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        self.entries.push(Entry { path, kind });
        Ok(())
    }

    fn regular(
        &mut self,
        path: &[u8],
        fd: &OwnedFd,
        attributes: Attributes,
    ) -> Result<Kind, DirectoryError> {
        let stat = fs::fstat(fd).map_err(|errno| self.io("stat", path, errno))?;
        let size = stat.st_size.cast_unsigned();
        self.usage.data(size).map_err(|source| self.limit(path, source))?;
        let copied = self.blob.append(size, |buffer| {
            loop {
                match rustix::io::read(fd, &mut *buffer) {
                    Err(Errno::INTR) => {}
                    result => return result,
                }
            }
        });
        let data = copied.map_err(|error| match error {
            CopyError::Read(errno) => self.io("read", path, errno),
            CopyError::Write(error) => DirectoryError::Blob(error),
            CopyError::Short => self.changed(path),
        })?;
        Ok(Kind::File { attributes, data })
    }

    fn attributes(
        &mut self,
        path: &[u8],
        fd: &OwnedFd,
        stat: &Stat,
    ) -> Result<(Attributes, Marks), DirectoryError> {
        let xattrs = self.read_xattrs(path, fd)?;
        let mut marks = Marks::default();
        for Xattr { name, value } in &xattrs {
            match overlay_attribute(name) {
                // `x` is a directory that holds whiteouts of the second sort, which are found anyway.
                Some(b"opaque") => marks.opaque = value == b"y",
                Some(b"whiteout") => marks.whiteout = stat.st_size == 0,
                Some(b"redirect" | b"metacopy" | b"upper") => {
                    return Err(DirectoryError::Overlay {
                        path: self.shown(path),
                        xattr: String::from_utf8_lossy(name).into_owned(),
                    });
                }
                _ => {}
            }
        }
        let xattrs = self.usage.xattrs(xattrs).map_err(|source| self.limit(path, source))?;
        let mode = (stat.st_mode & 0o7777) as u16;
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let mtime = Timestamp { seconds: stat.st_mtime, nanoseconds };
        Ok((Attributes { mode, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs }, marks))
    }

    /// All xattrs the caller may see, through `/proc/self/fd`, which works for `O_PATH` descriptors too.
    fn read_xattrs(&self, path: &[u8], fd: &OwnedFd) -> Result<Vec<Xattr>, DirectoryError> {
        let file = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let list = match growing(|buffer| fs::listxattr(&file, buffer)) {
            Ok(list) => list,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(self.io("list the xattrs of", path, errno)),
        };
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut xattrs = Vec::new();
        for name in names {
            match growing(|buffer| fs::getxattr(&file, OsStr::from_bytes(name), buffer)) {
                Ok(value) if value.len() > crate::limits::MAX_XATTR_VALUE => {
                    let limit = crate::limits::MAX_XATTR_VALUE as u64;
                    let what = "bytes in an xattr value";
                    return Err(self.limit(path, LimitExceeded { what, limit }));
                }
                Ok(value) => xattrs.push(Xattr { name: name.to_vec(), value }),
                // Removed in between, or hidden from us.
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(self.io("read an xattr of", path, errno)),
            }
        }
        Ok(xattrs)
    }

    fn names(&self, path: &[u8], fd: &OwnedFd) -> Result<Vec<Vec<u8>>, DirectoryError> {
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut reader = RawDir::new(fd, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = reader.next() {
            let entry = entry.map_err(|errno| self.io("list", path, errno))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
                LimitExceeded::check("entries", names.len() as u64, self.usage.limits.max_entries)
                    .map_err(|source| self.limit(path, source))?;
            }
        }
        Ok(names)
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, DirectoryError> {
        let name = OsStr::from_bytes(if path.is_empty() { b"." } else { path });
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        // A link as the last component is opened itself (O_PATH) or refused (O_NOFOLLOW); NO_SYMLINKS would refuse both.
        let resolve = if flags.contains(OFlags::PATH) {
            resolve
        } else {
            resolve | ResolveFlags::NO_SYMLINKS
        };
        loop {
            match fs::openat2(&self.root, name, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                // AGAIN: a rename happened somewhere while BENEATH was checked.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NOENT) => {
                    return Err(self.changed(path));
                }
                Err(errno) => return Err(self.io("open", path, errno)),
            }
        }
    }

    /// Opens `path` and makes sure it still is the file that `stat` describes.
    fn open_same(
        &self,
        path: &[u8],
        flags: OFlags,
        stat: &Stat,
    ) -> Result<OwnedFd, DirectoryError> {
        let fd = self.open(path, flags)?;
        let now = fs::fstat(borrow(&fd)).map_err(|errno| self.io("stat", path, errno))?;
        let is_same = (now.st_dev, now.st_ino, now.st_mode, now.st_rdev)
            == (stat.st_dev, stat.st_ino, stat.st_mode, stat.st_rdev);
        if is_same { Ok(fd) } else { Err(self.changed(path)) }
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.root_path.join(OsStr::from_bytes(path))
    }

    fn io(&self, action: &'static str, path: &[u8], errno: Errno) -> DirectoryError {
        DirectoryError::Io { action, path: self.shown(path), source: errno.into() }
    }

    fn changed(&self, path: &[u8]) -> DirectoryError {
        DirectoryError::Changed { path: self.shown(path) }
    }

    fn limit(&self, path: &[u8], source: LimitExceeded) -> DirectoryError {
        DirectoryError::Limit { path: self.shown(path), source }
    }
}

fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

/// Calls `read` with buffers that grow until the value fits; Linux gives no xattr or list of more than 64 KiB.
fn growing(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() <= 64 << 10 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}
