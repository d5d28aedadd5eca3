//! Starts the launcher, hands it the specification and waits for its word.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

use crate::cgroup::Cgroups;
use crate::jailed::{Jailed, Leash};
use crate::seccomp::Seccomp;
use crate::spec::{JailSpec, MAX_FD_NUMBER, Place, Program};
use crate::wire::{self, Order, Plan, Report};
use crate::{JailError, locate};

/// How long the launcher may take; it needs milliseconds, a host that thrashes needs more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the jail and starts its program; returns when the program was executed.
///
/// # Errors
/// Every step that fails is named with its object; then nothing is left of the jail.
pub async fn spawn(spec: JailSpec) -> Result<Jailed, JailError> {
    check(&spec)?;
    let filters = spec.seccomp.clone().unwrap_or_else(Seccomp::fallback).compile()?;
    let program = match &spec.launcher {
        Some(path) => path.clone(),
        None => locate::launcher()?,
    };
    let name = spec.name.clone();
    let cgroups = Cgroups::locate(spec.cgroup.as_deref(), &name);
    let one_cpu = spec.one_cpu;
    let (order, fds) = plan(spec, filters);
    let keeper = start(&name, &program)?;
    // From here on the leash takes everything down when it is dropped, this future included.
    let mut leash = Leash::new(name.clone(), keeper, Some(cgroups));
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    wire::send(leash.control(), &order, &borrowed).map_err(|source| JailError::Io {
        name: name.clone(),
        doing: "send the specification to the launcher",
        source,
    })?;
    drop(fds);
    match leash.report(PATIENCE, "making the jail").await? {
        (Report::Started { uid, missing }, fds) => {
            let mut jailed = Jailed::new(leash, program, uid, missing, fds)?;
            if one_cpu {
                jailed.keep_on_one_cpu();
            }
            Ok(jailed)
        }
        (report, _) => {
            let error = unexpected(&name, report);
            // The keeper reports before it has cleaned up behind itself; wait for that.
            leash.settle().await;
            Err(error)
        }
    }
}

/// The error that a report other than the expected one is.
pub(crate) fn unexpected(name: &str, report: Report) -> JailError {
    match report {
        Report::Failed { doing, object, errno, hint } => JailError::Step {
            name: name.to_owned(),
            doing,
            object,
            hint: if hint.is_empty() { hint } else { format!(" ({hint})") },
            source: io::Error::from_raw_os_error(errno),
        },
        _ => JailError::LauncherDied { name: name.to_owned(), doing: "making the jail" },
    }
}

/// A started launcher: our end of its socket and its pidfd.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) control: AsyncFd<OwnedFd>,
    pub(crate) pid: Pid,
    pub(crate) pidfd: AsyncFd<OwnedFd>,
}

/// Starts the launcher program with a fresh socket as its standard input. `Command` without hooks
/// is `posix_spawn`: no fork of this multi-threaded process, no descriptor inherited.
pub(crate) fn start(name: &str, program: &Path) -> Result<Keeper, JailError> {
    let broken = |doing| {
        move |error: rustix::io::Errno| JailError::Io {
            name: name.to_owned(),
            doing,
            source: error.into(),
        }
    };
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(broken("make a socket pair"))?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(broken("make a socket non-blocking"))?;
    let child = Command::new(program)
        .arg(name)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| JailError::Start { launcher: program.to_path_buf(), source })?;
    // The child is waited for through its pidfd: in a shim, someone else may reap it first.
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid =
        pid.ok_or_else(|| JailError::LauncherDied { name: name.to_owned(), doing: "starting" })?;
    let pidfd =
        pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(broken("open the launcher's pidfd"))?;
    let watch = |fd: OwnedFd, doing| {
        // SAFETY: an OwnedFd is the same open descriptor from here until it is dropped, and
        // AsyncFd drops it after it has deregistered it.
        let registered = unsafe { AsyncFd::register(fd) };
        registered.map_err(|error| JailError::Io {
            name: name.to_owned(),
            doing,
            source: error.into(),
        })
    };
    Ok(Keeper {
        control: watch(ours, "watch the launcher's socket")?,
        pid,
        pidfd: watch(pidfd, "watch the launcher's pidfd")?,
    })
}

fn plan(spec: JailSpec, seccomp: Vec<Vec<u64>>) -> (Order, Vec<OwnedFd>) {
    let mut fds = Vec::new();
    let program = match spec.program {
        Program::Fd(fd) => {
            fds.push(fd);
            None
        }
        Program::Path(path) => Some(path),
    };
    let mut numbers = Vec::new();
    for (fd, number) in spec.fds {
        fds.push(fd);
        numbers.push(number);
    }
    let plan = Plan {
        name: spec.name,
        program,
        args: spec.args,
        env: spec.env,
        cwd: spec.cwd,
        fds: numbers,
        places: spec.places,
        give: spec.give,
        limits: spec.limits,
        cgroup: spec.cgroup,
        rlimits: spec.rlimits,
        seccomp,
        socket: spec.socket,
        fixed_addresses: spec.fixed_addresses,
        one_cpu: spec.one_cpu,
        keep: spec.keep,
    };
    (Order::Jail(Box::new(plan)), fds)
}

/// Refuses what would only fail later with less to say.
fn check(spec: &JailSpec) -> Result<(), JailError> {
    let bad = |what: String, hint: &str| Err(JailError::Spec { what, hint: hint.to_owned() });
    let legal = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let dots = spec.name.chars().all(|c| c == '.');
    if dots || spec.name.len() > 128 || !spec.name.chars().all(legal) {
        return bad(
            format!("name `{}`", spec.name),
            "1 to 128 of a-z A-Z 0-9 _ . -, not only dots",
        );
    }
    if spec.args.is_empty() {
        return bad("arguments".to_owned(), "at least argv[0] must be given");
    }
    for text in spec.args.iter().chain(&spec.env) {
        if text.contains('\0') {
            return bad(
                format!("argument or variable `{}`", text.escape_debug()),
                "holds a zero byte",
            );
        }
    }
    if spec.fds.len() + 1 > crate::packet::MAX_FDS {
        return bad(format!("{} descriptors", spec.fds.len()), "at most 127 can be passed");
    }
    let mut numbers: Vec<i32> = spec.fds.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    if let Some(number) = numbers.iter().find(|number| !(0..=MAX_FD_NUMBER).contains(*number)) {
        return bad(format!("descriptor number {number}"), "must be 0..=255");
    }
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        return bad(format!("descriptor number {}", pair[0]), "given twice");
    }
    if let Some(parent) = &spec.cgroup
        && parent.split('/').any(|part| part == "..")
    {
        return bad(format!("cgroup `{parent}`"), "must not hold `..`");
    }
    let inside = spec.places.iter().map(|place| match place {
        Place::Bind(bind) => bind.target.as_path(),
        Place::Tmpfs { target, .. } => target,
        Place::Device { path } | Place::Directory { path } => path,
        Place::Symlink { link, .. } => link,
        Place::Proc => Path::new("/proc"),
    });
    let path = match &spec.program {
        Program::Path(path) => Some(path.as_path()),
        Program::Fd(_) => None,
    };
    for target in inside.chain(path).chain([spec.cwd.as_path()]) {
        let climbs = target.components().any(|part| part == std::path::Component::ParentDir);
        if !target.is_absolute() || climbs || target.to_str().is_none() {
            return bad(
                format!("path `{}` inside the jail", target.display()),
                "must be absolute UTF-8 without `..`",
            );
        }
    }
    Ok(())
}
