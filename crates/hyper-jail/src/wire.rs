//! What supervisor and launcher say to each other, in [packets](crate::packet). Private to this package; both ends are
//! built together.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::packet::{receive, send};
pub use crate::spec::{Bind, Limits, Place, Resource};

/// Uid of a jail is this plus the keeper's pid: unique among living jails, and far from any uid
/// or subordinate-uid range in use (those end at 0x6fff_ffff on Debian and systemd hosts).
pub const UID_BASE: u32 = 0x7000_0000;

/// To the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Jail(Box<Plan>),
    /// Shows one more file in the jail whose init's pidfd is beside the packet, and whose uid this
    /// is.
    Bind {
        bind: Bind,
        uid: u32,
    },
    /// Takes files out of the jail whose init's pidfd is beside the packet, which an
    /// [`Order::Bind`] has put there.
    Unbind {
        targets: Vec<PathBuf>,
    },
}

/// A jail to make. Descriptors beside it: the program, when `program` is `None`, then those of
/// `fds` in order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    pub name: String,
    pub program: Option<PathBuf>,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub fds: Vec<i32>,
    pub places: Vec<Place>,
    pub give: Vec<PathBuf>,
    pub limits: Limits,
    pub cgroup: Option<String>,
    pub rlimits: Vec<(Resource, u64)>,
    pub seccomp: Vec<Vec<u64>>,
    pub socket: bool,
    pub fixed_addresses: bool,
    pub one_cpu: bool,
    /// Capabilities to keep, with uid 0; 0: none, and a uid of its own.
    pub keep: u64,
}

/// To init, after [`Report::Started`]: the pids behind its pidfds are known, it may reap.
#[derive(Debug, Serialize, Deserialize)]
pub struct LookedUp;

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The program was executed. Beside it: pidfd of init, pidfd of the hypervisor, and the
    /// datagram socket if one was asked for.
    Started { uid: u32, missing: Vec<String> },
    /// An [`Order::Bind`] or [`Order::Unbind`] was carried out.
    Bound,
    /// A step failed, and all was taken down.
    Failed { doing: String, object: String, errno: i32, hint: String },
    /// The program ended; exactly one of `code` and `signal` is set.
    Ended { code: Option<i32>, signal: Option<i32>, oom: bool, cpu_us: u64 },
}
