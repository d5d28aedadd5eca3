//! Directories and files of the host that a guest sees live: what is shared, and the process that
//! serves it.
//!
//! ```text
//! bind mounts of config.json ─► Shared… ─► hyper-share in a jail: /share/NAME, a bind mount each
//!                                              └ vhost-user socket ─► hypervisor ─► guest: virtio-fs
//! ```
//! One process per pod that shares anything, and none for others. It ends with its guest, and its
//! guest with it: a guest whose files do not answer any more would hang.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use hyper_hypervisor::Share;
use hyper_jail::{
    Bind, JailError, JailSpec, Jailed, Limits, Outcome, Program, Seccomp, SeccompDefault,
};
use rustix::thread::CapabilitySet;

use crate::create::make_private;
use crate::{PodError, Settings, chain};

/// Beside the supervisor, as `hyper-jail` is.
pub(crate) const PROGRAM: &str = "hyper-share";
/// Where it looks for what it shares; see its own text.
const ROOT: &str = "/share";
/// What the device calls itself.
const TAG: &str = "hyper";
/// Beside guest memory that it was the first to touch: heap, and page cache of what it serves.
const OVERHEAD: u64 = 256 << 20;
/// Threads: connection, two queues.
const THREADS: u64 = 16;

/// One directory or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shared {
    /// Its name in [`ROOT`], and in the guest's [`hyper_link::message::SHARED`].
    pub name: String,
    pub source: PathBuf,
    pub writable: bool,
    /// With what is mounted below it on the host.
    pub recursive: bool,
}

impl Shared {
    fn bind(&self) -> Bind {
        let bind = Bind::new(&self.source, Path::new(ROOT).join(&self.name));
        let bind = if self.recursive { bind.recursive() } else { bind };
        if self.writable { bind.writable() } else { bind }
    }
}

/// The process of one guest.
#[derive(Debug)]
pub(crate) struct Sharer {
    jailed: Jailed,
    socket: PathBuf,
}

impl Sharer {
    /// Starts it; it waits for its guest's hypervisor.
    pub async fn start(
        settings: &Settings,
        cgroup: Option<&str>,
        memory_bytes: u64,
        shared: &[Shared],
    ) -> Result<Self, PodError> {
        let program = hyper_jail::find_program(PROGRAM).map_err(|searched| {
            PodError::Unsupported(format!(
                "directories of the host are shared by the program `{PROGRAM}`, which is not in \
                 {searched}"
            ))
        })?;
        make_private(&settings.run_dir)?;
        let socket = settings.run_dir.join("share.sock");
        // Left by a guest before this one.
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(PodError::file("listen on", &socket))?;
        // The hypervisor has a uid of its own; nobody else can enter the directory.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))
            .map_err(PodError::file("open to the hypervisor", &socket))?;
        let executable = File::open(&program).map_err(PodError::file("open", &program))?;
        let name = format!("{}.share", settings.vm_id.chars().take(120).collect::<String>());
        let mut spec = JailSpec::new(name, Program::Fd(executable.into()))
            .arg(PROGRAM)
            .fd(listener.into(), 0)
            .proc()
            .directory(ROOT)
            .keep_capabilities(CAPABILITIES.bits())
            .seccomp(calls())
            .rlimit(hyper_jail::Resource::OpenFiles, open_files())
            .limits(Limits {
                memory_bytes: Some(memory_bytes + OVERHEAD),
                pids: Some(THREADS),
                ..Limits::default()
            });
        if let Some(parent) = cgroup {
            spec = spec.cgroup(parent);
        }
        spec = spec.system_libraries();
        for one in shared {
            spec = spec.bind(one.bind());
        }
        let jailed = hyper_jail::spawn(spec).await.map_err(failed)?;
        Ok(Self { jailed, socket })
    }

    /// Stays where its guest is, if that is one CPU: a request of the guest's is answered by turns with it.
    pub fn stay_with(&mut self, guest: u32) {
        self.jailed.follow(guest);
    }

    /// Runs on these CPUs of the host, as its guest does; `None`: all.
    pub fn place(&self, cpus: Option<&BTreeSet<usize>>) {
        if let Err(error) = self.jailed.set_cpus(cpus) {
            tracing::warn!(error = chain(&error), "the CPUs of shared directories' server");
        }
    }

    /// What the hypervisor is told.
    pub fn share(&self) -> Share {
        Share { socket: self.socket.clone(), tag: TAG.to_owned() }
    }

    /// Shares more, for a later container of the pod.
    pub async fn add(&self, shared: &[Shared]) -> Result<(), PodError> {
        for one in shared {
            self.jailed.bind(one.bind()).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Holds it to what goes with a guest of so much memory, which it maps. Where the host has no
    /// cgroup for it, it never was held.
    pub fn hold(&self, memory_bytes: u64) {
        match self.jailed.set_memory(memory_bytes.saturating_add(OVERHEAD)) {
            Ok(()) | Err(JailError::Unsupported { .. }) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "the limit of shared directories' server");
            }
        }
    }

    /// Waits for its end, and says how it was.
    pub async fn ended(&self) -> String {
        let exit = self.jailed.wait().await;
        let how = match exit.outcome {
            Outcome::Exited(code) => format!("it ended with code {code}"),
            Outcome::Signaled(_) if exit.oom => "the host's OOM killer ended it".to_owned(),
            Outcome::Signaled(signal) => format!("signal {signal} ended it"),
            Outcome::Killed | Outcome::LauncherDied => "its jail was ended".to_owned(),
        };
        format!("the process that shares the host's directories with it is gone: {how}")
    }

    /// Ends it; returns when it is gone. Fine to call again.
    pub async fn stop(&self) {
        self.jailed.kill().await;
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Owners and modes of files are the guest's to choose, as they are a container's on the host.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// A descriptor for each file the guest knows of: as many as the host gives, up to a million.
fn open_files() -> u64 {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    most.and_then(|text| text.trim().parse().ok()).unwrap_or(65_536).min(1_000_000)
}

fn failed(error: JailError) -> PodError {
    PodError::Share { source: error }
}

/// What a file server calls: files by descriptor, no new sockets, programs, mounts or namespaces.
/// `unshare` only takes the thread's working directory apart.
fn calls() -> Seccomp {
    Seccomp::new(SeccompDefault::Errno(libc::EPERM))
        .allow(FILES)
        .allow(PROCESS)
        .allow_if(libc::SYS_unshare, 0, hyper_jail::Comparison::Is(libc::CLONE_FS as u64))
        .threads()
}

const FILES: &[i64] = &[
    libc::SYS_access,
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
];

const PROCESS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];
