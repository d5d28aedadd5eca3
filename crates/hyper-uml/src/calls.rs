//! The system calls a user-mode kernel makes, found by running the contract under strace in both
//! modes, and kept honest by running the contract under this list.
//!
//! Guest programs' own calls are not in it. Under ptrace they never reach the host: the tracer
//! turns them into nothing before any filter looks (PTRACE_SYSEMU). In seccomp mode they pass our
//! filter first and then trap in UML's own; as the strictest answer wins and a kill is stricter
//! than a trap, an unlisted call must then be an errno, which is weaker than a trap, and the
//! kernel's process gets an errno where it would have been killed.

use hyper_jail::{Comparison, Seccomp, SeccompDefault};

use crate::Separation;

/// The list for a mode.
pub fn list(separation: Separation, share: bool) -> Seccomp {
    let default = match separation {
        Separation::Ptrace => SeccompDefault::Kill,
        Separation::Seccomp => SeccompDefault::Errno(libc::EPERM),
    };
    let list = [MEMORY, FILES, LINES, TIME, SIGNALS, PROCESSES, IDENTITY]
        .into_iter()
        .fold(Seccomp::new(default), Seccomp::allow)
        // Unix sockets only: mconsole and the pairs of helper threads. The jail's network
        // namespace is empty, but protocol modules need not even be loaded.
        .allow_if(libc::SYS_socket, 0, Comparison::Is(libc::AF_UNIX as u64))
        .unix_pairs()
        // Helper threads, the tracer's children.
        .processes()
        .options(PRCTL);
    // The device of shared directories; nothing else in the jail listens.
    let list = if share { list.allow(&[libc::SYS_connect]) } else { list };
    IOCTL.iter().fold(list, |list, request| list.requests(&[Comparison::Is(*request)]))
}

/// Guest memory is a file: mapped by the kernel once, and page by page by guest processes.
const MEMORY: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
];

/// Disks (read, write, discard, flush), guest memory's file, pid file and socket of mconsole.
const FILES: &[i64] = &[
    libc::SYS_access,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_mkdir,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rmdir,
    libc::SYS_statfs,
    libc::SYS_unlink,
    libc::SYS_write,
];

/// Console, link, taps (readv, writev), mconsole, and waiting for them.
const LINES: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_epoll_create,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_writev,
];

/// The guest's timer interrupt and its idle loop.
const TIME: &[i64] = &[
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
];

/// Interrupts and faults of the guest are signals of the host. Signals reach the jail's own pid
/// namespace only, and not its init.
const SIGNALS: &[i64] = &[
    libc::SYS_kill,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_tgkill,
];

/// Every guest process is a process of the host that executes UML's stub (from a sealed memfd:
/// no other file in the jail is executable) and is traced, or filtered, by it. `seccomp` only
/// ever adds filters; `ptrace` reaches processes of the same jail only, and not its init, which
/// is not dumpable.
const PROCESSES: &[i64] = &[
    libc::SYS_arch_prctl,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_ptrace,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setsid,
    libc::SYS_wait4,
];

/// Questions about itself and its limits.
const IDENTITY: &[i64] = &[
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_personality,
    libc::SYS_prlimit64,
    libc::SYS_uname,
];

/// A stub names itself, dies with its kernel, and gives up new privileges.
const PRCTL: &[i32] =
    &[libc::PR_SET_NAME, libc::PR_SET_PDEATHSIG, libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_DUMPABLE];

/// Asked of every line: is it a terminal, how large is it; none is one. Of a tap: is it one, and
/// has it virtio-net headers (`linux/if_tun.h`: TUNGETIFF, TUNGETFEATURES, TUNSETVNETHDRSZ).
const IOCTL: &[u64] =
    &[libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO, 0x8004_54d2, 0x8004_54cf, 0x4004_54d8];
