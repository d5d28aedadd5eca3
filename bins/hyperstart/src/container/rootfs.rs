//! A container's root file system, put together from disks.
//!
//! ```text
//!  /run/hyper/ID/image   EROFS, read-only
//!  /run/hyper/ID/upper   ext4 disk, or tmpfs: upper/ and work/
//!  /run/hyper/ID/root    overlay of the two
//!  /run/hyper/ID/files   injected files, bind-mounted over the root
//! ```
//!
//! The overlay writes layers that any overlay can read: no redirects, no metadata-only copies.
//! Mounting waits for disks, so all of this runs in a child of the agent.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyper_link::message::{FailureKind, GuestDisk, Rootfs};
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::{
    boot::STATE,
    failure::{Doing as _, Outcome, failure, invalid},
};

/// The directories of one container.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    base: PathBuf,
}

impl Directories {
    /// `container` is an id that has been checked to be a file name.
    pub(crate) fn of(container: &str) -> Self {
        Self { base: Path::new(STATE).join(container) }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.base.join("root")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.base.join("image")
    }

    /// The overlay's upper directory: what was changed since the image.
    pub(crate) fn changes(&self) -> PathBuf {
        self.base.join("upper/upper")
    }

    pub(crate) fn files(&self) -> PathBuf {
        self.base.join("files")
    }

    /// Mounts the parts and the whole.
    pub(crate) fn assemble(&self, rootfs: &Rootfs) -> Outcome<()> {
        let directory =
            |path: &Path| fs::create_dir(path).doing(|| format!("make {}", path.display()));
        let (image, upper, root) = (self.base.join("image"), self.base.join("upper"), self.root());
        for path in [&self.base, &image, &upper, &root, &self.files()] {
            directory(path)?;
        }
        mount_image(&rootfs.image, &rootfs.layers, &image)?;
        mount_upper(rootfs.upper.as_ref(), &upper)?;
        for path in [upper.join("upper"), upper.join("work")] {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).doing(|| format!("make {}", path.display()));
                }
                _ => {}
            }
        }
        let options = text(format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
            image.display(),
            upper.join("upper").display(),
            upper.join("work").display(),
        ))?;
        mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str())
            .doing(|| format!("mount the overlay {}", root.display()))
    }

    /// Undoes [`Self::assemble`], however far it came.
    ///
    /// # Errors
    /// Something is still in use.
    pub(crate) fn dismantle(&self) -> Outcome<()> {
        for name in ["root", "upper", "image"] {
            let path = self.base.join(name);
            match unmount(&path, UnmountFlags::NOFOLLOW) {
                // Not there, or not mounted.
                Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
                Err(error) => return Err(error).doing(|| format!("unmount {}", path.display())),
            }
        }
        match fs::remove_dir_all(&self.base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("remove {}", self.base.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Disks that the guest has as memory: files on them are used where they are, without a copy in the
/// guest's page cache.
const MAPPED: &str = "/dev/pmem";

fn mount_image(image: &GuestDisk, layers: &[GuestDisk], target: &Path) -> Outcome<()> {
    for disk in layers.iter().chain([image]) {
        check_device(disk)?;
        forget_cache(&disk.device)?;
    }
    let mut options: Vec<String> =
        layers.iter().map(|disk| format!("device={}", disk.device)).collect();
    if image.device.starts_with(MAPPED) {
        options.push("dax=always".to_owned());
    }
    let options = text(options.join(","))?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    mount(&image.device, target, "erofs", flags, options.as_c_str())
        .doing(|| format!("mount image {} (EROFS, {options:?})", image.device))
}

fn mount_upper(upper: Option<&GuestDisk>, target: &Path) -> Outcome<()> {
    let Some(disk) = upper else {
        return mount("upper", target, "tmpfs", MountFlags::empty(), c"mode=755")
            .doing(|| format!("mount a tmpfs on {}", target.display()));
    };
    check_device(disk)?;
    forget_cache(&disk.device)?;
    mount(&disk.device, target, "ext4", MountFlags::NOATIME, c"")
        .doing(|| format!("mount writable disk {} (ext4)", disk.device))
}

fn check_device(disk: &GuestDisk) -> Outcome<()> {
    if disk.device.starts_with("/dev/") && !disk.device.contains([',', '\\']) {
        Ok(())
    } else {
        Err(invalid(format!("disk {:?} is no device of the guest", disk.device)))
    }
}

/// A guest restored from a template has read other bytes from this device.
pub(super) fn forget_cache(device: &str) -> Outcome<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = open(device, flags, Mode::empty());
    let opened = opened.doing(|| format!("open disk {device}"))?;
    crate::sys::drop_disk_cache(std::os::fd::AsFd::as_fd(&opened))
        .doing(|| format!("drop the cache of disk {device}"))
}

/// How long a file system that was unmounted may take to close its disk.
const CLOSING: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Waits until no file system has these disks. Blocks.
///
/// # Errors
/// One has after [`CLOSING`].
pub(crate) fn let_go(devices: &[String]) -> Outcome<()> {
    let until = Instant::now() + CLOSING;
    for device in devices {
        if !device.starts_with("/dev/") {
            return Err(invalid(format!("disk {device:?} is no device of the guest")));
        }
        // On a block device it means: not while a file system has it.
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        loop {
            match open(device.as_str(), flags, Mode::empty()) {
                Ok(_) => break,
                Err(Errno::BUSY) if Instant::now() < until => std::thread::sleep(POLL),
                Err(Errno::BUSY) => {
                    let message = format!("disk {device} is still in use");
                    return Err(failure(FailureKind::Conflict, message));
                }
                Err(error) => return Err(error).doing(|| format!("open disk {device}")),
            }
        }
        forget_cache(device)?;
    }
    Ok(())
}

fn text(options: String) -> Outcome<CString> {
    CString::new(options).doing(|| "mount options".to_owned())
}
