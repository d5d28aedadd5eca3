//! Files of a directory as entries of a tar stream.
//!
//! Names are relative to an open directory and links are never followed. A file that changes while
//! it is read keeps the size it had at first: it is cut, or filled with zeros.

use std::{
    collections::HashMap,
    ffi::CStr,
    io::{BufWriter, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use hyper_erofs::{
    Timestamp, Xattr,
    tar::{
        Header, HeaderKind,
        write::{END, Extent, encode, encode_sparse, padding_of},
    },
};
use rustix::{
    fs::{
        FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, major, minor, openat,
        readlinkat, seek,
    },
    io::{Errno, pread},
};

use crate::failure::Outcome;
use crate::{BLOCK, Omitted, wrong, wrong_io};

/// Bytes of names kept to recognise further names of the same file.
const LINK_BYTES: usize = 32 << 20;
/// Most parts of a file that is written as sparse.
const MAX_EXTENTS: usize = 4096;
/// Most bytes of holes in one archive: readers bound them.
const MAX_HOLES: u64 = 3 << 30;
/// Longest list of xattr names; the kernel's bound (`XATTR_LIST_MAX`), and of a value.
const MAX_XATTRS: usize = 64 << 10;
/// Of most files.
const FEW_XATTRS: usize = 1 << 10;
/// What the overlay keeps for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// A tar stream being written.
pub struct Packer<W: Write> {
    out: BufWriter<W>,
    /// First names of files that have several, by device and inode.
    names: HashMap<(u64, u64), Vec<u8>>,
    name_bytes: usize,
    holes: u64,
    buffer: Vec<u8>,
    omitted: Omitted,
}

impl<W: Write> Packer<W> {
    /// With `sparse`, holes of files are left out, as in layers; not every tar can read that.
    pub fn new(out: W, sparse: bool) -> Self {
        Self {
            out: BufWriter::with_capacity(BLOCK, out),
            names: HashMap::new(),
            name_bytes: 0,
            holes: if sparse { MAX_HOLES } else { 0 },
            buffer: vec![0; BLOCK],
            omitted: Omitted::default(),
        }
    }

    /// An open directory as `path`, which ends with a slash.
    pub fn directory(&mut self, fd: BorrowedFd<'_>, path: &[u8]) -> Outcome<()> {
        let stat = fstat(fd).map_err(|error| wrong("look at", path, error))?;
        let xattrs = xattrs(fd, path)?;
        self.put(&encode(&header(path, HeaderKind::Directory, &stat, xattrs)))
    }

    /// A whiteout or another marker: an empty file.
    pub fn marker(&mut self, path: &[u8]) -> Outcome<()> {
        let mtime = Timestamp { seconds: 0, nanoseconds: 0 };
        let (kind, path) = (HeaderKind::File { size: 0 }, path.to_vec());
        let xattrs = Vec::new();
        self.put(&encode(&Header { path, kind, mode: 0, uid: 0, gid: 0, mtime, xattrs }))
    }

    /// Anything but a directory, as `path`. What has gone meanwhile is left out, and so are sockets, which are told
    /// at the end.
    pub fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        stat: &Stat,
    ) -> Outcome<()> {
        if Omitted::is_such(stat) {
            self.omitted.add(path);
            return Ok(());
        }
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.names.get(&key) {
                let kind = HeaderKind::HardLink { target: first.clone() };
                return self.put(&encode(&header(path, kind, stat, Vec::new())));
            }
            if self.name_bytes + path.len() <= LINK_BYTES {
                self.name_bytes += path.len();
                self.names.insert(key, path.to_vec());
            }
        }
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
                return match openat(dir, name, flags | OFlags::CLOEXEC, Mode::empty()) {
                    Ok(file) => self.file(&file, path),
                    Err(Errno::NOENT | Errno::LOOP) => Ok(()),
                    Err(error) => Err(wrong("open", path, error)),
                };
            }
            FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
                Ok(target) => HeaderKind::Symlink { target: target.into_bytes() },
                Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                Err(error) => return Err(wrong("read link", path, error)),
            },
            FileType::CharacterDevice => HeaderKind::CharDevice { major, minor },
            FileType::BlockDevice => HeaderKind::BlockDevice { major, minor },
            FileType::Fifo => HeaderKind::Fifo,
            _ => return Ok(()),
        };
        self.put(&encode(&header(path, kind, stat, Vec::new())))
    }

    /// Ends the archive; what it could not hold.
    pub fn finish(mut self) -> Outcome<Omitted> {
        self.put(&END)?;
        self.out.flush().map_err(|error| wrong_io("write", b"the archive", &error))?;
        Ok(self.omitted)
    }

    fn file(&mut self, file: &OwnedFd, path: &[u8]) -> Outcome<()> {
        let stat = fstat(file).map_err(|error| wrong("look at", path, error))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let xattrs = xattrs(file.as_fd(), path)?;
        let header = header(path, HeaderKind::File { size }, &stat, xattrs);
        let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let extents = if stored < size && self.holes > 0 { self.extents(file, size) } else { None };
        match extents {
            Some(extents) => {
                self.put(&encode_sparse(&header, &extents))?;
                extents.iter().try_for_each(|extent| self.content(file, *extent, path))?;
                self.put(padding_of(extents.iter().map(|extent| extent.len).sum()))
            }
            None => {
                self.put(&encode(&header))?;
                self.content(file, Extent { offset: 0, len: size }, path)?;
                self.put(padding_of(size))
            }
        }
    }

    /// The parts of a file that are no holes, if they are few enough.
    fn extents(&mut self, file: &OwnedFd, size: u64) -> Option<Vec<Extent>> {
        let (mut extents, mut at) = (Vec::new(), 0);
        while at < size {
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) => start.min(size),
                // Nothing but a hole is left.
                Err(Errno::NXIO) => size,
                Err(_) => return None,
            };
            if start == size {
                break;
            }
            at = seek(file, SeekFrom::Hole(start)).ok()?.min(size);
            if at <= start || extents.len() == MAX_EXTENTS {
                return None;
            }
            extents.push(Extent { offset: start, len: at - start });
        }
        let holes = size - extents.iter().map(|extent| extent.len).sum::<u64>();
        self.holes = self.holes.checked_sub(holes).filter(|_| holes > 0)?;
        Some(extents)
    }

    fn content(&mut self, file: &OwnedFd, extent: Extent, path: &[u8]) -> Outcome<()> {
        let (mut at, end) = (extent.offset, extent.offset + extent.len);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
            let read = match pread(file, &mut self.buffer[..most], at) {
                Ok(0) => {
                    self.buffer[..most].fill(0);
                    most
                }
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(wrong("read", path, error)),
            };
            let written = self.out.write_all(&self.buffer[..read]);
            written.map_err(|error| wrong_io("write", path, &error))?;
            at += read as u64;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.out.write_all(bytes).map_err(|error| wrong_io("write", b"the archive", &error))
    }
}

fn header(path: &[u8], kind: HeaderKind, stat: &Stat, xattrs: Vec<Xattr>) -> Header {
    Header {
        path: path.to_vec(),
        kind,
        // The other bits are the type's.
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        xattrs,
    }
}

/// All xattrs but the overlay's own.
pub fn xattrs(fd: BorrowedFd<'_>, path: &[u8]) -> Outcome<Vec<Xattr>> {
    let mut names = vec![0; FEW_XATTRS];
    let mut listed = flistxattr(fd, &mut names[..]);
    if listed == Err(Errno::RANGE) {
        names = vec![0; MAX_XATTRS];
        listed = flistxattr(fd, &mut names[..]);
    }
    let len = match listed {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(wrong("read the attributes of", path, error)),
    };
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(OVERLAY) {
            continue;
        }
        let mut value = vec![0; MAX_XATTRS];
        match fgetxattr(fd, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                found.push(Xattr { name: name.to_vec(), value });
            }
            // Gone meanwhile, or the kernel shows it and keeps it.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(wrong("read an attribute of", path, error)),
        }
    }
    Ok(found)
}
