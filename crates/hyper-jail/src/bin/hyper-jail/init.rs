//! Pid 1 of the jail: starts the hypervisor, reports, reaps, and takes everything down when
//! supervisor or keeper die.
//!
//! ```text
//! born ─leash byte─► fork hypervisor ─► build root ─► go ─► executed? ─► Started ─► watch ─► Ended
//!                    (joins its cgroup meanwhile: up to 15 ms of the kernel's time)
//! ```

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use hyper_jail::launcher::Doors;
use hyper_jail::wire::{self, LookedUp, Plan, Report};
use hyper_jail::{Seccomp, SeccompDefault};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::fail::{Fail, OrFail};
use crate::hypervisor::{self, Errand};
use crate::{confine, root, sys};

/// What the keeper leaves to init.
pub struct Legacy {
    /// Uid and gid of the hypervisor.
    pub uid: u32,
    /// The keeper is root; else we are in a user namespace.
    pub root: bool,
    pub missing: Vec<String>,
    pub doors: Doors,
    /// Counts OOM kills.
    pub oom: Option<File>,
    /// The v1 freezer's state.
    pub freezer: Option<File>,
    /// Says one byte when we may begin; closes when the keeper dies.
    pub leash: OwnedFd,
}

/// What stays open while watching.
struct Watch {
    leash: OwnedFd,
    children: OwnedFd,
    oom: Option<File>,
    freezer: Option<File>,
    hypervisor: i32,
}

/// The life of init.
pub fn run(control: &OwnedFd, plan: Plan, fds: Vec<OwnedFd>, legacy: Legacy) -> ! {
    match begin(control, plan, fds, legacy) {
        Ok(watch) => {
            let end = watch_over(control, watch);
            if let Some(report) = end {
                let _ = wire::send(control, &report, &[]);
            }
        }
        Err(fail) => {
            let _ = wire::send(control, &fail.report(), &[]);
        }
    }
    // The kernel kills whatever is left in our pid namespace before we are gone.
    sys::exit(0)
}

fn begin(control: &OwnedFd, plan: Plan, fds: Vec<OwnedFd>, legacy: Legacy) -> Result<Watch, Fail> {
    let Legacy { uid, root, missing, mut doors, oom, freezer, leash } = legacy;
    die_with_keeper(&leash)?;
    // Once mapped, a user namespace's first process still has the unmapped ids it was made with.
    confine::normal_oom_score();
    let socket = if plan.socket { Some(datagram_socket()?) } else { None };
    let pipe = || pipe_with(PipeFlags::CLOEXEC).or_fail("make", "a pipe");
    let (go_in, go_out) = pipe()?;
    let (word_in, word_out) = pipe()?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .or_fail("open", "/dev/null")?;
    let forked = fork(&mut doors).or_fail("fork for", &plan.name)?;
    let Some(child) = forked else {
        drop(go_out);
        drop(word_in);
        let errand = Errand { uid, root, doors, go: go_in, word: word_out, null };
        hypervisor::run(plan, fds, errand);
    };
    drop((doors, go_in, word_out, null, fds));
    let children = sys::child_signals().or_fail("watch", "child processes")?;
    root::build(&plan, uid, root)?;
    confine::become_nobody(uid, root)?;
    die_with_keeper_again(&leash)?;
    // A child that failed already has left its word; it need not listen.
    let _ = rustix::io::write(&go_out, b"!");
    drop(go_out);
    hear(word_in)?;
    let me = rustix::process::getpid();
    let child_pid = Pid::from_raw(child)
        .ok_or_else(|| Fail::new("open pidfd of", "the hypervisor", rustix::io::Errno::SRCH))?;
    let pidfd = |pid| pidfd_open(pid, PidfdFlags::empty()).or_fail("open", "a pidfd");
    let pidfds = [pidfd(me)?, pidfd(child_pid)?];
    let mut beside = vec![pidfds[0].as_fd(), pidfds[1].as_fd()];
    beside.extend(socket.as_ref().map(AsFd::as_fd));
    wire::send(control, &Report::Started { uid, missing }, &beside)
        .or_fail("report to", "the supervisor")?;
    Ok(Watch { leash, children, oom, freezer, hypervisor: child })
}

/// Forks the hypervisor into its v2 cgroup, where that can be done at once.
fn fork(doors: &mut Doors) -> std::io::Result<Option<i32>> {
    if let Some(dir) = &doors.v2
        && let Ok(forked) = sys::fork_into_cgroup(dir.as_fd())
    {
        doors.v2_procs = None;
        return Ok(forked);
    }
    sys::fork_into(0)
}

/// Waits for the keeper's byte; from then on its death is ours.
fn die_with_keeper(leash: &OwnedFd) -> Result<(), Fail> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .or_fail("set", "the parent-death signal")?;
    let mut byte = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(leash, &mut byte)) {
        Ok(1) => Ok(()),
        _ => sys::exit(0),
    }
}

/// The kernel forgets the parent-death signal when a process changes its uid. The leash tells of
/// a keeper that died in between.
fn die_with_keeper_again(leash: &OwnedFd) -> Result<(), Fail> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .or_fail("set", "the parent-death signal")?;
    let mut fds = [PollFd::new(leash, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    if let Ok(1..) = poll(&mut fds, Some(&now)) {
        sys::exit(0);
    }
    Ok(())
}

/// A datagram socket of the jail's network namespace; see the library's `datagram_socket`.
fn datagram_socket() -> Result<OwnedFd, Fail> {
    let made = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let socket = made.or_fail("make", "a datagram socket")?;
    let name = SocketAddrUnix::new_abstract_name(b"hyper-jail").or_fail("name", "a socket")?;
    bind(&socket, &name).or_fail("bind", "a datagram socket")?;
    Ok(socket)
}

/// The hypervisor's last word before exec: nothing, or the failure as JSON or an errno.
fn hear(word: OwnedFd) -> Result<(), Fail> {
    let mut text = Vec::new();
    File::from(word).read_to_end(&mut text).or_fail("hear", "the hypervisor's start")?;
    if text.is_empty() { Ok(()) } else { Err(Fail::from_bytes(&text)) }
}

/// Until the hypervisor has ended, or nobody is left who wants it.
fn watch_over(control: &OwnedFd, mut watch: Watch) -> Option<Report> {
    confine_self();
    // Until the supervisor has looked up the host's pids behind our pidfds, no pid is let go.
    let mut looked_up = false;
    loop {
        while let Some(ended) = if looked_up { sys::reap(false).ok().flatten() } else { None } {
            if ended.pid == watch.hypervisor {
                return Some(Report::Ended {
                    code: ended.code,
                    signal: ended.signal,
                    oom: watch.oom.as_mut().is_some_and(|file| oom_kills(file) > 0),
                    cpu_us: u64::try_from(ended.cpu.as_micros()).unwrap_or(u64::MAX),
                });
            }
        }
        let mut fds = [
            PollFd::new(control, PollFlags::IN),
            PollFd::new(&watch.leash, PollFlags::empty()),
            PollFd::new(&watch.children, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
        let [supervisor, keeper, children] = fds.map(|fd| fd.revents());
        if supervisor == PollFlags::IN
            && let Ok(Some((LookedUp, _))) = wire::receive(control)
        {
            looked_up = true;
        } else if !supervisor.is_empty() || !keeper.is_empty() {
            if let Some(freezer) = &mut watch.freezer {
                // Frozen v1 processes do not take SIGKILL.
                let _ = freezer.write_all(b"THAWED");
            }
            return None;
        }
        if !children.is_empty() {
            let mut drain = [0; 1024];
            while rustix::io::read(&watch.children, &mut drain).is_ok_and(|read| read > 0) {}
        }
    }
}

/// Init shares the hypervisor's uid: it lets itself be neither traced nor used.
fn confine_self() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let list = Seccomp::new(SeccompDefault::Kill).allow(&[
        // Watching, reaping, reporting.
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_lseek,
        libc::SYS_write,
        libc::SYS_wait4,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_close,
        libc::SYS_exit_group,
        libc::SYS_restart_syscall,
        // Rust's standard library checks a descriptor before it closes it, in debug builds.
        libc::SYS_fcntl,
        // The allocator.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        // Reading a file to its end asks for its size.
        libc::SYS_fstat,
        libc::SYS_statx,
        libc::SYS_newfstatat,
    ]);
    if let Ok(filters) = list.compile() {
        for filter in filters {
            let _ = sys::filter(&filter);
        }
    }
}

fn oom_kills(file: &mut File) -> u64 {
    let mut text = String::new();
    if file.rewind().and_then(|()| file.read_to_string(&mut text)).is_err() {
        return 0;
    }
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
