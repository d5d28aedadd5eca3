//! The system calls that rustix does not wrap, each behind a safe function. This is all the
//! unsafe code of the launcher.

use std::ffi::{CString, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// Descriptors of the launcher's own live from here up, out of the way of the program's numbers.
const HIGH: RawFd = 300;

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Standard input, as long as nobody closed it.
pub fn stdin() -> BorrowedFd<'static> {
    // SAFETY: the supervisor starts us with descriptor 0 open; the caller duplicates it before
    // anything is closed.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Closes every descriptor from `first` up.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called at the start of the program and of a child, before or after which no owner of
    // such a descriptor is used (each caller says so); close_range(2) touches no memory.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Marks every descriptor from `first` up to be closed by exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: sets a flag of descriptors; no memory, no ownership involved.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// A duplicate with a number of 300 or more that exec closes.
pub fn duplicate_high(fd: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes and returns plain descriptors.
    let new = check(c_long::from(unsafe {
        libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH)
    }))?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new as RawFd) })
}

/// Puts a duplicate of `fd` at `number` (below 256), which exec keeps.
pub fn place_at(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    debug_assert!(number < HIGH && fd.as_raw_fd() >= HIGH);
    // SAFETY: only called in the child that is about to exec, whose remaining owners of
    // descriptors all sit at 300 and above: none loses its descriptor to `number`.
    check(c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

/// As fork(2), with namespace flags; `None` in the child.
pub fn fork_into(namespaces: c_int) -> io::Result<Option<i32>> {
    let flags = c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork: the child runs on a copy of
    // our memory. The launcher has one thread, so no lock can be held by a thread that is not
    // copied. The zero arguments are the unused tid and tls pointers on every architecture.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok(if pid == 0 { None } else { Some(pid as i32) })
}

/// `linux/sched.h`; libc's constant is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// As fork(2), the child in the cgroup v2 directory `cgroup` from its start (`clone3(2)`).
pub fn fork_into_cgroup(cgroup: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // SAFETY: all zero is a valid value of this plain C structure of numbers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the structure is live and its size is passed; without CLONE_VM this is fork, see
    // fork_into.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>())
    })?;
    Ok(if pid == 0 { None } else { Some(pid as i32) })
}

/// New namespaces for the calling process.
pub fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: none of the flags we pass shares or splits memory or descriptors.
    check(c_long::from(unsafe { libc::unshare(namespaces) })).map(drop)
}

/// No address space randomization from the next exec on.
pub fn fix_addresses() -> io::Result<()> {
    // SAFETY: sets a flag of this process; no memory involved.
    let set = unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) };
    check(c_long::from(set)).map(drop)
}

/// Ends the process at once: no destructors, no buffers of a copied parent.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// A child that ended.
pub struct Ended {
    pub pid: i32,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub cpu: Duration,
}

/// Takes the status of one ended child: `None` when there is no more at the moment.
pub fn reap(wait: bool) -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of this plain C structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let options = if wait { 0 } else { libc::WNOHANG };
    let pid = loop {
        // SAFETY: both pointers are to live variables of the right type.
        let pid = unsafe { libc::wait4(-1, &raw mut status, options, &raw mut usage) };
        match check(c_long::from(pid)) {
            Ok(0) => return Ok(None),
            Ok(pid) => break pid as i32,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    let signaled = libc::WIFSIGNALED(status);
    Ok(Some(Ended {
        pid,
        code: (!signaled).then(|| libc::WEXITSTATUS(status)),
        signal: signaled.then(|| libc::WTERMSIG(status)),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
    }))
}

/// Blocks SIGCHLD and returns a descriptor that is readable when one is pending.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialized by sigemptyset before it is used; the other pointers are
    // null where the calls allow it.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    let fd = check(c_long::from(fd))?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Gives every signal its default action: exec keeps ignored ones ignored, Rust's runtime ignores
/// SIGPIPE, and glibc's `posix_spawn` the two signals it uses itself, out of reach of `signal(3)`.
pub fn default_signals() {
    // The kernel's own structure: handler, flags, restorer and a mask of 64 bits; zero is SIG_DFL.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the structure is live and at least as large as the kernel's on every 64-bit
        // machine. No handler is involved. SIGKILL and SIGSTOP are refused, rightly.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<c_void>(),
                size_of::<u64>(),
            )
        };
    }
}

/// Attributes of a mount to set and to clear (`mount_setattr(2)`).
pub fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    recursive: bool,
) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the structure is live and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Installs a seccomp filter: instructions as the library packs them.
pub fn filter(packed: &[u64]) -> io::Result<()> {
    let program: Vec<libc::sock_filter> = packed
        .iter()
        .map(|op| libc::sock_filter {
            code: (op >> 48) as u16,
            jt: (op >> 40) as u8,
            jf: (op >> 32) as u8,
            k: *op as u32,
        })
        .collect();
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions from the live vector and writes nothing.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
    .map(drop)
}

/// What to execute.
pub enum Image<'a> {
    Fd(BorrowedFd<'a>),
    Path(CString),
}

/// Replaces the process; returns only with an error.
pub fn exec(image: &Image<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let mut list: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        list.push(ptr::null());
        list
    };
    let (args, env) = (pointers(args), pointers(env));
    let (fd, path, flags) = match image {
        Image::Fd(fd) => (fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH),
        Image::Path(path) => (libc::AT_FDCWD, path.as_ptr(), 0),
    };
    // SAFETY: path and both null-terminated lists point to live C strings.
    let result: c_long = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            path,
            args.as_ptr().cast::<c_void>(),
            env.as_ptr().cast::<c_void>(),
            flags,
        )
    };
    debug_assert!(result < 0);
    io::Error::last_os_error()
}
