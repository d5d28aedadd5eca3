//! What a container changed: the upper directory of its overlay against the image below it.
//!
//! ```text
//!  upper                        image            list (Docker's `diff`)      layer (OCI)
//!  char device 0/0              there            D                           .wh.NAME
//!  anything else                not there        A                           the entry
//!  file                         there            C if it differs             the entry
//!  directory                    directory        C if it or anything in it   the entry, before what is in it
//!                                                  differs
//!  directory, opaque            directory        the same, D for what is gone  and .wh..wh..opq
//! ```
//! Not changes of the container's: the places that Hyper mounts on, where the image has none (as
//! in Docker's init layer), and directories that differ only because such a place was made.

use std::{
    ffi::CStr,
    io::{BufWriter, Write},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::fs::{Dir, FileType, Stat, fgetxattr};

use crate::failure::Outcome;
use crate::{
    BLOCK, Omitted,
    directory::{self, check_depth, is_dots, look},
    pack::{Packer, xattrs},
    wrong, wrong_io,
};

/// Marks an upper directory that hides what the image has in it.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Places that are made for mounts in every container.
const PLACES: [&[u8]; 10] = [
    b"dev",
    b"dev/pts",
    b"dev/shm",
    b"dev/console",
    b"proc",
    b"sys",
    b"etc",
    b"etc/hosts",
    b"etc/hostname",
    b"etc/resolv.conf",
];

/// The directories that are compared.
#[derive(Debug)]
pub struct Layers {
    pub upper: OwnedFd,
    pub image: OwnedFd,
}

/// Writes the changes as a layer; what was left out of it.
pub fn write_layer(layers: &Layers, out: impl Write) -> Outcome<Omitted> {
    let mut sink = Layer(Packer::new(out, true));
    walk(layers, &mut sink)?;
    sink.0.finish()
}

/// Writes the changes as a list: kind, path, NUL.
pub fn write_list(layers: &Layers, out: impl Write) -> Outcome<()> {
    let mut sink = List(BufWriter::with_capacity(BLOCK, out));
    walk(layers, &mut sink)?;
    sink.0.flush().map_err(|error| wrong_io("write", b"the list", &error))
}

/// Where changes go. Paths have no slash at their start.
trait Sink {
    /// A directory that was added, or that differs, or in which something does.
    fn directory(&mut self, fd: BorrowedFd<'_>, path: &[u8], added: bool) -> Outcome<()>;
    /// It hides what `image` had in its place, if that was a directory.
    fn replaced(
        &mut self,
        upper: Option<BorrowedFd<'_>>,
        image: &OwnedFd,
        path: &[u8],
    ) -> Outcome<()>;
    fn deleted(&mut self, path: &[u8]) -> Outcome<()>;
    fn other(&mut self, found: &Found<'_>, path: &[u8]) -> Outcome<()>;
    /// Whether it counts as a change.
    fn wants(&self, found: &Found<'_>) -> bool;
}

/// Something in the upper directory that is no directory.
struct Found<'a> {
    dir: BorrowedFd<'a>,
    name: &'a CStr,
    stat: Stat,
    /// What the image has in its place.
    image: Option<Stat>,
}

struct Level {
    dir: Dir,
    /// The image's directory, if it shows through or once did.
    image: Option<OwnedFd>,
    /// What the image has here is hidden.
    opaque: bool,
    /// Bytes of the path, its slash included.
    path: usize,
    added: bool,
    told: bool,
}

fn walk(layers: &Layers, sink: &mut impl Sink) -> Outcome<()> {
    let failed = |error| wrong("open", b"the changes", error);
    let image = rustix::io::dup(&layers.image).map_err(failed)?;
    let dir = Dir::read_from(&layers.upper).map_err(failed)?;
    // The root has no entry of its own.
    let root = Level { dir, image: Some(image), opaque: false, path: 0, added: false, told: true };
    let mut levels = vec![root];
    let mut path = Vec::new();
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path);
        let entry = match level.dir.read() {
            None => {
                levels.pop();
                continue;
            }
            Some(entry) => entry.map_err(|error| wrong("list", &path, error))?,
        };
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        path.extend(name.to_bytes());
        let fd = level.dir.fd().map_err(|error| wrong("list", &path, error))?;
        let Some(stat) = look(fd, name, &path)? else { continue };
        let image = match &level.image {
            Some(image) => look(image.as_fd(), name, &path)?,
            None => None,
        };
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            let Some(next) = descend(level, name, &mut path, image.as_ref())? else {
                continue;
            };
            check_depth(levels.len(), &path)?;
            let tell = next.told;
            levels.push(next);
            if tell {
                tell_all(&mut levels, &path, sink)?;
                let level = &levels[levels.len() - 1];
                if let (true, Some(image)) = (level.opaque, &level.image) {
                    let fd = level.dir.fd().map_err(|error| wrong("list", &path, error))?;
                    sink.replaced(Some(fd), image, &path)?;
                }
            }
            continue;
        }
        let whiteout = FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0;
        let hidden = level.opaque || image.is_none();
        if whiteout && hidden || image.is_none() && is_place(&path, &stat) {
            continue;
        }
        // Above it, whatever is not told yet is changed: something in it is.
        let (name, dir) = (name.to_owned(), rustix::io::dup(fd));
        let dir = dir.map_err(|error| wrong("list", &path, error))?;
        let found = Found { dir: dir.as_fd(), name: &name, stat, image };
        if !whiteout && !sink.wants(&found) {
            continue;
        }
        tell_all(&mut levels, &path, sink)?;
        if whiteout {
            sink.deleted(&path)?;
            continue;
        }
        sink.other(&found, &path)?;
        let was_directory =
            image.is_some_and(|image| FileType::from_raw_mode(image.st_mode).is_dir());
        if let (true, Some(Level { image: Some(image), .. })) = (was_directory, levels.last()) {
            path.push(b'/');
            let old = directory::open(image.as_fd(), &name, &path)?;
            if let Some(old) = old {
                sink.replaced(None, &old, &path)?;
            }
        }
    }
    Ok(())
}

/// Opens a directory of the upper layer, and the image's beside it. Its `told` says whether it is
/// to be told of whatever is in it.
fn descend(
    above: &Level,
    name: &CStr,
    path: &mut Vec<u8>,
    image: Option<&Stat>,
) -> Outcome<Option<Level>> {
    let place = PLACES.contains(&path.as_slice());
    path.push(b'/');
    let parent = above.dir.fd().map_err(|error| wrong("list", path, error))?;
    let Some(fd) = directory::open(parent, name, path)? else { return Ok(None) };
    let mut beside = None;
    if let (Some(parent), Some(stat)) = (&above.image, image)
        && FileType::from_raw_mode(stat.st_mode).is_dir()
    {
        beside = directory::open(parent.as_fd(), name, path)?;
    }
    let mut value = [0; 4];
    let opaque = matches!(fgetxattr(&fd, OPAQUE, &mut value[..]), Ok(1..) if value[0] == b'y');
    let added = image.is_none() || above.opaque;
    let told = match &beside {
        _ if opaque && beside.is_some() => true,
        Some(beside) => differ(&fd, beside, path)?,
        // A place that was made is told of when something is in it.
        None => !(image.is_none() && place),
    };
    let dir = Dir::new(fd).map_err(|error| wrong("list", path, error))?;
    let opaque = opaque || above.opaque;
    Ok(Some(Level { dir, image: beside, opaque, path: path.len(), added, told }))
}

/// Tells of all directories down to the last that have not been told of.
fn tell_all(levels: &mut [Level], path: &[u8], sink: &mut impl Sink) -> Outcome<()> {
    let last = levels.len() - 1;
    for (at, level) in levels.iter_mut().enumerate().skip(1) {
        // The last one's `told` may say that it is to be told of now.
        let now = !level.told || (at == last && level.path == path.len());
        if now {
            level.told = true;
            let path = &path[..level.path];
            let fd = level.dir.fd().map_err(|error| wrong("list", path, error))?;
            sink.directory(fd, path, level.added)?;
        }
    }
    Ok(())
}

/// A place to mount a file on that was made for it and not used otherwise.
fn is_place(path: &[u8], stat: &Stat) -> bool {
    PLACES.contains(&path)
        && FileType::from_raw_mode(stat.st_mode).is_file()
        && stat.st_size == 0
        && (stat.st_uid, stat.st_gid) == (0, 0)
}

/// Whether two directories differ in more than what is in them, as Docker's `diff` sees it.
fn differ(upper: &OwnedFd, image: &OwnedFd, path: &[u8]) -> Outcome<bool> {
    let stat = |fd: &OwnedFd| rustix::fs::fstat(fd).map_err(|error| wrong("look at", path, error));
    let (new, old) = (stat(upper)?, stat(image)?);
    if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid) {
        return Ok(true);
    }
    let (new, old) = (xattrs(upper.as_fd(), path)?, xattrs(image.as_fd(), path)?);
    Ok(new.len() != old.len() || !new.iter().all(|xattr| old.contains(xattr)))
}

struct Layer<W: Write>(Packer<W>);

impl<W: Write> Layer<W> {
    /// `DIRECTORY/.wh.NAME`
    fn whiteout(&mut self, path: &[u8]) -> Outcome<()> {
        let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        self.0.marker(&[&path[..start], b".wh.", &path[start..]].concat())
    }
}

impl<W: Write> Sink for Layer<W> {
    fn directory(&mut self, fd: BorrowedFd<'_>, path: &[u8], _added: bool) -> Outcome<()> {
        self.0.directory(fd, path)
    }

    fn replaced(
        &mut self,
        upper: Option<BorrowedFd<'_>>,
        _image: &OwnedFd,
        path: &[u8],
    ) -> Outcome<()> {
        // A file in a directory's place hides it by itself.
        if upper.is_none() { Ok(()) } else { self.0.marker(&[path, b".wh..wh..opq"].concat()) }
    }

    fn deleted(&mut self, path: &[u8]) -> Outcome<()> {
        self.whiteout(path)
    }

    fn other(&mut self, found: &Found<'_>, path: &[u8]) -> Outcome<()> {
        self.0.entry(found.dir, found.name, path, &found.stat)?;
        // What it cannot show hides the image's nevertheless.
        if Omitted::is_such(&found.stat) && found.image.is_some() {
            return self.whiteout(path);
        }
        Ok(())
    }

    fn wants(&self, _found: &Found<'_>) -> bool {
        true
    }
}

struct List<W: Write>(BufWriter<W>);

impl<W: Write> List<W> {
    fn put(&mut self, kind: u8, path: &[u8]) -> Outcome<()> {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let line = [&[kind, b'/'], path, &[0]].concat();
        self.0.write_all(&line).map_err(|error| wrong_io("write", b"the list", &error))
    }
}

impl<W: Write> Sink for List<W> {
    fn directory(&mut self, _fd: BorrowedFd<'_>, path: &[u8], added: bool) -> Outcome<()> {
        self.put(if added { b'A' } else { b'C' }, path)
    }

    fn replaced(
        &mut self,
        upper: Option<BorrowedFd<'_>>,
        image: &OwnedFd,
        path: &[u8],
    ) -> Outcome<()> {
        let failed = |error| wrong("list", path, error);
        for entry in Dir::read_from(image).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let there = match upper {
                Some(upper) => look(upper, name, path)?,
                None => None,
            };
            if there.is_none() {
                self.put(b'D', &[path, name.to_bytes()].concat())?;
            }
        }
        Ok(())
    }

    fn deleted(&mut self, path: &[u8]) -> Outcome<()> {
        self.put(b'D', path)
    }

    fn other(&mut self, found: &Found<'_>, path: &[u8]) -> Outcome<()> {
        self.put(if found.image.is_none() { b'A' } else { b'C' }, path)
    }

    /// Docker's idea of the same file.
    fn wants(&self, found: &Found<'_>) -> bool {
        let of = |stat: &Stat| {
            let time = (stat.st_mtime, stat.st_mtime_nsec);
            (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, stat.st_size, time)
        };
        found.image.as_ref().is_none_or(|image| of(image) != of(&found.stat))
    }
}
