//! Shows one more file of the host in a running jail, and takes such files out again: a short-lived
//! helper enters the jail's mount namespace. The file is opened before, so no path is resolved
//! inside but the target's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use hyper_jail::wire::Bind;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::fail::{Fail, OrFail};
use crate::root;

/// `fds` holds the pidfd of the jail's init.
pub fn bind(bind: &Bind, uid: u32, fds: &[OwnedFd]) -> Result<(), Fail> {
    let Some((mount, is_dir)) = root::hold_bind(bind, uid, true)? else { return Ok(()) };
    enter(fds)?;
    let tree =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .or_fail("open", "the jail's root")?;
    // The hypervisor's uid does not own the root, so the moment it is writable is not the
    // hypervisor's.
    root::read_only(tree.as_fd(), false).or_fail("make writable", "the jail's root")?;
    let put = root::put(&tree, &bind.target, &mount, is_dir);
    let closed = root::read_only(tree.as_fd(), true).or_fail("make read-only", "the jail's root");
    put.and(closed)
}

/// Takes `targets` out; their mount points stay, for others. `fds` as for [`bind`].
pub fn unbind(targets: &[PathBuf], fds: &[OwnedFd]) -> Result<(), Fail> {
    enter(fds)?;
    let out = |target: &PathBuf| {
        // Not busy with what is open in it: that is the programs' matter.
        unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .or_fail("unmount", target.display())
    };
    // All are tried, whatever becomes of one.
    targets.iter().map(out).fold(Ok(()), Result::and)
}

fn enter(fds: &[OwnedFd]) -> Result<(), Fail> {
    let init = fds.first().ok_or(rustix::io::Errno::BADF).or_fail("find", "the jail's init")?;
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT)
        .or_fail("enter the mounts of", "the jail")
}
