//! Processes that take layers and archives apart: this program once more, in a jail.
//!
//! An unprivileged uid of its own, own namespaces (no network), an empty root but for the program's libraries, no
//! capabilities, a list of system calls of which none opens, connects or starts anything, three descriptors. The
//! program is the running one, also after a newer one was installed under its name.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper_image::{Confine, Confined, Work};
use hyper_jail::{Bind, JailSpec, Jailed, Outcome, Program, Resource, Seccomp, SeccompDefault};
use tokio::runtime::Runtime;

/// The first argument of such a process; the second is the order.
const NAME: &str = "hyper-unpack";

/// If this process is one of them: does its work and returns its exit code.
pub fn served() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() != Some(NAME) {
        return None;
    }
    let order = arguments.next().unwrap_or_default();
    Some(ExitCode::from(hyper_image::serve_unpacking(&order)))
}

/// Starts them.
#[derive(Debug)]
pub struct Jail {
    /// Files of the host that the program needs to be loaded: nothing, if it is linked statically.
    libraries: Vec<PathBuf>,
    started: AtomicU64,
}

impl Jail {
    /// # Errors
    /// `/proc` cannot be read.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { libraries: libraries()?, started: AtomicU64::new(0) }))
    }

    fn spec(&self, work: Work) -> io::Result<JailSpec> {
        let program = Program::Fd(File::open("/proc/self/exe")?.into());
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let [input, output, report] = work.descriptors;
        let mut spec = JailSpec::new(format!("unpack-{}-{number}", std::process::id()), program)
            .arg(NAME)
            .arg(work.order)
            .fd(input, 0)
            .fd(output, 1)
            .fd(report, 2)
            .rlimit(Resource::FileSize, work.file_bytes)
            .rlimit(Resource::AddressSpace, work.memory_bytes)
            .rlimit(Resource::OpenFiles, 16)
            .seccomp(calls());
        let mut directories = BTreeSet::new();
        for library in &self.libraries {
            spec = spec.bind(Bind::same(library).executable());
            let (directory, name) = (library.parent(), library.file_name());
            directories.extend(directory.and_then(Path::to_str));
            // The loader's name in the program is not always the one it is mapped from.
            if let Some(name) = name.filter(|name| name.to_string_lossy().starts_with("ld-")) {
                for directory in ["/lib64", "/lib"].map(Path::new) {
                    if Some(directory) != library.parent() {
                        let target = directory.join(name);
                        spec = spec.bind(Bind::new(library, target).executable());
                    }
                }
            }
        }
        if !directories.is_empty() {
            let list: Vec<&str> = directories.into_iter().collect();
            spec = spec.env("LD_LIBRARY_PATH", &list.join(":"));
        }
        Ok(spec)
    }
}

impl Confine for Jail {
    fn start(&self, work: Work) -> io::Result<Box<dyn Confined>> {
        let spec = self.spec(work)?;
        // Of its own, on this thread: the daemon's may be ending.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let jailed = runtime.block_on(hyper_jail::spawn(spec)).map_err(io::Error::other)?;
        Ok(Box::new(Process { jailed, runtime }))
    }
}

/// One of them. The jail is dropped before the runtime that it is registered with.
#[derive(Debug)]
struct Process {
    jailed: Jailed,
    runtime: Runtime,
}

impl Confined for Process {
    fn wait(&mut self) -> Option<String> {
        match self.runtime.block_on(self.jailed.wait()).outcome {
            Outcome::Exited(0) => None,
            Outcome::Exited(code) => Some(format!("ended with code {code}")),
            Outcome::Signaled(signal) => Some(match signal {
                libc::SIGSYS => "was killed for a system call it may not make".to_owned(),
                libc::SIGXFSZ => "was killed for writing more than it may".to_owned(),
                libc::SIGABRT => "gave up, for want of memory or for a mistake in it".to_owned(),
                signal => format!("was killed by signal {signal}"),
            }),
            Outcome::Killed => Some("was killed".to_owned()),
            Outcome::LauncherDied => Some("was killed with its jail".to_owned()),
        }
    }
}

/// Shared libraries and the loader of this process.
fn libraries() -> io::Result<Vec<PathBuf>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_library = |path: &&Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.ends_with(".so") || name.contains(".so."))
    };
    let found: BTreeSet<PathBuf> = paths.filter(is_library).map(Path::to_owned).collect();
    Ok(found.into_iter().collect())
}

/// What loading, allocating, reading, writing and ending need, found with strace; a call that is not listed ends the
/// process.
fn calls() -> Seccomp {
    Seccomp::new(SeccompDefault::Kill)
        .allow(&[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_pread64,
            libc::SYS_lseek,
            libc::SYS_close,
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_fcntl,
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_brk,
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_mprotect,
            libc::SYS_madvise,
            libc::SYS_futex,
            libc::SYS_clock_gettime,
            libc::SYS_arch_prctl,
            libc::SYS_set_tid_address,
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sigaltstack,
            libc::SYS_tgkill,
            libc::SYS_getpid,
            libc::SYS_gettid,
            libc::SYS_getrandom,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_yield,
            libc::SYS_prlimit64,
            libc::SYS_restart_syscall,
            // In an empty, read-only root: for the loader.
            libc::SYS_openat,
            libc::SYS_access,
            libc::SYS_readlink,
            libc::SYS_readlinkat,
            libc::SYS_execveat,
        ])
        .refuse(libc::SYS_ioctl, libc::ENOTTY)
        .refuse(libc::SYS_prctl, libc::EINVAL)
        .refuse(libc::SYS_uname, libc::ENOSYS)
}
