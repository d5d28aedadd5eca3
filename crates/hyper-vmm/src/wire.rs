//! The control socket: JSON lines, with descriptors beside the line of [`Request::AddDisk`].
//!
//! ```text
//! adapter                      monitor
//!    Config ─────────────────►          (a line)
//!          ◄───────────────── Ready | Refused
//!    Request ────────────────►          one at a time
//!          ◄───────────────── Done | Metrics | Memory | Refused
//!          ◄───────────────── Ended     once, at any time; then the socket closes
//! ```

use serde::{Deserialize, Serialize};

use crate::config::Disk;
pub use crate::metrics::Metrics;

/// Longest line in bytes.
pub const MAX_LINE: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Returns when no virtual CPU runs any more.
    Pause,
    Resume,
    /// Puts a disk into spare place `place` (counted among the spares). Its files come as
    /// descriptors with the line.
    AddDisk {
        place: usize,
        disk: Disk,
    },
    /// Takes the disk out of spare place `place`: its files are closed, and requests for it fail
    /// until another one comes.
    RemoveDisk {
        place: usize,
    },
    /// Bounds what all disks move together whose files are on one of `devices` (`st_dev`), from now
    /// on, those that come later included; without rates no more. Others stay as they are.
    Limit {
        devices: Vec<u64>,
        rates: Rates,
    },
    /// Asks the guest to have `bytes` of memory, rounded up to 2 MiB: no less than it booted with.
    /// It takes or gives back what it can, in its own time: see [`Request::Memory`].
    SetMemory {
        bytes: u64,
    },
    /// How much it has now.
    Memory,
    Metrics,
    /// Writes the paused guest to two files, state and memory, whose descriptors come with the
    /// line; it stays paused.
    Save,
    /// Ends the guest and the process.
    Quit,
}

/// Per second; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    pub read_bytes: Option<u64>,
    pub write_bytes: Option<u64>,
    /// Operations.
    pub reads: Option<u64>,
    pub writes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Answer {
    /// The guest runs.
    Ready,
    Done,
    Metrics {
        metrics: Metrics,
    },
    /// Bytes of guest memory, what it booted with included.
    Memory {
        wanted: u64,
        has: u64,
    },
    /// What was asked was not done; what there was before is as it was.
    Refused {
        why: String,
    },
    /// The guest is gone.
    Ended {
        how: End,
    },
}

/// How a guest ended, as far as the monitor can see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum End {
    /// The guest's CPUs were reset: a reboot, a power-off by reset, a panic that reboots, or a
    /// triple fault. The console knows which.
    Reset,
    /// [`Request::Quit`], or the control socket closed.
    Quit,
    /// A virtual CPU could not go on.
    Failed { why: String },
}
