//! A volume that is empty takes what the image has at its place, with owners and modes.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chownat, fchmod, fgetxattr, flistxattr, fsetxattr, futimens, linkat, mkdirat, mknodat,
        openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
};

/// Deepest directory that is copied.
const MAX_DEPTH: usize = 256;
/// Longest extended attribute that is copied.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Copies `image` into `volume`, if there is nothing in it. No link is
/// followed, in neither of them.
///
/// # Errors
/// The system's.
pub fn fill(image: &OwnedFd, volume: &OwnedFd) -> io::Result<()> {
    if !entries(volume)?.is_empty() {
        return Ok(());
    }
    let mut copy = Copy { top: volume.as_fd(), links: HashMap::new() };
    copy.directory(image, volume, &mut PathBuf::new())
}

struct Copy<'a> {
    top: BorrowedFd<'a>,
    /// Where a file with several names is by now, from `top`.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, path: &mut PathBuf) -> io::Result<()> {
        if path.iter().count() > MAX_DEPTH {
            let text = format!("more than {MAX_DEPTH} directories deep");
            return Err(io::Error::other(text));
        }
        for name in entries(from)? {
            let stat = statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            path.push(OsStr::from_bytes(name.as_bytes()));
            self.entry(from, to, &name, &stat, path)?;
            path.pop();
        }
        let stat = rustix::fs::fstat(from)?;
        attributes(from, to)?;
        own(to, &stat)
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CString,
        stat: &Stat,
        path: &mut PathBuf,
    ) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let open = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let known = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&known) {
                return Ok(linkat(self.top, first, to, name, AtFlags::empty())?);
            }
            self.links.insert(known, path.clone());
        }
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let source = openat(from, name, open | OFlags::DIRECTORY, Mode::empty())?;
                let made = openat(to, name, open | OFlags::DIRECTORY, Mode::empty())?;
                return self.directory(&source, &made, path);
            }
            FileType::RegularFile => {
                let source = openat(from, name, open, Mode::empty())?;
                let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let made = openat(to, name, new, Mode::RUSR | Mode::WUSR)?;
                attributes(&source, &made)?;
                let (mut source, mut made) = (File::from(source), File::from(made));
                io::copy(&mut source, &mut made)?;
                return own(&made.into(), stat);
            }
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(target, to, name)?;
            }
            // A socket of an image belongs to nobody.
            FileType::Socket => return Ok(()),
            kind => {
                mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
            }
        }
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        chownat(to, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Owner, then mode (a change of owner drops set-user-id bits), then times.
fn own(made: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(made, Some(owner.0), Some(owner.1))?;
    fchmod(made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(futimens(made, &times(stat))?)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// A volume whose file system takes none has none.
fn attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut names = vec![0; MAX_ATTRIBUTE];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::RANGE) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_ATTRIBUTE];
        let length = fgetxattr(from, name, &mut value[..])?;
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    use std::path::Path;

    use rustix::fs::CWD;

    use std::fs;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn an_empty_volume_takes_all_and_a_full_one_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = (dir.path().join("image"), dir.path().join("volume"));
        fs::create_dir_all(image.join("sub/deep")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(image.join("sub/file"), "content").unwrap();
        fs::set_permissions(image.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::hard_link(image.join("sub/file"), image.join("second")).unwrap();
        symlink("/nowhere", image.join("link")).unwrap();
        // Owners can only be given away by root.
        let root = rustix::process::geteuid().is_root();
        if root {
            chown(image.join("sub/deep"), Some(7), Some(8)).unwrap();
        }
        fill(&open(&image), &open(&volume)).unwrap();
        let file = volume.join("sub/file").metadata().unwrap();
        assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4751, 2));
        assert_eq!(fs::read_to_string(volume.join("second")).unwrap(), "content");
        assert_eq!(fs::read_link(volume.join("link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(volume.metadata().unwrap().mode() & 0o7777, 0o1777);
        if root {
            let deep = volume.join("sub/deep").metadata().unwrap();
            assert_eq!((deep.uid(), deep.gid()), (7, 8));
        }
        fs::write(image.join("late"), "").unwrap();
        fill(&open(&image), &open(&volume)).unwrap();
        assert!(!volume.join("late").exists());
    }
}
