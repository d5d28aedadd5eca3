//! A container's root on the host: the image's EROFS, shared by all its containers, under an
//! overlay of the container's own.
//!
//! ```text
//!  ROOTS/KEY        erofs: metadata + a blob per layer      one mount per image: one page cache
//!  ROOTS/KEY.lock   shared lock of every container that uses it; whoever can have it alone unmounts
//!  BUNDLE/…/rootfs  overlay: upper = the container's directory in hyperd's data root
//! ```
//! Only EROFS bytes that hyper-erofs has written are mounted, read-only. Locks end with their
//! holder: after a SIGKILL the `delete` that follows unmounts what the dead one had.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper_task::rootfs::RootfsImage;
use rustix::fs::{CWD, FlockOperation, flock};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
    unmount,
};
use sha2::{Digest as _, Sha256};

use crate::ForeignError;
use crate::error::{Result, file};

/// `statfs(2)`: EROFS.
const EROFS: i64 = 0xE0F5_E1E2;
/// `statfs(2)`: overlayfs.
const OVERLAY: i64 = 0x794c_7630;
/// Longest wait for another supervisor that mounts or unmounts the same image.
const PATIENCE: Duration = Duration::from_secs(20);
/// The container's writes, in its directory.
const UPPER: &str = "upper";
const WORK: &str = "work";

/// A mounted root. [`Root::release`] unmounts it; dropping it leaves that to [`release_left`].
#[derive(Debug)]
pub struct Root {
    /// Merged tree.
    pub at: PathBuf,
    /// What the container has written.
    pub upper: PathBuf,
    lower: Lower,
}

/// The image's mount, and our share of it.
#[derive(Debug)]
struct Lower {
    at: PathBuf,
    lock: File,
    name: PathBuf,
}

/// Mounts the image below `roots` and, with the container's directory `own` over it, at `at`.
/// Blocking.
///
/// # Errors
/// The kernel's, with what it lacks.
pub fn mount_root(image: &RootfsImage, roots: &Path, own: &Path, at: &Path) -> Result<Root> {
    let lower = Lower::share(image, roots)?;
    let merged = overlay(&lower.at, own, at);
    match merged {
        Ok(()) => Ok(Root { at: at.to_owned(), upper: own.join(UPPER), lower }),
        Err(error) => {
            lower.leave();
            Err(error)
        }
    }
}

impl Root {
    /// The image's tree.
    pub fn image(&self) -> &Path {
        &self.lower.at
    }

    /// Unmounts the overlay, and the image when nobody else has it. Blocking.
    pub fn release(self) {
        unmount_at(&self.at);
        self.lower.leave();
    }
}

/// The same for a supervisor that died: `at` is its overlay, `image` what was below.
pub fn release_left(image: &RootfsImage, roots: &Path, at: &Path) {
    unmount_at(at);
    let (at, name) = places(image, roots);
    if let Ok(lock) = File::open(&name) {
        Lower { at, lock, name }.leave();
    }
}

fn places(image: &RootfsImage, roots: &Path) -> (PathBuf, PathBuf) {
    let hash = Sha256::digest(image.metadata.path.as_os_str().as_encoded_bytes());
    let key: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    (roots.join(&key), roots.join(format!("{key}.lock")))
}

impl Lower {
    fn share(image: &RootfsImage, roots: &Path) -> Result<Self> {
        let (at, name) = places(image, roots);
        std::fs::create_dir_all(roots).map_err(file("make directory", roots))?;
        let begun = Instant::now();
        loop {
            let lock = File::create(&name).map_err(file("open", &name))?;
            if !alone(&lock, &name)? {
                // Others use it, or one is about to mount or to unmount it.
                if shared(&lock) && is_current(&lock, &name) && is_mounted(&at, EROFS) {
                    return Ok(Self { at, lock, name });
                }
            } else if is_current(&lock, &name) {
                if !is_mounted(&at, EROFS) {
                    std::fs::create_dir_all(&at).map_err(file("make directory", &at))?;
                    mount_image(image, &at)?;
                }
                // The change is not atomic: look again.
                if shared(&lock) && is_current(&lock, &name) && is_mounted(&at, EROFS) {
                    return Ok(Self { at, lock, name });
                }
            }
            drop(lock);
            if begun.elapsed() > PATIENCE {
                return Err(ForeignError::Invalid(format!(
                    "the image's root `{}` is being mounted or unmounted by somebody for over {} \
                     s: see who holds `{}`",
                    at.display(),
                    PATIENCE.as_secs(),
                    name.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn leave(self) {
        if matches!(alone(&self.lock, &self.name), Ok(true)) && is_current(&self.lock, &self.name) {
            unmount_at(&self.at);
            // While the lock is held: who comes next makes another file.
            let _ = std::fs::remove_file(&self.name);
        }
    }
}

/// Takes the lock for one, or changes the shared lock that we have into that.
fn alone(lock: &File, name: &Path) -> Result<bool> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(file("lock", name)(error)),
    }
}

fn shared(lock: &File) -> bool {
    flock(lock, FlockOperation::NonBlockingLockShared).is_ok()
}

/// The file of that name is still the one that is locked.
fn is_current(lock: &File, name: &Path) -> bool {
    let number = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    match (lock.metadata(), std::fs::metadata(name)) {
        (Ok(held), Ok(there)) => number(held) == number(there),
        _ => false,
    }
}

fn is_mounted(at: &Path, magic: i64) -> bool {
    rustix::fs::statfs(at).is_ok_and(|found| found.f_type == magic)
}

/// Unmounts and removes the directory; what is still in use there goes with its last user.
fn unmount_at(at: &Path) {
    if (is_mounted(at, OVERLAY) || is_mounted(at, EROFS))
        && let Err(error) = unmount(at, UnmountFlags::DETACH)
    {
        tracing::warn!(at = %at.display(), %error, "unmount");
    }
    // Only ever an empty one.
    let _ = std::fs::remove_dir(at);
}

fn overlay(lower: &Path, own: &Path, at: &Path) -> Result<()> {
    let (upper, work) = (own.join(UPPER), own.join(WORK));
    for dir in [&work, at] {
        std::fs::create_dir_all(dir).map_err(file("make directory", dir))?;
    }
    if !upper.exists() {
        // The root directory itself is the upper's: it is to look like the image's.
        let like = std::fs::metadata(lower).map_err(file("look at", lower))?;
        std::fs::create_dir(&upper).map_err(file("make directory", &upper))?;
        chown(&upper, Some(like.uid()), Some(like.gid())).map_err(file("chown", &upper))?;
        let mode = std::fs::Permissions::from_mode(like.mode() & 0o7777);
        std::fs::set_permissions(&upper, mode).map_err(file("chmod", &upper))?;
    }
    // Directories are never renamed by reference: what was changed can be told from the upper.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off",
        escaped(lower),
        escaped(&upper),
        escaped(&work)
    );
    let options = std::ffi::CString::new(options)
        .map_err(|_| ForeignError::Invalid("a path holds a NUL character".to_owned()))?;
    mount("overlay", at, "overlay", MountFlags::empty(), options.as_c_str()).map_err(|error| {
        let why = std::io::Error::from(error);
        let why = match error {
            Errno::NODEV => std::io::Error::other(format!(
                "{why}: the host's kernel has no overlayfs: modprobe overlay"
            )),
            Errno::INVAL => std::io::Error::other(format!(
                "{why}: `{}` must be on a file system that an overlay's upper can be on (ext4, \
                 xfs, btrfs; not an overlay, not NFS)",
                own.display()
            )),
            _ => why,
        };
        file("mount the container's root at", at)(why)
    })
}

/// overlayfs separates by commas and colons.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, ',' | ':' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// From the files themselves where the kernel can (6.12 and newer), else over loop devices.
fn mount_image(image: &RootfsImage, at: &Path) -> Result<()> {
    let files: Vec<&Path> = std::iter::once(&image.metadata)
        .chain(&image.layers)
        .map(|file| file.path.as_path())
        .collect();
    // Read past the files' own page cache (Linux 6.15), or what is read is in memory twice.
    let mounted = mount_files(&files, at, true).or_else(|error| match error {
        Errno::NOTBLK | Errno::NODEV => Err(error),
        _ => mount_files(&files, at, false),
    });
    match mounted {
        Err(Errno::NOTBLK) => {
            tracing::info!("the kernel mounts EROFS from devices only: loop devices");
            mount_loops(&files, at)
        }
        done => done.map_err(|error| no_erofs(at, error)),
    }
}

fn no_erofs(at: &Path, error: Errno) -> ForeignError {
    let why = std::io::Error::from(error);
    let why = match error {
        Errno::NODEV => std::io::Error::other(format!(
            "{why}: the host's kernel has no EROFS: modprobe erofs (Linux 5.16 or newer), or take \
             a runtime that brings its own kernel"
        )),
        _ => why,
    };
    file("mount the image's EROFS at", at)(why)
}

/// `mount(2)`'s options are a page at most, and an image may have hundreds of layers.
fn mount_files(files: &[&Path], at: &Path, direct: bool) -> Result<(), Errno> {
    let Some((metadata, layers)) = files.split_first() else { return Err(Errno::INVAL) };
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", *metadata)?;
    for layer in layers {
        fsconfig_set_string(&context, "device", *layer)?;
    }
    fsconfig_set_flag(&context, "ro")?;
    if direct {
        fsconfig_set_flag(&context, "directio")?;
    }
    fsconfig_create(&context)?;
    let mounted =
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    move_mount(&mounted, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Devices that go with the mount: detached while in use, the kernel frees them at its end.
fn mount_loops(files: &[&Path], at: &Path) -> Result<()> {
    let mut devices = Vec::new();
    let attached = files.iter().try_for_each(|file| {
        devices.push(losetup(&["--read-only", "--find", "--show"], file)?);
        Ok::<_, ForeignError>(())
    });
    let mounted = attached.and_then(|()| {
        let devices: Vec<&Path> = devices.iter().map(Path::new).collect();
        mount_files(&devices, at, false).map_err(|error| no_erofs(at, error))
    });
    for device in &devices {
        if let Err(error) = losetup(&["--detach"], Path::new(device)) {
            tracing::warn!(device, %error, "loop device not freed");
        }
    }
    mounted
}

fn losetup(arguments: &[&str], path: &Path) -> Result<String> {
    let output = Command::new("losetup").args(arguments).arg(path).output();
    let output = output.map_err(file("run losetup (package mount) for", path))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(file("run losetup for", path)(std::io::Error::other(why)))
}

#[cfg(test)]
mod test {
    use super::*;

    use hyper_task::rootfs::DiskFile;

    /// An image of one file; `None`, saying so, where none can be made or mounted.
    fn image(dir: &Path) -> Option<RootfsImage> {
        std::fs::create_dir(dir.join("tree")).unwrap();
        std::fs::write(dir.join("tree/file"), "of the image").unwrap();
        let path = dir.join("meta.erofs");
        let made = Command::new("mkfs.erofs").arg(&path).arg(dir.join("tree")).output();
        let made = made.is_ok_and(|output| output.status.success());
        let kernel = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !(made && rustix::process::geteuid().is_root() && kernel.contains("erofs")) {
            eprintln!("skipped: needs root, erofs-utils and a kernel with EROFS");
            return None;
        }
        let metadata = DiskFile { bytes: std::fs::metadata(&path).unwrap().len(), path };
        Some(RootfsImage { metadata, layers: Vec::new() })
    }

    #[test]
    fn an_image_is_mounted_once_and_as_long_as_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let Some(image) = image(dir.path()) else { return };
        let roots = dir.path().join("roots");
        let mount = |name: &str| {
            mount_root(
                &image,
                &roots,
                &dir.path().join(name).join("own"),
                &dir.path().join(name).join("at"),
            )
            .unwrap()
        };
        let (first, second) = (mount("1"), mount("2"));
        assert_eq!(first.image(), second.image());
        std::fs::write(first.at.join("file"), "changed").unwrap();
        let below = first.image().to_owned();
        assert_eq!(std::fs::read_to_string(second.at.join("file")).unwrap(), "of the image");
        assert_eq!(std::fs::read_to_string(first.upper.join("file")).unwrap(), "changed");
        first.release();
        assert!(is_mounted(&below, EROFS));
        // As after a SIGKILL: the lock ends with its holder, the mounts do not.
        let at = second.at.clone();
        drop(second);
        assert!(is_mounted(&at, OVERLAY));
        release_left(&image, &roots, &at);
        assert!(!at.exists() && std::fs::read_dir(&roots).unwrap().next().is_none());
        let again = mount("1");
        assert_eq!(std::fs::read_to_string(again.at.join("file")).unwrap(), "changed");
        again.release();
    }

    #[test]
    fn loop_devices_go_with_their_mount() {
        let dir = tempfile::tempdir().unwrap();
        let Some(image) = image(dir.path()) else { return };
        let at = dir.path().join("at");
        std::fs::create_dir(&at).unwrap();
        let devices = || {
            let output = Command::new("losetup").arg("-j").arg(&image.metadata.path).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        if let Err(error) = mount_loops(&[&image.metadata.path], &at) {
            eprintln!("skipped: no loop devices: {error}");
            return;
        }
        assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "of the image");
        assert_eq!(devices().lines().count(), 1);
        unmount_at(&at);
        assert_eq!(devices(), "");
    }

    #[test]
    fn separators_of_overlayfs_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b,c\\d")), "/a\\:b\\,c\\\\d");
    }
}
