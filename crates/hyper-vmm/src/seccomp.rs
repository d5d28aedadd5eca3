//! Filters of system calls that threads put on themselves, inside the one of the jail.
//!
//! | who | may |
//! | --- | --- |
//! | process, before the guest runs | what the jail allows |
//! | main and virtual CPUs, from then on | that, but open nothing, execute nothing, make no io_uring |
//! | a device's thread | wait, signal its queues, manage memory, and its own few calls |
//!
//! What is not allowed ends the process: only an attacker asks for it.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// For loading the program and making the guest only.
const EARLY: &[i64] = &[
    libc::SYS_access,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_faccessat2,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_readlink,
];

/// What every thread of a device needs: eventfds, the allocator, its own end, a panic's words.
const DEVICE: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
];

/// Shuts the calling thread, and those it starts later, out of files by name.
pub(crate) fn leave_start() -> io::Result<()> {
    let rules = EARLY.iter().map(|call| (*call, Vec::new())).collect();
    install(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

/// Leaves the calling thread the calls of a device, and `own`.
pub(crate) fn device(own: &[i64]) -> io::Result<()> {
    let calls = DEVICE.iter().chain(own).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<_, _> = calls.collect();
    // Only asking whether it is open: builds with debug assertions do so before they close it.
    let asked = u64::try_from(libc::F_GETFD).unwrap_or(u64::MAX);
    let asking = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, asked)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)?;
    rules.insert(libc::SYS_fcntl, vec![asking]);
    install(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn install(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    other: SeccompAction,
    listed: SeccompAction,
) -> io::Result<()> {
    let filter = SeccompFilter::new(rules, other, listed, TargetArch::x86_64);
    let program = filter.and_then(BpfProgram::try_from).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
