//! Volumes: directories and files that the host shares live, and disks of a container's own.
//!
//! ```text
//!   shared:  /run/share/NAME (virtio-fs)  ──bind──► destination
//!   disk:    device (ext4) ─► destination, its directory `_data` ──bind──► destination
//! ```
//! A volume that is empty takes what the image has at its place, with owners and modes: that is
//! done here, where the image is mounted anyway.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use hyper_files::volume::fill;
use hyper_link::message::{COPY_UP, SHARED};
use rustix::{
    fs::{Mode, OFlags, mkdirat, openat},
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
