//! The jail's root: an empty tmpfs, what the plan lists, and nothing of the host.
//!
//! Sources are opened as detached mounts before the host's tree goes out of sight; every mount
//! point is walked to without following links, so no symlink, in the plan or in a bound
//! directory, leads outside while we can still see the host.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path};

use hyper_jail::in_user_namespace;
use hyper_jail::wire::{Bind, Place, Plan};
use libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};

use crate::fail::{Fail, OrFail};
use crate::sys;

/// Where the new root is put together: a directory every host has. It is hidden only in our own
/// mount namespace, and only until the pivot.
const SCAFFOLD: &str = "/proc";

/// One place whose source is held.
enum Piece<'a> {
    Bind(&'a Bind, OwnedFd, bool),
    /// With the number of a node that is to be made; without: the host's own is bound.
    Device(&'a Path, OwnedFd, Option<u64>),
    Other(&'a Place),
}

/// Builds the root and moves into it, together with every process that is still in the old one.
pub fn build(plan: &Plan, uid: u32, root: bool) -> Result<(), Fail> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).or_fail("make private", "/")?;
    let mut pieces = Vec::new();
    for place in &plan.places {
        if let Some(piece) = hold(place, uid, root)? {
            pieces.push(piece);
        }
    }
    rustix::system::sethostname(b"jail").or_fail("set host name", "jail")?;
    let tree = tmpfs(&[("mode", "755"), ("size", "1m")], NO_FILES)?;
    let to = rustix::fs::open(SCAFFOLD, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_fail("open", SCAFFOLD)?;
    attach(&tree, &to).or_fail("mount tmpfs on", SCAFFOLD)?;
    rustix::process::fchdir(&tree).or_fail("change directory to", "the jail's root")?;
    fill(&pieces, &tree, uid, root)?;
    rustix::process::pivot_root(".", ".").or_fail("pivot into", "the jail's root")?;
    unmount(".", UnmountFlags::DETACH).or_fail("detach", "the host's root")?;
    rustix::process::chdir("/").or_fail("change directory to", "/")?;
    read_only(tree.as_fd(), true).or_fail("make read-only", "the jail's root")
}

/// Switches the root between read-only and writable for mount points to be made.
pub fn read_only(root: BorrowedFd<'_>, on: bool) -> std::io::Result<()> {
    let (set, clear) = if on { (MOUNT_ATTR_RDONLY, 0) } else { (0, MOUNT_ATTR_RDONLY) };
    sys::set_mount_attributes(root, set, clear, false)
}

/// A detached mount of a bind's source with its attributes set; `None`: optional and not there.
pub fn hold_bind(bind: &Bind, uid: u32, root: bool) -> Result<Option<(OwnedFd, bool)>, Fail> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let found = match fs::metadata(&bind.source) {
        Ok(found) => found,
        Err(error) if bind.optional && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => {
            let hint = "is it there, and may root reach it?";
            return Err(Fail::new("bind", bind.source.display(), error).hint(hint));
        }
    };
    // A user namespace may not look under the host's mounts.
    let recursive = bind.recursive || ((!root || in_user_namespace()) && found.is_dir());
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, &bind.source, flags).or_fail("bind", bind.source.display())?;
    if bind.owned && root {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
        rustix::fs::chownat(&tree, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
            .or_fail("give to the jail's uid", bind.source.display())?;
    }
    let mut set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    if !bind.writable {
        set |= MOUNT_ATTR_RDONLY;
    }
    if !bind.executable {
        set |= MOUNT_ATTR_NOEXEC;
    }
    sys::set_mount_attributes(tree.as_fd(), set, 0, recursive)
        .or_fail("set mount attributes of", bind.source.display())?;
    Ok(Some((tree, found.is_dir())))
}

fn hold<'a>(place: &'a Place, uid: u32, root: bool) -> Result<Option<Piece<'a>>, Fail> {
    Ok(match place {
        Place::Bind(bind) => {
            hold_bind(bind, uid, root)?.map(|(tree, dir)| Piece::Bind(bind, tree, dir))
        }
        Place::Device { path } => {
            let held = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            let held = held.or_fail("find device", path.display())?;
            let found = fs::metadata(path).or_fail("find device", path.display())?;
            let kind = found.file_type();
            if !path.starts_with("/dev") || !(kind.is_char_device() || kind.is_block_device()) {
                let fail = Fail::new("use as device", path.display(), Errno::INVAL);
                return Err(fail.hint("not a device node below /dev"));
            }
            if root && !in_user_namespace() {
                Some(Piece::Device(path, held, Some(found.rdev())))
            } else {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let tree = open_tree(CWD, path, flags).or_fail("bind device", path.display())?;
                Some(Piece::Device(path, tree, None))
            }
        }
        other => Some(Piece::Other(other)),
    })
}

/// Attributes of the root's own tmpfs and of `/dev`: nothing in them runs.
const NO_FILES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);

fn fill(pieces: &[Piece<'_>], tree: &OwnedFd, uid: u32, root: bool) -> Result<(), Fail> {
    let mut dev = None;
    for piece in pieces {
        match piece {
            Piece::Bind(bind, source, is_dir) => put(tree, &bind.target, source, *is_dir)?,
            Piece::Device(path, held, number) => {
                if dev.is_none() {
                    let flags = NO_FILES.difference(MountAttrFlags::MOUNT_ATTR_NODEV);
                    let mount = tmpfs(&[("mode", "755"), ("size", "64k")], flags)?;
                    put(tree, Path::new("/dev"), &mount, true)?;
                    dev = Some(mount);
                }
                match number {
                    Some(number) => make_node(tree, path, *number, uid)?,
                    None => put(tree, path, held, false)?,
                }
            }
            Piece::Other(Place::Tmpfs { target, bytes, executable }) => {
                let (id, size) = (uid.to_string(), bytes.to_string());
                let options = [("mode", "700"), ("size", &size), ("uid", &id), ("gid", &id)];
                let mut flags = NO_FILES;
                flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !executable);
                // Without root the group is not the uid's namesake.
                let options = if root { &options[..] } else { &options[..2] };
                put(tree, target, &tmpfs(options, flags)?, true)?;
            }
            Piece::Other(Place::Directory { path }) => {
                mount_point(tree, path, true)?;
            }
            Piece::Other(Place::Proc) => {
                let flags = NO_FILES.union(MountAttrFlags::MOUNT_ATTR_RDONLY);
                // Other uids' processes, there are none, stay out of sight (Linux 5.8).
                let proc = file_system("proc", &[("hidepid", "invisible")], flags)?;
                put(tree, Path::new("/proc"), &proc, true)?;
            }
            Piece::Other(_) => {}
        }
    }
    if let Some(dev) = dev {
        read_only(dev.as_fd(), true).or_fail("make read-only", "/dev")?;
    }
    // Links last: none of them can be walked through above.
    for piece in pieces {
        if let Piece::Other(Place::Symlink { link, to }) = piece {
            let (dir, name) = parent_of(tree, link)?;
            symlinkat(to, &dir, name).or_fail("make link", link.display())?;
        }
    }
    Ok(())
}

fn tmpfs(options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Fail> {
    file_system("tmpfs", options, flags)
}

fn file_system(
    kind: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> Result<OwnedFd, Fail> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).or_fail("make", kind)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)
            .or_fail("configure", format!("{kind}: {key}={value}"))?;
    }
    fsconfig_create(context.as_fd()).map_err(|error| {
        let fail = Fail::new("make", kind, error);
        if kind == "proc" && error == Errno::PERM {
            fail.hint("parts of the host's /proc are masked (a container?): run as root outside")
        } else {
            fail
        }
    })?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags).or_fail("mount", kind)
}

/// Puts a detached mount at `target` below `tree`.
pub fn put(tree: &OwnedFd, target: &Path, mount: &OwnedFd, is_dir: bool) -> Result<(), Fail> {
    let point = mount_point(tree, target, is_dir)?;
    attach(mount, &point).or_fail("mount on", target.display())
}

fn attach(mount: &OwnedFd, point: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", point, c"", flags)
}

fn make_node(tree: &OwnedFd, path: &Path, number: u64, uid: u32) -> Result<(), Fail> {
    let (dir, name) = parent_of(tree, path)?;
    let (id, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(&dir, name, FileType::CharacterDevice, mode, number)
        .or_fail("make device node", path.display())?;
    rustix::fs::chownat(&dir, name, Some(id), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .or_fail("give to the jail's uid", path.display())
}

/// A directory or an empty file to mount on, made with its parents where it is not there.
fn mount_point(tree: &OwnedFd, target: &Path, is_dir: bool) -> Result<OwnedFd, Fail> {
    if target == Path::new("/") {
        return Err(Fail::new("mount on", "/", Errno::BUSY).hint("the root itself is the jail's"));
    }
    let (dir, name) = parent_of(tree, target)?;
    if is_dir {
        return enter(&dir, name, target);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(&dir, name, flags | OFlags::EXCL, Mode::RUSR) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(error) => return Err(Fail::new("make mount point", target.display(), error)),
    }
    openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .or_fail("open mount point", target.display())
}

/// The parent directory of a path below `tree`, made where it is not there, and the last name.
fn parent_of<'a>(tree: &OwnedFd, path: &'a Path) -> Result<(OwnedFd, &'a Path), Fail> {
    let parts: Vec<&Path> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Path::new(name)),
            _ => None,
        })
        .collect();
    let Some((name, parents)) = parts.split_last() else {
        return Err(Fail::new("use path", path.display(), Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = openat(tree, c".", flags, Mode::empty()).or_fail("open", "the jail's root")?;
    for part in parents {
        dir = enter(&dir, part, path)?;
    }
    Ok((dir, name))
}

fn enter(dir: &OwnedFd, name: &Path, whole: &Path) -> Result<OwnedFd, Fail> {
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    match mkdirat(dir, name, mode) {
        // Inside a read-only bind the mount point must be there already.
        Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
        Err(error) => return Err(Fail::new("make directory for", whole.display(), error)),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).map_err(|error| {
        Fail::new("enter directory of", whole.display(), error)
            .hint("a parent is a link, a file, or missing in a read-only bind")
    })
}
