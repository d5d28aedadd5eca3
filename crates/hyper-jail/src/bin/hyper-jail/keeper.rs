//! The keeper: makes the cgroup, starts init in new namespaces, and removes the cgroup when init
//! has ended. It stays in the host's namespaces, without capabilities and without descriptors.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use hyper_jail::launcher::{Cgroups, pick_id};
use hyper_jail::wire::{self, Plan};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::confine;
use crate::fail::{Fail, OrFail};
use crate::init::{self, Legacy};
use crate::sys;

/// Longest time the kernel gets to let go of the cgroup of processes that have ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the jail and watches over it; returns when all of it is gone.
pub fn run(control: OwnedFd, plan: Plan, fds: Vec<OwnedFd>) -> ExitCode {
    let mut cgroups = Cgroups::locate(plan.cgroup.as_deref(), &plan.name);
    match start(&control, plan, fds, &mut cgroups) {
        Ok((leash, init)) => {
            // From here the keeper only waits and removes directories that belong to its uid:
            // all that could be used against the host goes. Its end of the socket goes too, so
            // that the supervisor sees init's end, not ours.
            drop(control);
            let confined = confine::drop_capabilities();
            if confined.is_ok() {
                wait_for(init);
            }
            // Closing the leash ends init, were it still there.
            drop(leash);
            cgroups.remove(PATIENCE);
            ExitCode::SUCCESS
        }
        Err(fail) => {
            cgroups.remove(Duration::ZERO);
            // The supervisor may be gone; then nobody is there to be told.
            let _ = wire::send(&control, &fail.report(), &[]);
            ExitCode::FAILURE
        }
    }
}

/// Cgroup, namespaces, init. Returns the pipe that init listens on for our death, and its pid.
fn start(
    control: &OwnedFd,
    mut plan: Plan,
    fds: Vec<OwnedFd>,
    cgroups: &mut Cgroups,
) -> Result<(OwnedFd, i32), Fail> {
    rustix::process::chdir("/").or_fail("change directory to", "/")?;
    // Directories of the jail are for its uid to walk through, whatever the supervisor's umask.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    // Out of the supervisor's process group: its terminal's Ctrl-C is not for us.
    let _ = rustix::process::setsid();
    let own = rustix::process::geteuid();
    let pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    let picked = if own.is_root() { pick_id(pid) } else { None };
    let root = picked.is_some();
    let uid = picked.unwrap_or(own.as_raw());
    let mut missing = confine::fit_rlimits(&mut plan.rlimits);
    if !root {
        missing.push(
            "an own uid: the supervisor is not root or has one uid only, all jails share its own"
                .to_owned(),
        );
    }
    let made = cgroups.create(&plan.limits);
    missing.extend(
        made.map_err(|error| Fail::new(error.doing, error.object, error.source).hint(error.hint))?,
    );
    let doors = cgroups.doors();
    let doors = doors.map_err(|error| Fail::new(error.doing, error.object, error.source))?;
    give(&plan, uid, root)?;
    let (listen, leash) = pipe_with(PipeFlags::CLOEXEC).or_fail("make", "a pipe")?;
    let legacy = Legacy {
        uid,
        root,
        missing,
        doors,
        oom: cgroups.oom_file(),
        freezer: cgroups.v1_freezer(),
        leash: listen,
    };
    let mut namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    if !root {
        namespaces |= libc::CLONE_NEWUSER;
    }
    let forked = sys::fork_into(namespaces).map_err(|error| {
        Fail::new("make namespaces for", &plan.name, error).hint(if root {
            "the supervisor needs CAP_SYS_ADMIN"
        } else {
            "run as root, or allow unprivileged user namespaces (see `hyper doctor`)"
        })
    })?;
    let Some(init) = forked else {
        drop(leash);
        init::run(control, plan, fds, legacy);
    };
    if !root {
        map_uid(init, uid).inspect_err(|_| end(init))?;
    }
    // Init waits for this byte: now its uid is mapped.
    rustix::io::write(&leash, b"!").or_fail("wake", "the jail's init")?;
    Ok((leash, init))
}

/// Gives the files named in the plan to the jail's uid.
fn give(plan: &Plan, uid: u32, root: bool) -> Result<(), Fail> {
    if !root {
        return Ok(());
    }
    for path in &plan.give {
        std::os::unix::fs::lchown(path, Some(uid), Some(uid))
            .or_fail("give to the jail's uid", path.display())?;
    }
    Ok(())
}

/// One uid and one gid, mapped to themselves (`user_namespaces(7)`).
fn map_uid(init: i32, uid: u32) -> Result<(), Fail> {
    let gid = rustix::process::getegid().as_raw();
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        let path = format!("/proc/{init}/{file}");
        fs::write(&path, text).map_err(|error| {
            Fail::new("write", &path, error)
                .hint("run as root, or allow unprivileged user namespaces")
        })?;
    }
    Ok(())
}

/// After a failure: init goes before the failure is told.
fn end(init: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(init) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    wait_for(init);
}

fn wait_for(init: i32) {
    while let Ok(Some(ended)) = sys::reap(true) {
        if ended.pid == init {
            break;
        }
    }
}
