//! A file, or a directory with all below it, as a tar stream.

use std::{
    ffi::{CStr, CString},
    io::Write,
    os::fd::{AsFd, BorrowedFd},
};

use hyper_link::message::FailureKind;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, fstat, fstatfs, statat};

use crate::failure::{Doing as _, Outcome, failure};
use crate::{
    Omitted,
    directory::{self, check_depth, is_dots, look},
    pack::Packer,
    path::{Wanted, find},
    wrong,
};

/// File systems of the kernel's own making (`statfs(2)`): what is in them are no files.
const KERNEL: [u64; 9] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x6367_7270, // cgroup2
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
];
/// File systems in memory: not part of a copy of what is above them, as Docker has it.
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Writes what is at `path`, named by its last part; what was left out of it.
pub fn write(root: &impl AsFd, path: &str, out: impl Write) -> Outcome<Omitted> {
    let wanted = Wanted::parse(path);
    let failed = |error| wrong("find", wanted.whole.as_bytes(), error);
    let found = find(root, &wanted.whole, OFlags::PATH).map_err(failed)?;
    let kind = FileType::from_raw_mode(fstat(&found).map_err(failed)?.st_mode);
    if KERNEL.contains(&magic(found.as_fd())) {
        let why = "it is in a file system of the kernel: read it with a command in the container";
        return Err(failure(
            FailureKind::InvalidArgument,
            format!("cannot copy {}: {why}", wanted.whole),
        ));
    }
    let mut packer = Packer::new(out, false);
    if kind.is_dir() {
        // The root itself has no name: `/`, `/bin/`, ….
        walk(found.as_fd(), format!("{}/", wanted.base).into_bytes(), &mut packer)?;
    } else {
        let parent =
            find(root, &wanted.parent, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
        let name = CString::new(wanted.base.as_str()).doing(|| wanted.whole.clone())?;
        let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        packer.entry(parent.as_fd(), &name, wanted.base.as_bytes(), &stat)?;
    }
    packer.finish()
}

/// Writes the whole of `root`, with names such as `bin/sh`.
pub fn write_root(root: &impl AsFd, out: impl Write) -> Outcome<Omitted> {
    let mut packer = Packer::new(out, false);
    walk(root.as_fd(), Vec::new(), &mut packer)?;
    packer.finish()
}

struct Level {
    dir: Dir,
    device: u64,
    /// Bytes of the path up to this directory, its slash included.
    path: usize,
}

fn walk<W: Write>(top: BorrowedFd<'_>, mut path: Vec<u8>, packer: &mut Packer<W>) -> Outcome<()> {
    let mut levels = Vec::new();
    if let Some(level) = descend(top, c".", &path, None, packer)? {
        levels.push(level);
    }
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
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            packer.entry(fd, name, &path, &stat)?;
            continue;
        }
        path.push(b'/');
        let next = descend(fd, name, &path, Some(level.device), packer)?;
        if let Some(next) = next {
            check_depth(levels.len(), &path)?;
            levels.push(next);
        }
    }
    Ok(())
}

/// Writes a directory's own entry and opens it, unless its content is not to be read.
fn descend<W: Write>(
    parent: BorrowedFd<'_>,
    name: &CStr,
    path: &[u8],
    above: Option<u64>,
    packer: &mut Packer<W>,
) -> Outcome<Option<Level>> {
    let Some(fd) = directory::open(parent, name, path)? else { return Ok(None) };
    if !path.is_empty() {
        packer.directory(fd.as_fd(), path)?;
    }
    let device = fstat(&fd).map_err(|error| wrong("look at", path, error))?.st_dev;
    if above.is_some_and(|above| above != device) {
        let magic = magic(fd.as_fd());
        if KERNEL.contains(&magic) || MEMORY.contains(&magic) {
            return Ok(None);
        }
    }
    let dir = Dir::new(fd).map_err(|error| wrong("list", path, error))?;
    Ok(Some(Level { dir, device, path: path.len() }))
}

fn magic(fd: BorrowedFd<'_>) -> u64 {
    // One that cannot be told is an ordinary one.
    fstatfs(fd).map_or(0, |found| found.f_type.cast_unsigned())
}
