//! A tar stream as files of a container.
//!
//! The archive is hostile and so is the root: names are cleaned and must stay below the directory
//! they are unpacked in; links on the way are followed below the root by the kernel
//! (`RESOLVE_IN_ROOT`); the last part of a name is never followed. What is there gives way, but a directory only to a
//! directory when [`WriteFiles::keep_directories`] says so. Zeros become holes.

use std::{
    ffi::CString,
    io::Read,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use crate::user;
use hyper_erofs::{
    Limits, Timestamp,
    tar::{Header, HeaderKind, Reader},
};
use hyper_link::message::{Failure, FailureKind, WriteFiles};
use rustix::{
    fs::{
        AtFlags, Dev, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
        XattrFlags, chmod, chownat, fchmod, fchown, fsetxattr, fstat, fstatfs, ftruncate, futimens,
        linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
    },
    io::{Errno, pwrite},
};

use crate::failure::{Doing as _, Outcome, failure, invalid, unknown_user};
use crate::{
    BLOCK, MAX_DEPTH,
    path::{Wanted, find},
    wrong,
};

/// Bytes of directory names kept to set their times at the end.
const LATE_BYTES: usize = 16 << 20;
/// proc and sysfs: nothing is unpacked in them.
const KERNEL: [i64; 3] = [0x9fa0, 0x6265_6572, 0x6367_7270];

/// Unpacks the archive.
pub fn unpack(root: OwnedFd, request: &WriteFiles, archive: impl Read) -> Outcome<()> {
    let wanted = Wanted::parse(&request.path);
    let failed = |error| wrong("find", wanted.whole.as_bytes(), error);
    // A link to a directory will do: the slash makes it followed.
    let directory = format!("{}/", wanted.whole.trim_end_matches('/'));
    let top = find(&root, &directory, OFlags::PATH).map_err(|error| match error {
        Errno::NOTDIR => invalid(format!("extraction point {} is not a directory", wanted.whole)),
        error => failed(error),
    })?;
    let top =
        openat(&top, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
    let magic = fstatfs(&top).map_err(failed)?.f_type;
    if KERNEL.contains(&magic) {
        return Err(invalid(format!("{} is in a file system of the kernel", wanted.whole)));
    }
    let owner = match request.owner.as_deref().filter(|owner| !owner.is_empty()) {
        None => None,
        Some(name) => {
            let file = |name| user::read_at(&root, name);
            let who = user::resolve(name, &file("etc/passwd"), &file("etc/group"))
                .map_err(|error| unknown_user(&error))?;
            Some((who.uid, who.gid))
        }
    };
    let mut unpacker = Unpacker {
        root,
        base: directory.into_bytes(),
        top,
        owner,
        keep_directories: request.keep_directories,
        late: Vec::new(),
        late_bytes: 0,
        buffer: vec![0; BLOCK],
    };
    let limits = Limits {
        max_extension_bytes: 1 << 20,
        // What the disk and the memory of the guest do not bound by themselves.
        max_hole_bytes: 1 << 42,
        max_stream_bytes: 1 << 50,
        ..Limits::default()
    };
    let mut reader = Reader::new(archive, &limits);
    while let Some(header) = reader.next_entry().map_err(|error| unreadable(&error))? {
        unpacker.entry(&header, &mut reader)?;
    }
    unpacker.finish()
}

fn unreadable(error: &hyper_erofs::tar::TarError) -> Failure {
    let mut text = format!("archive: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    invalid(text)
}

struct Unpacker {
    root: OwnedFd,
    /// Where it is unpacked, with a slash at its end.
    base: Vec<u8>,
    top: OwnedFd,
    owner: Option<(u32, u32)>,
    keep_directories: bool,
    /// Times of directories, which change when something is made in them.
    late: Vec<(Vec<u8>, Timestamp)>,
    late_bytes: usize,
    buffer: Vec<u8>,
}

/// Where an entry goes.
struct Place {
    parent: OwnedFd,
    name: CString,
    /// For texts.
    path: Vec<u8>,
}

impl Unpacker {
    fn entry(&mut self, header: &Header, reader: &mut Reader<impl Read>) -> Outcome<()> {
        let parts = clean(&header.path)?;
        let is_directory = header.kind == HeaderKind::Directory;
        let Some((name, parents)) = parts.split_last() else {
            // The directory itself: it is there and stays as it is.
            return Ok(());
        };
        let parent = self.parent(parents)?;
        let name = CString::new(*name).doing(|| "a name".to_owned())?;
        let place = Place { parent, name, path: parts.join(&b'/') };
        let exists = self.make_room(&place, is_directory)?;
        match &header.kind {
            HeaderKind::Directory => return self.directory(header, &place, exists),
            HeaderKind::File { size } => return self.file(header, &place, *size, reader),
            HeaderKind::HardLink { target } => return self.hard_link(&place, target),
            HeaderKind::Symlink { target } => {
                let target = CString::new(target.as_slice()).doing(|| "a link".to_owned())?;
                symlinkat(target, &place.parent, &place.name)
                    .map_err(|e| place.wrong("make", e))?;
            }
            HeaderKind::CharDevice { major, minor } => {
                node(&place, header, FileType::CharacterDevice, makedev(*major, *minor))?;
            }
            HeaderKind::BlockDevice { major, minor } => {
                node(&place, header, FileType::BlockDevice, makedev(*major, *minor))?;
            }
            HeaderKind::Fifo => node(&place, header, FileType::Fifo, 0)?,
        }
        self.attributes(header, &place)
    }

    /// Opens the directory that an entry is in, and makes what is missing of it.
    fn parent(&self, parts: &[&[u8]]) -> Outcome<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if parts.is_empty() {
            return rustix::io::dup(&self.top).doing(|| "open the directory".to_owned());
        }
        let whole = parts.join(&b'/');
        match self.below(&whole, flags) {
            Err(Errno::NOENT) => {}
            found => return found.map_err(|error| wrong("open", &whole, error)),
        }
        for count in 1..=parts.len() {
            let path = parts[..count].join(&b'/');
            match self.below(&path, flags) {
                Ok(_) => continue,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(wrong("open", &path, error)),
            }
            let above = match &parts[..count - 1] {
                [] => rustix::io::dup(&self.top),
                above => self.below(&above.join(&b'/'), flags),
            };
            let failed = |error| wrong("make directory", &path, error);
            let above = above.map_err(failed)?;
            mkdirat(&above, parts[count - 1], Mode::from_raw_mode(0o755)).map_err(failed)?;
            if let Some((uid, gid)) = self.owner {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                chownat(&above, parts[count - 1], uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed)?;
            }
        }
        self.below(&whole, flags).map_err(|error| wrong("open", &whole, error))
    }

    /// Links on the way are followed, in the container's root.
    fn below(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let whole = [&self.base, path].concat();
        openat2(&self.root, whole, flags, Mode::empty(), resolve)
    }

    /// Takes away what is in the way; true if a directory is there and stays.
    fn make_room(&self, place: &Place, directory: bool) -> Outcome<bool> {
        let found = match statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode).is_dir(),
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(place.wrong("look at", error)),
        };
        let shown = String::from_utf8_lossy(&place.path);
        match (found, directory) {
            (true, true) => return Ok(true),
            (true, false) if self.keep_directories => {
                return Err(invalid(format!(
                    "cannot overwrite directory {shown:?} with non-directory"
                )));
            }
            (false, true) if self.keep_directories => {
                return Err(invalid(format!(
                    "cannot overwrite non-directory {shown:?} with directory"
                )));
            }
            (true, false) => remove_tree(place.parent.as_fd(), &place.name, &place.path, 0)?,
            (false, _) => unlinkat(&place.parent, &place.name, AtFlags::empty())
                .map_err(|error| place.wrong("replace", error))?,
        }
        Ok(false)
    }

    fn directory(&mut self, header: &Header, place: &Place, exists: bool) -> Outcome<()> {
        if !exists {
            let mode = Mode::from_raw_mode(0o700);
            mkdirat(&place.parent, &place.name, mode).map_err(|e| place.wrong("make", e))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&place.parent, &place.name, flags, Mode::empty());
        let fd = fd.map_err(|error| place.wrong("open", error))?;
        self.open_attributes(header, &fd, place)?;
        if self.late_bytes + place.path.len() <= LATE_BYTES {
            self.late_bytes += place.path.len();
            self.late.push((place.path.clone(), header.mtime));
        }
        Ok(())
    }

    fn file(
        &mut self,
        header: &Header,
        place: &Place,
        size: u64,
        reader: &mut Reader<impl Read>,
    ) -> Outcome<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let file = openat(&place.parent, &place.name, flags | OFlags::CLOEXEC, mode);
        let file = file.map_err(|error| place.wrong("make", error))?;
        let mut at = 0;
        loop {
            let mut filled = 0;
            // Whole blocks, so that holes are recognised.
            while filled < self.buffer.len() {
                let read = reader.read_data(&mut self.buffer[filled..]);
                match read.map_err(|error| unreadable(&error))? {
                    0 => break,
                    read => filled += read,
                }
            }
            if filled == 0 {
                break;
            }
            let block = &self.buffer[..filled];
            if block.iter().any(|byte| *byte != 0) {
                write_at(&file, block, at).map_err(|error| place.wrong("write", error))?;
            }
            at += filled as u64;
        }
        ftruncate(&file, size).map_err(|error| place.wrong("write", error))?;
        self.open_attributes(header, &file, place)?;
        futimens(&file, &times(header.mtime)).map_err(|e| place.wrong("set the time of", e))
    }

    fn hard_link(&self, place: &Place, target: &[u8]) -> Outcome<()> {
        let parts = clean(target)?;
        let missing = || invalid(format!("{}: a link to nothing", place.shown()));
        let (name, parents) = parts.split_last().ok_or_else(missing)?;
        let parent = self.parent(parents)?;
        linkat(&parent, *name, &place.parent, &place.name, AtFlags::empty()).map_err(|error| {
            match error {
                Errno::NOENT => invalid(format!(
                    "{} is a link to {}, which is not there",
                    place.shown(),
                    String::from_utf8_lossy(target)
                )),
                error => place.wrong("link", error),
            }
        })
    }

    /// Owner, mode and xattrs of what is open.
    fn open_attributes(&self, header: &Header, fd: &OwnedFd, place: &Place) -> Outcome<()> {
        let (uid, gid) = self.owner.unwrap_or((header.uid, header.gid));
        fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|error| place.wrong("give away", error))?;
        // After the owner: changing that takes set-user-id away.
        fchmod(fd, Mode::from_raw_mode(u32::from(header.mode)))
            .map_err(|error| place.wrong("set the mode of", error))?;
        for xattr in &header.xattrs {
            let name = xattr.name.as_slice();
            // What an overlay would believe of its own files.
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                return Err(invalid(format!(
                    "{}: the attribute {} is reserved",
                    place.shown(),
                    String::from_utf8_lossy(name)
                )));
            }
            match fsetxattr(fd, name, &xattr.value, XattrFlags::empty()) {
                // Not in this file system.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(place.wrong("set an attribute of", error)),
            }
        }
        Ok(())
    }

    /// Owner, mode and time of what cannot be opened.
    fn attributes(&self, header: &Header, place: &Place) -> Outcome<()> {
        let (uid, gid) = self.owner.unwrap_or((header.uid, header.gid));
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        chownat(&place.parent, &place.name, uid, gid, flags)
            .map_err(|error| place.wrong("give away", error))?;
        if !matches!(header.kind, HeaderKind::Symlink { .. }) {
            place.set_mode(Mode::from_raw_mode(u32::from(header.mode)))?;
        }
        utimensat(&place.parent, &place.name, &times(header.mtime), flags)
            .map_err(|error| place.wrong("set the time of", error))
    }

    fn finish(self) -> Outcome<()> {
        for (path, mtime) in self.late.iter().rev() {
            // One that was replaced later in the archive has another time, or none.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(fd) = self.below(path, flags) {
                futimens(&fd, &times(*mtime))
                    .map_err(|error| wrong("set the time of", path, error))?;
            }
        }
        Ok(())
    }
}

impl Place {
    fn wrong(&self, action: &str, error: Errno) -> Failure {
        wrong(action, &self.path, error)
    }

    /// For what cannot be opened. A process of the container may have put a link in its place
    /// since, so it is held and looked at first; `chmod` by name would follow.
    fn set_mode(&self, mode: Mode) -> Outcome<()> {
        let failed = |error| self.wrong("set the mode of", error);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = openat(&self.parent, &self.name, flags, Mode::empty()).map_err(failed)?;
        let found = fstat(&held).map_err(failed)?.st_mode;
        if FileType::from_raw_mode(found).is_symlink() {
            return Err(failed(Errno::LOOP));
        }
        if Mode::from_raw_mode(found) == mode {
            return Ok(());
        }
        // Linux has it for what is held from 6.6 on; before, only proc has.
        chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), mode).map_err(failed)
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

fn node(place: &Place, header: &Header, kind: FileType, device: Dev) -> Outcome<()> {
    let mode = Mode::from_raw_mode(u32::from(header.mode));
    mknodat(&place.parent, &place.name, kind, mode, device)
        .map_err(|error| place.wrong("make", error))
}

/// The parts of a name; an error if they lead above where they start.
fn clean(name: &[u8]) -> Outcome<Vec<&[u8]>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    let shown = String::from_utf8_lossy(name).into_owned();
                    return Err(invalid(format!("{shown:?} leads out of where it is unpacked")));
                }
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes a directory with all in it, never following a link.
fn remove_tree(
    parent: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    path: &[u8],
    depth: usize,
) -> Outcome<()> {
    let failed = |error| wrong("replace", path, error);
    if depth > MAX_DEPTH {
        return Err(failure(FailureKind::InvalidArgument, "directories too deep to be replaced"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty()).map_err(failed)?;
    for entry in Dir::read_from(&fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(&fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => remove_tree(fd.as_fd(), name, path, depth + 1)?,
            Err(error) => return Err(failed(error)),
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(failed)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_pipe_that_a_process_replaced_by_a_link_does_not_change_what_the_link_leads_to() {
        let ground = tempfile::tempdir().unwrap();
        let (outside, root) = (ground.path().join("outside"), ground.path().join("root"));
        std::fs::write(&outside, "of the host").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::create_dir(&root).unwrap();
        symlink(&outside, root.join("pipe")).unwrap();
        let parent = crate::path::root(&root).unwrap();
        let place = Place { parent, name: c"pipe".to_owned(), path: b"pipe".to_vec() };
        let failed = place.set_mode(Mode::from_raw_mode(0o666)).unwrap_err();
        assert!(failed.message.contains("pipe"), "{failed:?}");
        let mode = outside.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}
