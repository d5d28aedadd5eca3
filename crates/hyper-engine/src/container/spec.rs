//! What a container was created as: the engine's own words, stored as JSON in the database.
//!
//! A dialect (Docker's) translates its request into [`CreateRequest`] and refuses what has no word
//! here. Fields are only ever added, with a default: older databases must stay readable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::given::{Contents, Given, GivenFile, SecretVariable};
pub use crate::network::spec::{PortWish, Protocol, Wish};

/// What a client asks for. `None` and empty mean: as the image says.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// A name is made up when absent.
    pub name: Option<String>,
    /// Reference, short or long image id.
    pub image: String,
    /// `os/arch[/variant]`; the host's when absent.
    pub platform: Option<String>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub stop_signal: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    /// Fields that are absent are the image's.
    pub health: Option<HealthCheck>,
    /// Everything that the image has no say in.
    pub host: HostSpec,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    pub id: String,
    /// Nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// The image as the client wrote it.
    pub image: String,
    /// `sha256:…` of the image's config.
    pub image_id: String,
    /// `os/arch[/variant]` of the image.
    pub platform: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
    pub labels: BTreeMap<String, String>,
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub health: Option<HealthCheck>,
    pub host: HostSpec,
}

impl Spec {
    /// The first process's argument vector.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }
}

/// The part of a container that does not come from its image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSpec {
    /// Empty: the first twelve digits of the id.
    pub hostname: String,
    pub domainname: String,
    pub tty: bool,
    /// The container's stdin can be attached.
    pub open_stdin: bool,
    /// The first client to end its stdin ends the container's.
    pub stdin_once: bool,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    /// Rows, columns of the terminal at first; 0: unknown.
    pub console_size: (u16, u16),
    /// Seconds between the stop signal and SIGKILL.
    pub stop_timeout: Option<i64>,
    pub auto_remove: bool,
    /// `auto` or a hypervisor; empty: the daemon's default.
    pub runtime: String,
    /// `default`, `none` (or empty), or a network's name or id: the first network.
    pub network: String,
    /// What it wants of its networks, by name; those beside the first.
    pub endpoints: BTreeMap<String, Wish>,
    /// Ports to publish.
    pub ports: Vec<PortWish>,
    /// All that are exposed are published, too.
    pub publish_all: bool,
    /// Id of the pod, or of the container, whose guest it runs in; empty: one of its own.
    pub pod: String,
    /// The pod's others are started once it has ended well.
    pub pod_init: bool,
    pub annotations: BTreeMap<String, String>,
    pub limits: Limits,
    pub throttles: Vec<Throttle>,
    pub security: Security,
    pub log: Log,
    /// Files that it is given: configuration and secrets.
    pub files: Vec<Given>,
    /// Variables that `env` does not have, for it is stored.
    pub secret_env: Vec<SecretVariable>,
    /// Directories, files and volumes; complete once the container is made.
    pub mounts: Vec<Mount>,
    /// `-v` as given, for `inspect`.
    pub binds: Vec<String>,
    /// `CONTAINER[:ro]`, as given.
    pub volumes_from: Vec<String>,
    /// The image's volumes are plain directories of this container: what a build writes there is
    /// part of its layer.
    pub plain_volumes: bool,
    /// Of volumes that name none.
    pub volume_driver: String,
    /// Path in the container → mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// Bytes of /dev/shm; 0: 64 MiB.
    pub shm_bytes: u64,
    pub sysctls: BTreeMap<String, String>,
    pub ulimits: Vec<Ulimit>,
    /// `name:address` lines for /etc/hosts.
    pub extra_hosts: Vec<String>,
    pub dns: Vec<String>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    pub oom_score_adj: i32,
    /// Bytes of the writable disk; 0: the default.
    pub disk_bytes: u64,
    pub restart: Restart,
    /// A first process of ours that reaps and forwards signals.
    pub init: bool,
    /// `private`, `shareable`, or `none`: without /dev/shm; empty: private.
    pub ipc: String,
    /// As given, for `inspect`.
    pub userns: String,
}

/// What is done when a container has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// Of `OnFailure`; 0: no bound.
    pub max_retries: u32,
}

/// Docker's words: `no`, `on-failure`, `always`, `unless-stopped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    No,
    OnFailure,
    Always,
    UnlessStopped,
}

impl RestartPolicy {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }
}

/// A command that tells whether the container does what it is for. Times are nanoseconds; 0 and
/// empty: as the image says, or Docker's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    /// `NONE`; or `CMD` and arguments; or `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    pub interval_ns: i64,
    pub timeout_ns: i64,
    pub start_period_ns: i64,
    pub start_interval_ns: i64,
    pub retries: i64,
    /// The image's, for `CMD-SHELL`; empty: `/bin/sh -c`.
    pub shell: Vec<String>,
}

/// What a [`Mount`] shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A directory or file of the host.
    #[default]
    Bind,
    Volume,
}

/// One mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub kind: MountKind,
    /// Path on the host, or name of the volume; empty: an anonymous volume is to be made.
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// Docker's `Mode` as given with `-v`, for `inspect`.
    pub mode: String,
    /// `private` or `rprivate`; empty: the latter.
    pub propagation: String,
    /// Without what is mounted below `source`.
    pub not_recursive: bool,
    /// A directory is made where `source` is missing.
    pub create_source: bool,
    /// An empty volume stays empty, whatever the image has at `target`.
    pub no_copy: bool,
    /// Of the volume, should it have to be made.
    pub driver: String,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// The volume was made for this container.
    pub anonymous: bool,
}

/// Limits inside the guest; 0: none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub memory_bytes: i64,
    pub memory_reservation_bytes: i64,
    /// Memory plus swap; -1: unlimited.
    pub memory_swap_bytes: i64,
    pub nano_cpus: i64,
    pub cpu_shares: i64,
    pub cpu_period_us: i64,
    pub cpu_quota_us: i64,
    /// ≤ 0: none.
    pub pids: i64,
    /// Of the host, as `0-2,7`; empty: all.
    pub cpuset_cpus: String,
}

/// What a [`Throttle`] bounds, each per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transfer {
    #[default]
    ReadBytes,
    WriteBytes,
    ReadOperations,
    WriteOperations,
}

/// A bound on what a container's disks transfer to and from the disk of the host that they are on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throttle {
    pub what: Transfer,
    /// Block device of the host, as given.
    pub path: String,
    /// Per second.
    pub rate: u64,
    /// Major and minor number of the whole disk; known once the container is made.
    pub device: (u32, u32),
}

/// What the processes may do in their guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    pub privileged: bool,
    pub read_only_root: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// Numeric ids beside the user's own groups.
    pub groups: Vec<u32>,
    /// The same by name: the image says which they are.
    pub group_names: Vec<String>,
    /// `None`: the default list.
    pub masked_paths: Option<Vec<String>>,
    /// `None`: the default list.
    pub readonly_paths: Option<Vec<String>>,
    /// `--security-opt` as given, for `inspect`.
    pub options: Vec<String>,
}

/// System call filter inside the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    #[default]
    Default,
    Unconfined,
    /// An OCI `linux.seccomp` object, or a profile of Docker's form.
    Profile(String),
}

/// The container's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// One of [`Log::DRIVERS`].
    pub driver: String,
    /// As given, for `inspect`.
    pub options: BTreeMap<String, String>,
    pub max_bytes: Option<u64>,
    pub max_files: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            driver: Self::JSON_FILE.to_owned(),
            options: BTreeMap::new(),
            max_bytes: None,
            max_files: 1,
        }
    }
}

impl Log {
    pub const JSON_FILE: &str = "json-file";
    /// The same lines as json-file, rotated by default; the format is nobody else's business.
    pub const LOCAL: &str = "local";
    /// The journal, and a log as `local` has it: that is the one that is read.
    pub const JOURNALD: &str = "journald";
    /// What it takes beside the options of `local`.
    pub const JOURNALD_OPTIONS: [&str; 4] = super::journal::OPTIONS;
    pub const NONE: &str = "none";
    pub const DRIVERS: [&str; 4] = [Self::JOURNALD, Self::JSON_FILE, Self::LOCAL, Self::NONE];
}

/// One `setrlimit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Lower case without `RLIMIT_`, e.g. `nofile`.
    pub name: String,
    /// -1: unlimited.
    pub soft: i64,
    pub hard: i64,
}
