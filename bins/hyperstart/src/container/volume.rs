//! Volumes: directories and files that the host shares live, and disks of a container's own.
//!
//! ```text
//!   shared:  /run/share/NAME (virtio-fs)  ──bind──► destination
//!   disk:    device (ext4) ─► destination, its directory `_data` ──bind──► destination
//! ```
//! A volume that is empty takes what the image has at its place, with owners and modes: that is
//! done here, where the image is mounted anyway.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
};

use hyper_link::message::{COPY_UP, SHARED};
use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chownat, fchmod, fgetxattr, flistxattr, fsetxattr, futimens, linkat, mkdirat, mknodat,
        openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
    mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount},
};

use super::{
    inside::{Inside, name_of},
    rootfs::forget_cache,
};
use crate::{
    failure::{Doing as _, Outcome, unsupported},
    oci::{mounts, spec::Mount},
};

/// The directory of a disk that is the volume: beside it there is `lost+found`, which many
/// programs mistake for their own.
const DATA: &str = "_data";
/// Deepest directory that is copied.
const MAX_DEPTH: usize = 256;
/// Longest extended attribute that is copied.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Whether `mount` is a volume.
pub(super) fn is_volume(wanted: &Mount) -> bool {
    let name = wanted.source.strip_prefix(SHARED).and_then(|rest| rest.strip_prefix('/'));
    let shared = name.is_some_and(|n| !n.is_empty() && !n.contains('/') && !n.starts_with(".."));
    (wanted.kind == "bind" && shared)
        || (wanted.kind == "ext4" && wanted.source.starts_with("/dev/"))
}

/// Mounts one.
pub(super) fn mount_volume(inside: &Inside, wanted: &Mount) -> Outcome<()> {
    let at = &wanted.destination;
    let describe = || format!("mount volume {at}");
    let words: Vec<String> =
        wanted.options.iter().filter(|word| *word != COPY_UP).cloned().collect();
    let copy_up = words.len() < wanted.options.len();
    let mut data = String::new();
    let options = mounts::parse(&words, &mut data);
    if !options.data.is_empty() {
        return Err(unsupported(format!("mount {at}: option {}", options.data)));
    }
    let disk = wanted.kind == "ext4";
    let directory = disk || fs::metadata(&wanted.source).doing(describe)?.is_dir();
    let target = if directory { inside.directory(at)? } else { inside.file(at)? };
    // Opened before it is hidden.
    let image = (copy_up && directory).then(|| readable(target.as_fd()));
    if disk {
        mount_disk(inside, wanted, &target, options.flags).doing(describe)?;
    } else {
        mount_bind_recursive(wanted.source.as_str(), name_of(&target)).doing(describe)?;
    }
    // The path leads to what was mounted there just now.
    let mounted = || inside.existing(at);
    if let Some(image) = image {
        let volume = readable(mounted()?.as_fd()).doing(describe)?;
        fill(&image.doing(describe)?, &volume)
            .doing(|| format!("copy the image's {at} into the empty volume"))?;
    }
    if !options.flags.is_empty() {
        mount_remount(name_of(&mounted()?), options.flags | MountFlags::BIND, "")
            .doing(describe)?;
    }
    if !options.propagation.is_empty() {
        mount_change(name_of(&mounted()?), options.propagation).doing(describe)?;
    }
    Ok(())
}

fn mount_disk(
    inside: &Inside,
    wanted: &Mount,
    target: &OwnedFd,
    flags: MountFlags,
) -> io::Result<()> {
    forget_cache(&wanted.source).map_err(|failure| io::Error::other(failure.message))?;
    let flags = MountFlags::NOATIME | (flags & MountFlags::RDONLY);
    mount(&wanted.source, name_of(target), "ext4", flags, None)?;
    let again = || {
        inside.existing(&wanted.destination).map_err(|failure| io::Error::other(failure.message))
    };
    let top = again()?;
    match mkdirat(&top, DATA, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let data = openat(&top, DATA, flags, Mode::empty())?;
    mount_bind(name_of(&data), name_of(&top))?;
    Ok(())
}

fn readable(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(directory, c".", flags, Mode::empty())?)
}

/// Copies `image` into `volume`, if there is nothing in it.
fn fill(image: &OwnedFd, volume: &OwnedFd) -> io::Result<()> {
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
