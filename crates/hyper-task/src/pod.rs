//! `hyper.pod.v1`: what the Task API lacks, on a Unix socket in the container's bundle.
//!
//! The supervisor listens on `BUNDLE/`[`SOCKET`] for every container it runs. A client connects,
//! sends one [`Call`] as a JSON line and reads one [`Answer`] as a JSON line. After an accepted
//! [`Call::Attach`] both sides speak frames until either closes:
//!
//! ```text
//! [stream u8][0 0 0][length u32 big endian][bytes]      Docker's stdcopy header
//! client → supervisor: stream 0, length 0 = end of stdin
//! supervisor → client: stream 1 stdout (or terminal), 2 stderr; closes after the last byte
//! ```
//! A client that just disconnects does not end the container's stdin.
//!
//! After [`Answer::Transferring`] the same frames carry files:
//! ```text
//! reading: supervisor → client: stream 1 the bytes, its empty frame: that was all
//! writing: client → supervisor: stream 0 the bytes, its empty frame: that was all
//!          supervisor → client: stream 1, empty: all of it is in place
//! both:    supervisor → client: stream 2: a [`FileFault`] as JSON; nothing follows
//! ```
//! A client that disconnects ends the transfer; what was written by then stays.

use serde::{Deserialize, Serialize};

/// Name of the socket in the bundle.
pub const SOCKET: &str = "pod.sock";
/// File in the bundle that becomes the container's `/etc/hosts`.
pub const HOSTS: &str = "hosts";
/// File in the bundle with the last [`ExitRecord`], written before the exit is announced.
pub const EXIT_FILE: &str = "exit.json";
/// Longest frame payload in bytes.
pub const MAX_FRAME: usize = 64 << 10;
/// Longest JSON line in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "call")]
pub enum Call {
    /// Joins the streams of the container's first process or of an exec, from now on. May come
    /// before the process is started: then no output is missed.
    Attach { exec: Option<String>, stdin: bool, stdout: bool, stderr: bool },
    /// [`Answer::Path`]: what is at a path of the container; a link at its end is not followed.
    Stat { path: String },
    /// Files of the container.
    Read { what: ReadFiles },
    /// A tar archive to be unpacked in a directory of the container.
    Write {
        path: String,
        /// A directory is not replaced by something else, nor something else by a directory.
        keep_directories: bool,
        /// `user[:group]` of the image that everything is to belong to.
        owner: Option<String>,
    },
    /// [`Answer::Processes`].
    Processes,
    /// [`Answer::Networks`].
    Networks,
    /// [`Answer::Done`]: the guest has the interfaces that are in the pod's network namespace now.
    Rewire,
    /// [`Answer::Done`]: the container's [`HOSTS`] has none of the lines `gone`, and those that are `new`;
    /// all others are as they were.
    Hosts { gone: Vec<String>, new: Vec<String> },
    /// [`Answer::Phases`].
    Phases,
    /// [`Answer::Pod`].
    Pod,
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// Frames follow.
    Attached,
    /// Frames follow, see the module.
    Transferring,
    Path(PathStat),
    Processes {
        processes: Vec<ProcessInfo>,
    },
    Networks {
        networks: Vec<NetworkCounters>,
    },
    Phases(Phases),
    Pod(Box<PodReport>),
    /// What was asked for is done.
    Done,
    /// Files could not be read or written.
    Fault(FileFault),
    Error {
        message: String,
    },
}

/// What [`Call::Read`] reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum ReadFiles {
    /// A tar of one file, or of a directory with all below it.
    Tree { path: String },
    /// A tar of the whole root file system, without what is mounted on it.
    Root,
    /// A tar of what was changed since the image: an OCI layer.
    Changes,
    /// The same as a list: for each path its kind (`A`, `C`, `D`), the path, a NUL.
    ChangeList,
}

/// What is at a path of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// `st_mode`
    pub mode: u32,
    pub size: u64,
    /// Nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Where a symbolic link leads to in the end; empty for everything else.
    pub target: String,
}

/// Why files could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFault {
    pub kind: FaultKind,
    pub message: String,
}

/// What the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// There is no such path.
    NotFound,
    /// Not what the request takes it for.
    Invalid,
    /// Not in this state.
    Conflict,
    ReadOnly,
    NoSpace,
    #[serde(other)]
    Other,
}

/// A process of the container, as the guest numbers it.
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
    pub name: String,
    pub command: String,
}

/// Counters of one of the pod's interfaces, loopback left out, as the host sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkCounters {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// When things happened, nanoseconds since the Unix epoch; `None`: not yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phases {
    /// How the guest came to be, as in [`PodReport::origin`].
    pub origin: String,
    /// The supervisor's first instruction.
    pub supervisor_started: Option<i64>,
    /// The Task `Create` request arrived.
    pub create_received: Option<i64>,
    /// The hypervisor process was started.
    pub hypervisor_started: Option<i64>,
    /// The agent said hello.
    pub agent_ready: Option<i64>,
    /// The container exists in the guest.
    pub container_created: Option<i64>,
    /// The Task `Start` request arrived.
    pub start_received: Option<i64>,
    /// The first process runs.
    pub process_started: Option<i64>,
    /// The first process ended.
    pub process_exited: Option<i64>,
    /// The guest and its hypervisor are gone.
    pub guest_gone: Option<i64>,
}

/// The pod as its supervisor sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodReport {
    pub id: String,
    pub hypervisor: String,
    /// Kebab-case name of the wall, e.g. `user-mode-kernel`.
    pub wall: String,
    /// `uname -r` of the guest.
    pub guest_kernel: String,
    /// How the guest came to be: `booted`, with a reason where a template was wanted, or `cloned
    /// from template KEY`.
    pub origin: String,
    /// How the image of the guest's first container is there: `mapped`, so that all guests have the
    /// host's one copy of it in memory, or `disk`, with a reason where mapping it was possible.
    pub image: String,
    pub hypervisor_pid: u32,
    pub supervisor_pid: u32,
    pub vcpus: u32,
    /// Of the guest; it can be given more while it runs.
    pub memory_bytes: u64,
    pub memory_growth: bool,
    pub containers: Vec<String>,
    /// Bytes that only this process holds: hypervisor, then supervisor.
    pub hypervisor_private_bytes: u64,
    pub hypervisor_resident_bytes: u64,
    pub supervisor_private_bytes: u64,
    pub supervisor_resident_bytes: u64,
    /// CPU time: of the hypervisor with all of its guest, of the supervisor, and of the
    /// containers as the guest counts it.
    pub hypervisor_cpu_ns: u64,
    pub supervisor_cpu_ns: u64,
    pub guest_cpu_ns: u64,
    pub guest_memory_total_bytes: u64,
    pub guest_memory_used_bytes: u64,
    /// Tail of the guest kernel's console.
    pub console: String,
    /// What the host prepared for the pod's network, a line each.
    pub networks: Vec<String>,
}

/// How a container's first process ended; survives the supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitRecord {
    /// Exit code, or 128 + signal.
    pub code: i32,
    pub unix_ns: i64,
    pub oom_killed: bool,
    /// Why, when it was not the process itself: `guest panicked: …`, `hypervisor killed by signal 9`.
    pub reason: Option<String>,
    /// What its owner should know although the process ended by itself: `2 log lines … lost`.
    pub note: Option<String>,
}
