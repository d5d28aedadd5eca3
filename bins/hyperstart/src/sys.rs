//! The system calls that have no safe wrapper, each behind one that is safe.
//!
//! Forking is sound because the agent has one thread: the child's memory is complete and no lock
//! is held by somebody who is not there.

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use rustix::{
    fs::{Mode, OFlags, open},
    process::Pid,
    thread::{
        LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space,
        move_into_thread_name_spaces,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// In which process a fork returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forked {
    /// The old one: the new one's id, as this process sees it.
    Parent(Pid),
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks, as `fork(2)`, with `flags` of `clone(2)` and the child born into a cgroup if one is given.
/// The child must end in [`execute`] or [`exit`].
///
/// # Errors
/// As `clone3(2)`.
pub(crate) fn fork(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    /// `<linux/sched.h>`; libc's constant is too narrow for it.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: `clone_args` is plain numbers, for which all zeroes is a value.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = u64::from(flags.cast_unsigned());
    if flags & libc::CLONE_PARENT == 0 {
        arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    }
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM the child gets a copy of all memory, and there is one thread, so it
    // goes on like after fork(2); the arguments outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
    };
    let pid = check(result)?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).map_or(Forked::Child, Forked::Parent))
}

/// Forks as `fork(2)`, in the way that every seccomp filter lets pass.
///
/// # Errors
/// As `fork(2)`.
pub(crate) fn fork_plain() -> io::Result<Forked> {
    // SAFETY: there is one thread, so the child may do all that its parent may.
    let pid = check(unsafe { libc::fork() }.into())?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).map_or(Forked::Child, Forked::Parent))
}

/// Forks into the PID namespace of the process behind `pidfd`, and into `cgroup`.
///
/// # Errors
/// As `setns(2)` and `clone3(2)`.
///
/// # Panics
/// When this process could not get its own namespace back for its next children.
pub(crate) fn fork_beside(pidfd: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<Forked> {
    let own = open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::PROCESS_ID)?;
    let forked = fork(0, Some(cgroup));
    if !matches!(forked, Ok(Forked::Child)) {
        let back = move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID));
        assert!(back.is_ok(), "no way back from a container's PID namespace: {back:?}");
    }
    forked
}

/// Ends this process at once.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit takes any number and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Replaces this process's program; returns only why not.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in null and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process's program by the open file `program`; returns only why not.
pub(crate) fn execute_file(
    program: BorrowedFd<'_>,
    arguments: &[CString],
    environment: &[CString],
) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in null and point to strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Blocks all signals that can be blocked.
///
/// # Errors
/// As `sigprocmask(2)`.
pub(crate) fn block_signals() -> io::Result<()> {
    // SAFETY: the set is made by sigfillset before it is read.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigfillset(&raw mut set);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()).into())?;
    }
    Ok(())
}

/// Waits for a blocked signal and returns its number.
pub(crate) fn next_signal() -> i32 {
    // SAFETY: the set is made by sigfillset before it is read; no information is asked for.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigwaitinfo(&raw const set, ptr::null_mut())
    }
}

/// Time since the kernel started, suspended or not, in microseconds.
pub(crate) fn uptime_us() -> u64 {
    // Not through rustix: it asks the vDSO, where user-mode Linux has no clocks, and aborts.
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable; on failure it stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let microseconds = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    u64::try_from(microseconds).unwrap_or(0)
}

/// Blocks `SIGCHLD` and returns a descriptor that is readable when a child has ended.
///
/// # Errors
/// As `signalfd(2)`.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is made by sigemptyset before it is read; signalfd returns a new descriptor
    // that nobody else owns.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()).into())?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        check(fd.into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Gives a child the signal dispositions and mask a new program expects.
pub(crate) fn default_signals() {
    // SAFETY: only this process's own dispositions and mask change; no handler is installed.
    unsafe {
        // Rust's runtime ignores it, and ignoring survives execve.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Watches `fd` for readiness.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd refers to the same open descriptor for as long as it lives, and nothing
    // gives out mutable access to it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts().1)
}

/// Sends `signal` to a process, or with -1 to all but this one.
///
/// # Errors
/// As `kill(2)`.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes any numbers and touches no memory.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Makes this process's cgroup the root of those it sees.
///
/// # Errors
/// As `unshare(2)`.
pub(crate) fn own_cgroup_namespace() -> io::Result<()> {
    // SAFETY: a cgroup namespace has no part in memory or descriptors.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into()).map(drop)
}

/// Lets the clock catch up with `micros` (or wait for them) by and by: `adjtime(3)`.
///
/// # Errors
/// As `adjtimex(2)`.
pub(crate) fn slew_clock(micros: i64) -> io::Result<()> {
    // SAFETY: `timex` is plain integers, for which zero is a value.
    let mut change: libc::timex = unsafe { mem::zeroed() };
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = micros;
    // SAFETY: the call reads and writes one `timex`, which `change` is.
    check(unsafe { libc::adjtimex(&raw mut change) }.into())?;
    Ok(())
}

/// Credits `bytes` to the kernel's entropy pool.
///
/// # Errors
/// As `RNDADDENTROPY` of `random(4)`.
pub(crate) fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    /// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of `<linux/random.h>`.
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    /// `struct rand_pool_info`.
    #[repr(C)]
    struct PoolInfo {
        bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 256],
    }
    let device = open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    for chunk in bytes.chunks(256) {
        let len = libc::c_int::try_from(chunk.len()).unwrap_or(0);
        let mut info = PoolInfo { bits: len * 8, size: len, bytes: [0; 256] };
        info.bytes[..chunk.len()].copy_from_slice(chunk);
        // SAFETY: the ioctl reads the header and `size` bytes after it, which are inside `info`.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) };
        check(result.into())?;
    }
    // SAFETY: the ioctl takes no argument. Makes the new bytes count at once: a clone that went on
    // with its template's key would draw its template's numbers.
    let reseeded = check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }.into());
    match reseeded {
        // There was no key yet; the bytes are part of the first one.
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        other => other.map(drop),
    }
}

/// Drops what the kernel has cached of a block device: a restored guest sees another disk there.
///
/// # Errors
/// As `BLKFLSBUF`.
pub(crate) fn drop_disk_cache(device: BorrowedFd<'_>) -> io::Result<()> {
    /// `_IO(0x12, 97)` of `<linux/fs.h>`.
    const BLKFLSBUF: libc::Ioctl = 0x1261;
    // SAFETY: the ioctl takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF, 0) };
    check(result.into()).map(drop)
}

/// Puts this process under a seccomp filter (classic BPF).
///
/// # Errors
/// As `seccomp(2)`: needs CAP_SYS_ADMIN or no_new_privs.
pub(crate) fn set_seccomp_filter(program: &[libc::sock_filter], flags: u64) -> io::Result<()> {
    let len = u16::try_from(program.len())
        .map_err(|_too_long| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions from `filter` and writes nothing.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    check(result).map(drop)
}

/// One eBPF instruction; `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct BpfInstruction {
    pub(crate) code: u8,
    /// Destination register in the low half, source in the high half.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// Lets `program` decide on device access in `cgroup`.
///
/// # Errors
/// As `bpf(2)`, `BPF_PROG_LOAD` and `BPF_PROG_ATTACH`.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: &[BpfInstruction],
) -> io::Result<()> {
    const PROG_LOAD: libc::c_long = 5;
    const PROG_ATTACH: libc::c_long = 8;
    const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    /// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
    #[repr(C)]
    struct Load {
        program_type: u32,
        instructions: u32,
        program: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    /// The head of `union bpf_attr` for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
    }
    let load = Load {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instructions: u32::try_from(program.len()).unwrap_or(u32::MAX),
        program: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the kernel reads the attributes, the instructions and the string they point to, all
    // alive; the result is a new descriptor nobody else owns.
    let program = unsafe {
        let fd =
            check(libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()))?;
        OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1))
    };
    let attach = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes, which are alive.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>())
    };
    check(result).map(drop)
}

/// Makes `stdio` this process's descriptors 0, 1 and 2, keeps copies of `others`, and closes all
/// else: a child that lingers must not hold the ends of other containers' pipes open.
///
/// Only for a child of a fork that never returns: it must not use any other descriptor again.
///
/// # Errors
/// As `dup3(2)` and `close_range(2)`.
pub(crate) fn adopt<const N: usize>(
    stdio: &[OwnedFd; 3],
    others: [BorrowedFd<'_>; N],
) -> io::Result<[OwnedFd; N]> {
    /// Where the first of `others` goes.
    const FIRST: i32 = 3;
    /// Out of the way of all targets.
    const ASIDE: i32 = 64;
    let aside = |source: BorrowedFd<'_>| {
        // SAFETY: duplicates a descriptor that is alive.
        check(unsafe { libc::fcntl(source.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ASIDE) }.into())
    };
    let mut sources = Vec::with_capacity(3 + N);
    for source in stdio.iter().map(|fd| fd.as_fd()).chain(others) {
        sources.push(aside(source)?);
    }
    for (target, source) in (0..).zip(sources) {
        let flags = if target >= FIRST { libc::O_CLOEXEC } else { 0 };
        let source = i32::try_from(source).unwrap_or(-1);
        // SAFETY: what was behind the target numbers is not used again, see above.
        check(unsafe { libc::dup3(source, target, flags) }.into())?;
    }
    let end = FIRST + i32::try_from(N).unwrap_or(0);
    // SAFETY: as before; nothing from `end` on is used again.
    check(unsafe { libc::syscall(libc::SYS_close_range, end, u32::MAX, 0) })?;
    let mut next = FIRST;
    Ok(others.map(|_| {
        next += 1;
        // SAFETY: made above, and owned by this value only.
        unsafe { OwnedFd::from_raw_fd(next - 1) }
    }))
}
