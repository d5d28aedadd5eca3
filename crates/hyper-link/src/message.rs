//! What supervisor and agent say to each other on stream 0, as JSON.
//!
//! The supervisor asks ([`Request`]), the agent answers ([`Reply`]) and reports ([`Event`]).
//! JSON, because a pod's requests are few and small, the OCI spec inside them is JSON already,
//! and unknown fields of a newer peer are skipped. Every byte that comes from the guest is
//! hostile: a message is at most [`MAX_MESSAGE`] long, and nothing in it is used as a host path.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest encoded control message in bytes; a longer one ends the link.
pub const MAX_MESSAGE: usize = 4 << 20;

/// What the supervisor asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Request {
    /// First request of every pod (and after a restore): identity, clock, entropy, network.
    ConfigurePod(PodConfig),
    /// Makes a container's root file system and its first process, not yet running.
    CreateContainer(Box<CreateContainer>),
    /// Lets the created container's first process run.
    StartContainer { container: String },
    /// Runs one more process in a running container.
    Exec(Box<Exec>),
    /// Sends `signal` (a number) to a process, or with `all` to every process of the container.
    Signal { process: ProcessId, signal: i32, all: bool },
    /// Sets the size of the process's terminal.
    Resize { process: ProcessId, rows: u16, columns: u16 },
    /// Freezes (or thaws) all processes of a container through its cgroup.
    Freeze { container: String, frozen: bool },
    /// Changes the limits of a container; the OCI `linux.resources` object.
    Update { container: String, resources: serde_json::Value },
    /// Bounds the memory of all containers together, in bytes; 0: no bound but the guest's memory.
    /// What they use beyond it is reclaimed first; [`FailureKind::Conflict`] when that is not enough.
    LimitContainers { memory_bytes: u64 },
    /// Brings the interfaces to what they are to be now: those that are gone are removed, or left
    /// without address where they are cards; all others and all routes are set up as in
    /// [`PodConfig`]. The same again changes nothing.
    ChangeNetwork { gone: Vec<Interface>, interfaces: Vec<Interface>, routes: Vec<Route> },
    /// Takes lines out of the `/etc/hosts` that the container was given and adds those that it lacks.
    /// The same again changes nothing; [`FailureKind::Conflict`] when it was given none.
    ChangeHosts { container: String, gone: Vec<String>, new: Vec<String> },
    /// The container's processes, with their ids in the guest.
    Processes { container: String },
    /// Counters of a container's cgroup, and of the guest as a whole.
    Stats { container: String },
    /// Waits until nothing in the guest uses these disks, for some seconds, and forgets what it knows
    /// of them; [`FailureKind::Conflict`] when something does. They may be taken away then.
    ReleaseDisks { devices: Vec<String> },
    /// Removes a container that has exited: mounts, cgroup, stream ends.
    DeleteContainer { container: String },
    /// Forgets an exec that has exited.
    DeleteExec { process: ProcessId },
    /// What is behind a path of a container, without following a link at its end; see
    /// [`Reply::Path`].
    StatPath { container: String, path: String },
    /// Writes files of a container to a stream and ends it. Answered when all of it is written, with
    /// [`Reply::Noted`] if an archive could not hold something; after a failure the stream is reset.
    ReadFiles { container: String, what: ReadFiles, stream: u32 },
    /// Reads a tar archive from a stream to its end and unpacks it in a container.
    WriteFiles(Box<WriteFiles>),
    /// Connects to a TCP port of the guest's localhost, and then carries its bytes on a stream;
    /// [`FailureKind::NotFound`] when nobody listens there.
    Connect { port: u16, stream: u32 },
    /// Sets the guest's clock; nanoseconds since the Unix epoch.
    SetTime { unix_ns: i64 },
    /// Is the agent alive?
    Ping,
    /// Ends every process, unmounts, syncs, and powers the guest off after replying.
    Shutdown,
}

impl Request {
    /// Name of the request as it is on the wire, for texts.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ConfigurePod(_) => "configure_pod",
            Self::CreateContainer(_) => "create_container",
            Self::StartContainer { .. } => "start_container",
            Self::Exec(_) => "exec",
            Self::Signal { .. } => "signal",
            Self::Resize { .. } => "resize",
            Self::Freeze { .. } => "freeze",
            Self::Update { .. } => "update",
            Self::LimitContainers { .. } => "limit_containers",
            Self::ChangeNetwork { .. } => "change_network",
            Self::ChangeHosts { .. } => "change_hosts",
            Self::Processes { .. } => "processes",
            Self::Stats { .. } => "stats",
            Self::ReleaseDisks { .. } => "release_disks",
            Self::DeleteContainer { .. } => "delete_container",
            Self::DeleteExec { .. } => "delete_exec",
            Self::StatPath { .. } => "stat_path",
            Self::ReadFiles { .. } => "read_files",
            Self::WriteFiles(_) => "write_files",
            Self::Connect { .. } => "connect",
            Self::SetTime { .. } => "set_time",
            Self::Ping => "ping",
            Self::Shutdown => "shutdown",
        }
    }
}

/// One process of a pod: the first process of a container, or an exec in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    pub container: String,
    /// `None` for the container's first process.
    pub exec: Option<String>,
}

/// Identity of the pod; see [`Request::ConfigurePod`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodConfig {
    pub hostname: String,
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// Fresh random bytes from the host, as hex, credited to the guest's pool.
    pub entropy: String,
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    /// Stream for the resolver's questions and answers, see [`crate::names`]; `None`: the guest
    /// has no resolver.
    pub names: Option<u32>,
    /// Sysctls of the guest as a whole, e.g. `net.ipv4.ip_forward`.
    pub sysctls: BTreeMap<String, String>,
    /// Tag of the virtio-fs device with the shared directories, to be mounted on [`SHARED`];
    /// empty: there is none.
    pub share: String,
}

/// Directory of the guest with one entry for each directory or file that the host shares. The
/// bind mounts of an OCI spec for the agent have their sources in it.
pub const SHARED: &str = "/run/share";

/// Begins the source of a tmpfs that is a volume: `volume:NAME`. Containers that name the same one see
/// the same files, for as long as the guest lives; its options are those of the first.
pub const MEMORY_VOLUME: &str = "volume:";

/// Option of a mount of a directory in [`SHARED`], or of an ext4 disk: while it is empty it takes
/// what the image has at its place.
pub const COPY_UP: &str = "hyper.copyup";

/// One network interface, found by its MAC address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// The address it is to have.
    pub mac: String,
    /// The one by which it is found, where that is another: a clone's card has its template's.
    pub found_by: Option<String>,
    /// The card, by its MAC address, whose frames its own are: it came when there was no card for it,
    /// and is a macvlan. `None`: it is a card itself.
    pub carrier: Option<String>,
    /// Name to give it, e.g. `eth0`.
    pub name: String,
    pub mtu: u32,
    /// Addresses with prefix length, e.g. `10.1.2.3/24`, `fd00::3/64`. With a link-local one among them
    /// the guest makes none of its own.
    pub addresses: Vec<String>,
    /// It asks for no neighbours: whatever it sends to is behind the card.
    pub no_arp: bool,
}

/// One route; `destination` is `default` or a prefix such as `10.0.0.0/8`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub destination: String,
    pub gateway: Option<String>,
    pub interface: String,
}

/// See [`Request::CreateContainer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateContainer {
    pub container: String,
    /// OCI runtime-spec `config.json`. `root.path` is ignored: the root comes from `rootfs`.
    pub spec: serde_json::Value,
    pub rootfs: Rootfs,
    /// Files written into the container before it starts (resolv.conf, hosts, hostname, configs).
    pub files: Vec<FileInjection>,
    #[serde(default)]
    pub sockets: Vec<HostSocket>,
    pub streams: Streams,
}

/// Where a container's root file system comes from, in the guest's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rootfs {
    /// The read-only EROFS image: its metadata device.
    pub image: GuestDisk,
    /// Layer devices in order, when the hypervisor cannot show image and layers as one disk.
    pub layers: Vec<GuestDisk>,
    /// The writable ext4 disk; `None` gives a tmpfs upper.
    pub upper: Option<GuestDisk>,
    /// Mount the merged root read-only.
    pub read_only: bool,
}

/// A disk as the guest finds it. Disks carry no names in a guest: position is identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDisk {
    /// Device node in the guest, e.g. `/dev/vda`, `/dev/ubdb`.
    pub device: String,
    /// Length in bytes of what is on it (the device may be longer).
    pub bytes: u64,
}

/// A regular file, or a directory of some, put over a container's root, below it whatever symlinks
/// say. Its bytes are in the guest's memory and on no disk.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FileInjection {
    /// Absolute path in the container.
    pub path: String,
    /// Contents, base64. At most 1 MiB decoded. Of a directory: empty.
    pub content: String,
    pub mode: u32,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    /// `USER[:GROUP]` in place of the two: names are the image's to know.
    #[serde(default)]
    pub owner: Option<String>,
    pub read_only: bool,
    /// It is a directory, with exactly these files.
    #[serde(default)]
    pub entries: Option<Vec<FileEntry>>,
}

/// A file in an injected directory.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Below the directory, of plain names: `a/b`. Directories above it are made.
    pub path: String,
    /// As [`FileInjection::content`].
    pub content: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Without the contents, which may be secret.
impl std::fmt::Debug for FileInjection {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = out.debug_struct("FileInjection");
        debug.field("path", &self.path).field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// Without the contents, which may be secret.
impl std::fmt::Debug for FileEntry {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("FileEntry").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A stream socket of the host, put over a container's root: whoever connects to it in the container is
/// connected to it on the host, by the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSocket {
    /// Absolute path in the container.
    pub path: String,
    /// The host's: who may connect.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// For what is said of connections, see [`crate::sockets`].
    pub stream: u32,
}

/// Stream ids, chosen by the supervisor, for a process's stdio; see `Mux`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// `None`: the process reads end-of-file at once.
    pub stdin: Option<u32>,
    pub stdout: Option<u32>,
    /// `None` with a terminal: all output is on `stdout`.
    pub stderr: Option<u32>,
}

/// See [`Request::Exec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    pub process: ProcessId,
    /// OCI runtime-spec `process` object (args, env, cwd, user, terminal, capabilities, …).
    pub spec: serde_json::Value,
    pub streams: Streams,
}

/// What [`Request::ReadFiles`] reads.
///
/// Paths are a container's own: links in them are followed inside its root, whatever they say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFiles {
    /// A tar of one file, or of a directory with all below it, named by the last part of `path`.
    /// Mounted disks and directories are part of it, file systems of the kernel and of memory not.
    Tree { path: String },
    /// A tar of the whole root file system, without anything mounted on it.
    Root,
    /// A tar of what was changed since the image, as an OCI layer.
    Changes,
    /// What was changed since the image: for each path its kind (`A`, `C`, `D`), the path, a NUL.
    ChangeList,
}

/// See [`Request::WriteFiles`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFiles {
    pub container: String,
    /// An existing directory.
    pub path: String,
    /// A directory is not replaced by something else, nor something else by a directory.
    pub keep_directories: bool,
    /// `user[:group]` of the image that everything is to belong to, in place of the archive's ids.
    pub owner: Option<String>,
    pub stream: u32,
}

/// What is behind a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// `st_mode`
    pub mode: u32,
    pub size: u64,
    /// Nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Where a symbolic link leads to in the end, as an absolute path in the container; empty for
    /// everything else.
    pub target: String,
}

/// A process of a container, from the guest's /proc.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    pub pid: u32,
    pub parent: u32,
    pub uid: u32,
    /// `R`, `S`, `Z`, …
    pub state: String,
    /// Device number of the controlling terminal; 0: none.
    pub terminal: u32,
    pub started_unix_ns: i64,
    pub cpu_ms: u64,
    pub memory_bytes: u64,
    pub resident_bytes: u64,
    pub threads: u32,
    pub nice: i32,
    /// Name of the program, 15 bytes at most.
    pub name: String,
    /// The argument vector, separated by blanks; cut when it is long.
    pub command: String,
}

/// What the agent answers. `Error` may answer any request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Reply {
    Done,
    /// Answers `StartContainer` and `Exec` (and `CreateContainer`): the process's id in the guest.
    Started {
        pid: u32,
    },
    Processes {
        processes: Vec<ProcessInfo>,
    },
    Stats(Box<Stats>),
    Path(PathStat),
    /// As `Done`, with a line for people about what was done.
    Noted {
        note: String,
    },
    Error(Failure),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    /// Names object and value, lower case; for people.
    pub message: String,
}

/// Kinds of failure that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such container or process.
    NotFound,
    /// It is there already, or not in a state that allows the request.
    Conflict,
    /// The program is not in the image: exit code 127.
    CommandNotFound,
    /// The program is there but cannot be executed: exit code 126.
    NotExecutable,
    /// User or group of the spec is not in the image.
    UnknownUser,
    /// The spec asks for something the guest cannot do.
    Unsupported,
    InvalidArgument,
    /// A file system is mounted read-only.
    ReadOnly,
    /// The container's writable disk is full.
    NoSpace,
    Internal,
    /// Written by a newer agent.
    #[serde(other)]
    Other,
}

/// What the agent reports on its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A process ended. Sent after its last output byte was queued on its streams.
    Exited {
        process: ProcessId,
        /// Exit code, or 128 + signal number.
        code: i32,
        unix_ns: i64,
        /// The kernel's OOM killer ended a process of this container since it started.
        oom_killed: bool,
    },
    /// The OOM killer struck in the container.
    Oom { container: String },
}

/// Counters; zero where the guest cannot tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    pub cpu_usage_us: u64,
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    pub cpu_throttled_us: u64,
    pub memory_bytes: u64,
    pub memory_peak_bytes: u64,
    /// 0 = no limit.
    pub memory_limit_bytes: u64,
    pub memory_inactive_file_bytes: u64,
    pub oom_kills: u64,
    pub processes: u64,
    pub processes_limit: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_operations: u64,
    pub write_operations: u64,
    /// The guest as a whole, from /proc/meminfo.
    pub guest_memory_total_bytes: u64,
    pub guest_memory_available_bytes: u64,
    pub guest_memory_free_bytes: u64,
}

/// The agent's first words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// Versions of this protocol that the agent speaks, lowest and highest.
    pub min_version: u16,
    pub max_version: u16,
    /// Version of the agent program.
    pub agent: String,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// What this agent and kernel can do, e.g. `exec`, `seccomp`, `cgroup2`.
    pub capabilities: Vec<String>,
    /// Guest uptime in µs when the agent was ready.
    pub ready_us: u64,
}

/// The supervisor's answer: the version both use from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorHello {
    pub version: u16,
}
