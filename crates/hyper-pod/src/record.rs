//! What the actor knows of each process and container.
//!
//! ```text
//! process:  creating ─► created ─► starting ─► running ─► ended ─► exited
//!                          │           └ refused ──────────┴────────▲
//!                          └ guest died ─────────────────► ended ───┘
//! ended:  the agent (or the guest's death) said so; output is still being delivered
//! exited: output is delivered, exit.json is written, waiters and containerd are told
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use hyper_task::pod::{ExitRecord, Phases};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::cpu::CpuWish;
use crate::io::IoWish;
use crate::resize::MemoryWish;
use crate::sockets::Carrying;
use crate::stdio::{Channels, Running, Uris};
use crate::{PodError, RootfsMount};

/// Answers one caller.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, PodError>>;

pub(crate) enum State {
    /// The answer to Create or Exec is owed.
    Creating(Reply<u32>),
    Created,
    /// The answer to Start is owed; an exit may overtake it.
    Starting {
        reply: Reply<u32>,
        early: Option<ExitRecord>,
    },
    Running,
    Ended(ExitRecord),
    Exited(ExitRecord),
}

/// What has become of a process, for callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

pub(crate) struct Process {
    pub state: State,
    /// Process id in the guest.
    pub guest_pid: u32,
    pub uris: Uris,
    /// Opened and not yet running.
    pub channels: Option<Channels>,
    pub stdio: Option<Running>,
    /// All output is where it goes, or there is none.
    pub delivered: bool,
    /// What of its output the log could not take, in words.
    pub lost: Option<String>,
    pub waiters: Vec<oneshot::Sender<ExitRecord>>,
    /// An exec's OCI process, until it is started.
    pub spec: Option<Value>,
}

impl Process {
    pub fn new(uris: Uris, reply: Reply<u32>, spec: Option<Value>) -> Self {
        Self {
            state: State::Creating(reply),
            guest_pid: 0,
            uris,
            channels: None,
            stdio: None,
            delivered: false,
            lost: None,
            waiters: Vec::new(),
            spec,
        }
    }

    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::Creating(_) => "being created",
            State::Created => "created",
            State::Starting { .. } => "starting",
            State::Running => "running",
            State::Ended(_) | State::Exited(_) => "stopped",
        }
    }

    pub fn status(&self, paused: bool) -> Status {
        match self.state {
            State::Creating(_) | State::Created => Status::Created,
            // What is not announced has not happened yet.
            State::Starting { .. } | State::Running | State::Ended(_) if paused => Status::Paused,
            State::Starting { .. } | State::Running | State::Ended(_) => Status::Running,
            State::Exited(_) => Status::Stopped,
        }
    }

    pub fn exit(&self) -> Option<&ExitRecord> {
        match &self.state {
            State::Exited(record) => Some(record),
            _ => None,
        }
    }
}

pub(crate) struct Container {
    pub bundle: PathBuf,
    pub init: Process,
    pub execs: BTreeMap<String, Process>,
    pub phases: Phases,
    pub paused: bool,
    /// Removed with the container.
    pub owned: Vec<PathBuf>,
    /// Its writes are to survive it: its guest must sync before it ends.
    pub keeps: bool,
    /// The file that takes its writes.
    pub upper: Option<PathBuf>,
    pub socket: Option<AbortHandle>,
    /// Of its sockets of the host.
    pub carrying: Carrying,
    /// Lines about the host's network, for the report.
    pub network: Vec<String>,
    /// It stands for its pod, see [`crate::spec::Spec::sandbox`].
    pub sandbox: bool,
    pub cpu: CpuWish,
    pub io: IoWish,
    /// The sandbox's is what updates gave it.
    pub memory: MemoryWish,
    /// The agent knows it.
    pub in_guest: bool,
    /// As given, for the event.
    pub rootfs: Vec<RootfsMount>,
    /// Deletes that wait for the exit to be announced.
    pub deleting: Vec<Reply<(u32, ExitRecord)>>,
    pub last_oom: Option<Instant>,
}

impl Container {
    pub fn process(&mut self, exec: Option<&str>) -> Option<&mut Process> {
        match exec {
            None => Some(&mut self.init),
            Some(exec) => self.execs.get_mut(exec),
        }
    }
}
