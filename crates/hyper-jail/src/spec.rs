//! What a jail is made of, as the adapters say it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::seccomp::Seccomp;

/// Highest descriptor number that can be given to the jailed program.
pub(crate) const MAX_FD_NUMBER: i32 = 255;

/// What runs inside.
#[derive(Debug)]
pub enum Program {
    /// A program that is open already; it needs no path inside the jail. One that is linked
    /// dynamically needs its interpreter and libraries bound.
    Fd(OwnedFd),
    /// A path inside the jail.
    Path(PathBuf),
}

/// A file or directory of the host that is seen inside; read-only and without device nodes unless
/// said otherwise.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub writable: bool,
    pub executable: bool,
    pub optional: bool,
    pub owned: bool,
    pub recursive: bool,
}

impl Bind {
    /// `source` of the host seen as `target`, read-only and not executable.
    pub fn new(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            writable: false,
            executable: false,
            optional: false,
            owned: false,
            recursive: false,
        }
    }

    /// `path` of the host seen under the same name.
    pub fn same(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::new(path.clone(), path)
    }

    /// The program may write to it, as far as the file's mode lets it.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.writable = true;
        self
    }

    /// Programs and libraries in it may be mapped executable.
    #[must_use]
    pub fn executable(mut self) -> Self {
        self.executable = true;
        self
    }

    /// Left out when `source` does not exist.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// The launcher gives `source` itself (not what is in it) to the jail's uid, for good.
    #[must_use]
    pub fn owned(mut self) -> Self {
        self.owned = true;
        self
    }

    /// What is mounted below `source` is seen as well, with the same restrictions.
    #[must_use]
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }
}

/// Limits of the jail's cgroup; `None`: unlimited.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, page cache and tmpfs of the jail included.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Share of the CPU against others, 1..=10000, 100 is the usual share (cgroup v2 `cpu.weight`;
    /// converted to v1 shares).
    pub cpu_weight: Option<u64>,
    /// CPU time in microseconds per period of microseconds.
    pub cpu_quota: Option<(u64, u64)>,
}

/// A resource limit, see `setrlimit(2)`; soft and hard are set alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    OpenFiles,
    FileSize,
    AddressSpace,
    LockedMemory,
    Stack,
    Processes,
}

/// One place in the jail's root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Place {
    Bind(Bind),
    Tmpfs { target: PathBuf, bytes: u64, executable: bool },
    Device { path: PathBuf },
    Symlink { link: PathBuf, to: PathBuf },
    Directory { path: PathBuf },
    Proc,
}

/// A jail to be made by [`crate::spawn`]. The defaults are the narrowest: an empty root, no
/// descriptors but `/dev/null` on 0..=2, no environment, no device, no `/proc`, no core dumps.
#[derive(Debug)]
pub struct JailSpec {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) fds: Vec<(OwnedFd, i32)>,
    pub(crate) places: Vec<Place>,
    pub(crate) give: Vec<PathBuf>,
    pub(crate) limits: Limits,
    pub(crate) cgroup: Option<String>,
    pub(crate) rlimits: Vec<(Resource, u64)>,
    pub(crate) seccomp: Option<Seccomp>,
    pub(crate) socket: bool,
    pub(crate) fixed_addresses: bool,
    pub(crate) one_cpu: bool,
    pub(crate) keep: u64,
    pub(crate) launcher: Option<PathBuf>,
}

impl JailSpec {
    /// A jail for `program`. `name` names the cgroup and shows in `ps`: `[a-zA-Z0-9_.-]{1,128}`,
    /// unique among living jails under the same parent cgroup.
    pub fn new(name: impl Into<String>, program: Program) -> Self {
        Self {
            name: name.into(),
            program,
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            fds: Vec::new(),
            places: Vec::new(),
            give: Vec::new(),
            limits: Limits::default(),
            cgroup: None,
            rlimits: Vec::new(),
            seccomp: None,
            socket: false,
            fixed_addresses: false,
            one_cpu: false,
            keep: 0,
            launcher: None,
        }
    }

    /// Appends an argument; the first one given is `argv[0]`.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable; none is inherited.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push(format!("{key}={value}"));
        self
    }

    /// Working directory inside the jail, `/` unless set.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = dir.into();
        self
    }

    /// Gives the program `fd` as descriptor `number` (0..=255). 0, 1 and 2 are `/dev/null` unless
    /// given.
    #[must_use]
    pub fn fd(mut self, fd: OwnedFd, number: i32) -> Self {
        self.fds.push((fd, number));
        self
    }

    /// Shows a file or directory of the host.
    #[must_use]
    pub fn bind(mut self, bind: Bind) -> Self {
        self.places.push(Place::Bind(bind));
        self
    }

    /// A private tmpfs that the program may write to, at most `bytes` large, charged to the
    /// jail's memory; `executable` lets it map files of it executable.
    #[must_use]
    pub fn tmpfs(mut self, target: impl Into<PathBuf>, bytes: u64, executable: bool) -> Self {
        self.places.push(Place::Tmpfs { target: target.into(), bytes, executable });
        self
    }

    /// The host's device node `path` (below `/dev`), under the same name, read-write for the
    /// program.
    #[must_use]
    pub fn device(mut self, path: impl Into<PathBuf>) -> Self {
        self.places.push(Place::Device { path: path.into() });
        self
    }

    /// A symbolic link, e.g. `/lib` → `usr/lib`.
    #[must_use]
    pub fn symlink(mut self, link: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.places.push(Place::Symlink { link: link.into(), to: to.into() });
        self
    }

    /// The host's shared libraries and what their loader asks for: for programs that are linked
    /// dynamically. Where `/lib` is a link (merged `/usr`) it is one inside, too.
    #[must_use]
    pub fn system_libraries(mut self) -> Self {
        for directory in ["/usr/lib", "/usr/lib64", "/lib", "/lib64"] {
            self = match std::fs::read_link(directory) {
                Ok(to) => self.symlink(directory, to),
                Err(_) => self.bind(Bind::same(directory).executable().optional()),
            };
        }
        // Without it the loader tries every variant of every library's directory.
        self.bind(Bind::same("/etc/ld.so.cache").optional())
    }

    /// An empty directory that nobody can write to: a place for later binds.
    #[must_use]
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.places.push(Place::Directory { path: path.into() });
        self
    }

    /// The program runs as root of the host with these capabilities (bits by number, see
    /// `capabilities(7)`) and no others, for good. For a program that has to make files of any
    /// owner; what it can reach is only what is bound. Needs a supervisor that is root.
    #[must_use]
    pub fn keep_capabilities(mut self, bits: u64) -> Self {
        self.keep = bits;
        self
    }

    /// `/proc` of the jail's own pid namespace, read-only; nothing of the host is in it but
    /// what the kernel tells everybody (`cpuinfo`, `meminfo`, sysctl).
    #[must_use]
    pub fn proc(mut self) -> Self {
        self.places.push(Place::Proc);
        self
    }

    /// Gives a file of the host to the jail's uid before the program starts, for good.
    #[must_use]
    pub fn give(mut self, path: impl Into<PathBuf>) -> Self {
        self.give.push(path.into());
        self
    }

    /// Limits of the jail's cgroup.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Parent cgroup, relative to each hierarchy's root, e.g. `kubepods/pod1`; made when it is
    /// not there. `hyper` unless set.
    #[must_use]
    pub fn cgroup(mut self, parent: impl Into<String>) -> Self {
        self.cgroup = Some(parent.into());
        self
    }

    /// Sets a resource limit. `OpenFiles` is 1024 and `FileSize` unlimited unless set; core
    /// dumps are always off.
    #[must_use]
    pub fn rlimit(mut self, resource: Resource, value: u64) -> Self {
        self.rlimits.push((resource, value));
        self
    }

    /// System calls that the program and its children may make. Without it only a filter stands
    /// that refuses what no hypervisor needs (kexec, modules, mounts, namespaces, keyrings, BPF).
    #[must_use]
    pub fn seccomp(mut self, seccomp: Seccomp) -> Self {
        self.seccomp = Some(seccomp);
        self
    }

    /// Has the launcher make a unix datagram socket inside the jail's network namespace, bound to
    /// an abstract name there: for programs that answer to the sender's address.
    /// [`crate::Jailed::take_socket`] hands it out.
    #[must_use]
    pub fn datagram_socket(mut self) -> Self {
        self.socket = true;
        self
    }

    /// Turns address space randomization off (`personality(2)`): for a program that would
    /// otherwise do so itself and execute itself again, from a path the jail does not have.
    #[must_use]
    pub fn fixed_addresses(mut self) -> Self {
        self.fixed_addresses = true;
        self
    }

    /// Keeps the program and its children on one CPU, the least busy one at the start; when they
    /// have to wait there, they move together. For programs whose processes run by turns.
    #[must_use]
    pub fn one_cpu(mut self) -> Self {
        self.one_cpu = true;
        self
    }

    /// Uses this `hyper-jail` program instead of looking for one.
    #[must_use]
    pub fn launcher(mut self, path: impl AsRef<Path>) -> Self {
        self.launcher = Some(path.as_ref().to_path_buf());
        self
    }
}
