//! System calls that QEMU makes here: found with strace over the whole contract, grouped by what
//! for, widened by what its neighbours in other versions of glibc and QEMU use instead.
//!
//! What is not listed fails with EPERM and does not kill: QEMU and its libraries try calls that
//! they can do without (io_uring, sysfs, NUMA), and newer ones will try more. What an attacker
//! gains by that is an error code.
//!
//! Not in the list, and so out of reach of code that broke out of the guest: new sockets and
//! connections, new processes (threads only), namespaces, mounts, other processes' memory and
//! signals to them, keys, BPF, perf, userfaultfd, io_uring, and every ioctl but KVM's, the taps'
//! and vhost's. `execveat` remains because the jail starts QEMU with it after the filter is in
//! place; QEMU's own filter, and a root without programs, stand behind it.

use hyper_jail::{Seccomp, SeccompDefault, request};
use libc::c_long;

/// Reads, writes and positions in files, pipes and sockets that are open.
const DATA: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_ftruncate,
    libc::SYS_sync_file_range,
    libc::SYS_copy_file_range,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// Descriptors, and names in the jail's own root.
const FILES: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_umask,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_execveat,
];

/// Memory: the guest's, translated code, the heap.
const MEMORY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
];

/// Waiting and time.
const WAITING: &[c_long] = &[
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    libc::SYS_restart_syscall,
];

/// Threads, signals within the process, and what a process asks about itself.
const PROCESS: &[c_long] = &[
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    // Only ever narrows: QEMU's own filter.
    libc::SYS_seccomp,
];

const OPTIONS: &[i32] = &[
    libc::PR_SET_NAME,
    libc::PR_SET_TIMERSLACK,
    libc::PR_MCE_KILL,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_SET_PDEATHSIG,
];

/// The list; KVM's calls only where KVM is used.
pub fn list(kvm: bool, share: bool) -> Seccomp {
    let mut list = [DATA, FILES, MEMORY, WAITING, PROCESS]
        .into_iter()
        .fold(Seccomp::new(SeccompDefault::Errno(libc::EPERM)), Seccomp::allow)
        .threads()
        .refuse(libc::SYS_io_uring_setup, libc::ENOSYS)
        .asking_for_limits()
        .options(OPTIONS)
        .requests(&[request::TAP, request::VHOST, request::FIONBIO]);
    if share {
        // The device of shared directories gets a channel of its own back to QEMU.
        list = list.unix_pairs();
    }
    if kvm {
        list = list.requests(&[request::KVM]);
    }
    list
}
