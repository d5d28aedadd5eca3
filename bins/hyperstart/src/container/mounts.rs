//! What a container sees besides its image: mounts, devices, injected files, hidden paths.
//!
//! Runs in the process that becomes the container's first, in its own mount namespace.

use std::{
    ffi::CString,
    fs,
    io::Write as _,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_files::user;
use hyper_link::message::{FileEntry, FileInjection, HostSocket};
use rustix::{
    fs::{FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, symlinkat},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
        mount_change, mount_remount, unmount,
    },
    process::{chdir, fchdir, pivot_root},
};

use super::{
    inside::{Inside, name_of},
    memory, nfs, sockets,
    volume::{is_volume, mount_volume},
};
use crate::{
    failure::{Doing as _, Outcome, invalid, unsupported},
    oci::{
        mounts,
        spec::{Device, Mount},
    },
};

/// Longest injected file.
const MAX_FILE: usize = 1 << 20;
/// File systems that need nothing of the host beyond what the guest already has.
const GUEST_FILE_SYSTEMS: [&str; 9] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2", "virtiofs", "ext4", "erofs"];

/// Devices of every container: name, major, minor. `config-linux.md`, "Default Devices".
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links in every container's `/dev`. `config-linux.md`, "Dev symbolic links".
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Carries out `mounts` in their order.
pub(super) fn mount_all(inside: &Inside, mounts: &[Mount]) -> Outcome<()> {
    mounts.iter().try_for_each(|mount| mount_one(inside, mount))
}

fn mount_one(inside: &Inside, wanted: &Mount) -> Outcome<()> {
    let bind = wanted.kind == "bind" || wanted.options.iter().any(|o| o == "bind" || o == "rbind");
    let kind = if wanted.kind == "cgroup" { "cgroup2" } else { wanted.kind.as_str() };
    if is_volume(wanted) {
        return mount_volume(inside, wanted);
    }
    if let Some(bind) = memory::bind(wanted)? {
        return mount_volume(inside, &bind);
    }
    if kind == nfs::KIND {
        return nfs::mount_nfs(inside, wanted);
    }
    if bind || !GUEST_FILE_SYSTEMS.contains(&kind) {
        return Err(unsupported(format!(
            "mount {} of type {:?} from {:?}: a guest does not have the host's file systems",
            wanted.destination, wanted.kind, wanted.source
        )));
    }
    let mut data = String::new();
    let options = mounts::parse(&wanted.options, &mut data);
    if options.data.split(',').any(|word| word == "tmpcopyup") {
        return Err(unsupported(format!("mount {}: option tmpcopyup", wanted.destination)));
    }
    let target = inside.directory(&wanted.destination)?;
    let describe = || format!("mount {} ({kind} from {:?})", wanted.destination, wanted.source);
    let data = CString::new(options.data).doing(describe)?;
    // Nodes are still to be made in /dev; it is made read-only with the root.
    let late = if wanted.destination == "/dev" { MountFlags::RDONLY } else { MountFlags::empty() };
    let source = if wanted.source.is_empty() { kind } else { &wanted.source };
    mount(source, name_of(&target), kind, options.flags - late, data.as_c_str()).doing(describe)?;
    if !options.propagation.is_empty() {
        let target = inside.directory(&wanted.destination)?;
        mount_change(name_of(&target), options.propagation).doing(describe)?;
    }
    Ok(())
}

/// Makes the default devices, the links and those of the spec.
pub(super) fn make_devices(inside: &Inside, devices: &[Device]) -> Outcome<()> {
    let directory = inside.directory("/dev")?;
    for (name, major, minor) in DEVICES {
        node(&directory, name, FileType::CharacterDevice, (major, minor), 0o666)?;
    }
    for (target, name) in LINKS {
        match symlinkat(target, &directory, name) {
            // The image's own, where /dev is not a mount.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(|| format!("link /dev/{name}")),
        }
    }
    for device in devices {
        let kind = match device.kind.as_str() {
            "c" | "u" => FileType::CharacterDevice,
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            other => return Err(invalid(format!("device {} of type {other:?}", device.path))),
        };
        let path = Path::new(&device.path);
        let (Some(parent), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name())
        else {
            return Err(invalid(format!("device path {:?}", device.path)));
        };
        let parent = inside.directory(parent)?;
        let name = name.to_string_lossy();
        let mode = device.file_mode.unwrap_or(0o666) & 0o7777;
        node(&parent, &name, kind, (device.major, device.minor), mode)?;
        let owner = (device.uid.map(Uid::from_raw), device.gid.map(Gid::from_raw));
        chownat(&parent, &*name, owner.0, owner.1, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .doing(|| format!("give device {} to its owner", device.path))?;
    }
    Ok(())
}

fn node(
    directory: &OwnedFd,
    name: &str,
    kind: FileType,
    (major, minor): (u32, u32),
    mode: u32,
) -> Outcome<()> {
    let mode = Mode::from_raw_mode(mode);
    match mknodat(directory, name, kind, mode, makedev(major, minor)) {
        Ok(()) => chmodat(directory, name, mode, rustix::fs::AtFlags::empty()),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
    .doing(|| format!("make device {name} {major}:{minor}"))
}

/// Puts `files` over the root, without leaving their contents in the writable layer: `store` is in
/// the guest's memory.
pub(super) fn inject(inside: &Inside, files: &[FileInjection], store: &Path) -> Outcome<()> {
    for (number, file) in files.iter().enumerate() {
        let source = stored(store, number);
        let owner = owner(inside, file)?;
        let target = || match &file.entries {
            None => inside.file(&file.path),
            Some(_) => inside.directory(&file.path),
        };
        match &file.entries {
            None => put(&source, &file.path, &file.content, file.mode, owner)?,
            Some(entries) => put_directory(&source, file, entries)?,
        }
        let describe = || format!("inject {}", file.path);
        mount_bind(&source, name_of(&target()?)).doing(describe)?;
        // The store's flags come along with it; these are the file's own.
        let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::RDONLY, file.read_only);
        mount_remount(name_of(&target()?), flags, "").doing(describe)?;
    }
    Ok(())
}

/// Puts sockets that the agent listens on over the root.
pub(super) fn put_sockets(inside: &Inside, container: &str, wanted: &[HostSocket]) -> Outcome<()> {
    for (number, socket) in wanted.iter().enumerate() {
        let target = inside.file(&socket.path)?;
        mount_bind(sockets::path(container, number), name_of(&target))
            .doing(|| format!("mount the socket {}", socket.path))?;
    }
    Ok(())
}

/// Where [`inject`] keeps a file.
pub(super) fn stored(store: &Path, number: usize) -> PathBuf {
    store.join(number.to_string())
}

/// Who is to have the file.
fn owner(inside: &Inside, file: &FileInjection) -> Outcome<(u32, u32)> {
    let Some(name) = &file.owner else { return Ok((file.uid, file.gid)) };
    let read = |name| user::read_at(inside.root(), name);
    let found = user::resolve(name, &read("etc/passwd"), &read("etc/group"));
    let found = found.map_err(|error| invalid(format!("file {}: {error}", file.path)))?;
    Ok((found.uid, found.gid))
}

fn put_directory(source: &Path, file: &FileInjection, entries: &[FileEntry]) -> Outcome<()> {
    let make = |path: &Path| {
        fs::create_dir_all(path).doing(|| format!("make a directory of {}", file.path))
    };
    make(source)?;
    for entry in entries {
        let plain = |part| matches!(part, std::path::Component::Normal(_));
        let relative = Path::new(&entry.path);
        if entry.path.is_empty() || !relative.components().all(plain) {
            return Err(invalid(format!("injected file {:?} of {}", entry.path, file.path)));
        }
        let at = source.join(relative);
        make(at.parent().unwrap_or(source))?;
        let name = format!("{}/{}", file.path, entry.path);
        put(&at, &name, &entry.content, entry.mode, (entry.uid, entry.gid))?;
    }
    own(source, file.mode, (file.uid, file.gid)).doing(|| format!("store {}", file.path))
}

/// `name` is for errors, which never tell of contents.
fn put(at: &Path, name: &str, content: &str, mode: u32, owner: (u32, u32)) -> Outcome<()> {
    let content = STANDARD.decode(content);
    let content = content.map_err(|_| invalid(format!("injected file {name} is not base64")))?;
    if content.len() > MAX_FILE {
        return Err(invalid(format!("injected file {name} has {} bytes", content.len())));
    }
    let write = || {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o000).open(at)?;
        out.write_all(&content)?;
        own(at, mode, owner)
    };
    write().doing(|| format!("store injected file {name}"))
}

fn own(at: &Path, mode: u32, (uid, gid): (u32, u32)) -> std::io::Result<()> {
    std::os::unix::fs::chown(at, Some(uid), Some(gid))?;
    // Last: a change of owner takes the set-user-id bit away.
    fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777))
}

/// Makes the container's root this process's root, and the guest's unreachable.
pub(super) fn enter(inside: &Inside) -> Outcome<()> {
    let pivot = || {
        fchdir(inside.root())?;
        // The old root is stacked on the new one and taken off again; no directory is needed.
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")
    };
    pivot().doing(|| "enter the container's root".to_owned())
}

/// Keeps what is mounted here from showing up in the guest's other namespaces, and back.
pub(super) fn keep_private() -> Outcome<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing(|| "make all mounts private".to_owned())
}

/// Forbids writing to the root file system.
pub(super) fn make_root_read_only() -> Outcome<()> {
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, "")
        .doing(|| "make the root read-only".to_owned())
}

/// Forbids writing below `path`, if it is there.
pub(super) fn make_read_only(path: &str) -> Outcome<()> {
    match mount_bind_recursive(path, path) {
        Err(Errno::NOENT) => return Ok(()),
        outcome => outcome.doing(|| format!("bind read-only path {path}"))?,
    }
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    mount_remount(path, flags, "").doing(|| format!("make {path} read-only"))
}

/// Hides what is at `path`, if anything is.
pub(super) fn mask(path: &str) -> Outcome<()> {
    let outcome = match mount_bind("/dev/null", path) {
        Err(Errno::NOTDIR) => mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, c"size=0k"),
        Err(Errno::NOENT) => Ok(()),
        outcome => outcome,
    };
    outcome.doing(|| format!("mask {path}"))
}
