//! Processes of the guest itself, in none of its containers: for looking at a pod from inside.
//!
//! ```text
//!   namespaces   the guest's own: processes, network, IPC, names
//!   mounts       a private copy of the guest's, entered at a container's root (its overlay,
//!                without its volumes) with the guest's /proc, /sys and /dev on it
//!   cgroup       beside those of the containers, without limits
//! ```
//! The guest has no program but the agent: what is run comes from that container. So it ends with
//! the container, whose root it holds.

use std::os::fd::AsFd as _;

use super::{
    inside::{Inside, name_of},
    maker::{Waiting, fork_child, set_oom_score, wait_ready},
    mounts,
    program::Launch,
    rootfs::Directories,
};
use crate::{
    cgroup::Cgroup,
    failure::{Doing as _, Outcome},
    oci::spec::Process,
    sys,
};

/// What it sees of the guest's.
const GUESTS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Makes one with programs of the container `id`, not yet running.
pub(super) async fn make(
    id: &str,
    process: &Process,
    stdio: &[std::os::fd::OwnedFd; 3],
) -> Outcome<Waiting> {
    let own = Cgroup::of_guest(id)?.directory()?;
    let birth = || sys::fork(libc::CLONE_NEWNS, Some(own.as_fd()));
    let (pid, ear) = fork_child(stdio, own.as_fd(), birth, |mouth, _cgroup| {
        set_oom_score(process.oom_score_adj)?;
        mounts::keep_private()?;
        let inside = Inside::open(&Directories::of(id).root())?;
        for name in GUESTS {
            let target = inside.directory(name)?;
            rustix::mount::mount_bind_recursive(name, name_of(&target))
                .doing(|| format!("show the guest's {name}"))?;
        }
        mounts::enter(&inside)?;
        drop(inside);
        let user_name = process.user_name.as_deref();
        let launch = Launch { process, seccomp: None, user_name, first: false, init: None };
        match launch.run(mouth, || Ok(()))? {}
    })?;
    wait_ready(pid, ear).await
}

/// Ends those that use the container's programs.
pub(super) fn end(id: &str) {
    if let Some(cgroup) = Cgroup::if_of_guest(id) {
        // It is empty, or it has been removed.
        let _gone = cgroup.kill();
    }
}

/// Waits until they have ended and removes what is left: not on the agent's thread.
pub(super) fn remove(id: &str) -> Outcome<()> {
    match Cgroup::if_of_guest(id) {
        Some(cgroup) => cgroup.kill().and(cgroup.remove()),
        None => Ok(()),
    }
}
