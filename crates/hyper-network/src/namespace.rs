//! Network namespaces that are held by a file, as `ip netns` and CNI hold theirs.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Result, file};

/// Makes a new, empty namespace and binds it to `path`. Blocking.
///
/// # Errors
/// No right to, or the file cannot be made. Nothing is left then.
pub fn create(path: &Path) -> Result<()> {
    let target = path.to_owned();
    // A thread of its own leaves the namespace with its end.
    on_thread(path, move || {
        File::create(&target).map_err(file("create", &target))?;
        let bound = nix::sched::unshare(CloneFlags::CLONE_NEWNET)
            .map_err(std::io::Error::from)
            .and_then(|()| Ok(mount_bind("/proc/thread-self/ns/net", &target)?));
        if bound.is_err() {
            let _ = std::fs::remove_file(&target);
        }
        bound.map_err(file("bind a new network namespace to", target))
    })
}

/// Lets go of a namespace; it ends with the last process in it. Fine when there is none. Blocking.
pub fn remove(path: &Path) {
    // Not a mount, after a reboot.
    let _ = unmount(path, UnmountFlags::DETACH);
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "network namespace not removed");
    }
}

/// Whether the namespace at `path` is the one that this process is in.
///
/// # Errors
/// There is none at the path.
pub fn is_own(path: &Path) -> Result<bool> {
    let look = |path: &Path| std::fs::metadata(path).map_err(file("open network namespace", path));
    let (there, here) = (look(path)?, look(Path::new("/proc/thread-self/ns/net"))?);
    Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
}

/// Runs `work` in the namespace at `path`, on a thread of its own. Blocking.
///
/// # Errors
/// The namespace cannot be entered; or what `work` says.
pub fn within<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let target: PathBuf = path.to_owned();
    on_thread(path, move || {
        let enter = || file("enter network namespace", &target);
        let namespace = File::open(&target).map_err(enter())?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| enter()(error.into()))?;
        work()
    })
}

fn on_thread<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(work);
    let thread = thread.map_err(file("start a thread for network namespace", path))?;
    thread.join().unwrap_or_else(|_| {
        Err(file("work in network namespace", path)(std::io::Error::other("it panicked")))
    })
}
