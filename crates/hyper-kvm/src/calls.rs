//! System calls that the monitor makes: found with strace over the whole contract.
//!
//! What is not listed ends the process: it is our own program, and what it does not need only an
//! attacker asks for. Not in the list: new sockets and connections, new processes (threads only),
//! names of files but for the loader's, namespaces, mounts, signals to others, keys, BPF,
//! userfaultfd, and every ioctl but KVM's, the taps' and vhost's. Of io_uring there are rings that were
//! made before the guest ran, if that is asked for at all: for transfers of open files and nothing else.

use hyper_jail::{Seccomp, SeccompDefault, request};

/// For the loader and the C library, before `main`.
const LOADING: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_execveat,
    libc::SYS_faccessat2,
    libc::SYS_getrandom,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_readlink,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
];

const WORKING: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// For the rings of its disks. To make one more, or to change one, the monitor refuses itself before the guest runs.
const RINGS: &[i64] =
    &[libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_io_uring_setup];

/// The list; `share`: the monitor speaks to a server of shared directories.
pub fn list(share: bool, io_uring: bool) -> Seccomp {
    let list = Seccomp::new(SeccompDefault::Kill)
        .allow(LOADING)
        .allow(WORKING)
        .threads()
        .asking_for_limits()
        // Threads narrow what they may do.
        .allow(&[libc::SYS_seccomp])
        .options(&[libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_NAME])
        .requests(&[request::KVM, request::TAP, request::VHOST, request::FIONBIO]);
    let list = if io_uring { list.allow(RINGS) } else { list };
    // The server's channel back to the monitor.
    if share { list.unix_pairs() } else { list }
}
