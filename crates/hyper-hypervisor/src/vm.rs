//! The two traits: what launches guests, and one guest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Capabilities, Probe, VmConfig, VmError};

/// The byte stream that carries the link.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// Launches guests. Cheap to make; holds no guest.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// The word users pick it by, e.g. `uml`.
    fn name(&self) -> &'static str;

    /// What it can do on this host.
    fn capabilities(&self) -> Capabilities;

    /// Looks whether it works here, by trying where that is the only way to know.
    async fn probe(&self) -> Probe;

    /// Starts the hypervisor process on `config` and returns when its link can be used; the guest
    /// may still be booting. Errors leave nothing behind.
    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError>;

    /// Continues a guest that [`Vm::save`] wrote to `directory`, as a new guest: it owns a copy of
    /// the memory, made page by page as it writes. `config` must have the shape of the saved one
    /// (vCPUs, memory, number and order of devices); its kernel is not looked at. The guest goes on
    /// in the middle of what it was doing, with the same random numbers to come and the time of
    /// then: whoever restores it tells it otherwise, over the link.
    async fn restore(&self, directory: &Path, config: VmConfig) -> Result<Box<dyn Vm>, VmError>;

    /// Guest device nodes of a disk of [`VmConfig::disks`]: one, or one per extent, as
    /// [`Capabilities::disk_model`] says. `disks` are all disks of the guest, in order.
    fn guest_devices(&self, disks: &[crate::Disk], disk: usize) -> Vec<String>;
}

/// One running guest.
#[async_trait]
pub trait Vm: Send + Sync {
    /// The link's stream; `Some` once.
    fn take_link(&mut self) -> Option<Box<dyn Carrier>>;

    /// Last bytes of the guest kernel's console (at most 64 KiB), for error reports.
    fn console(&self) -> String;

    /// Process id of the hypervisor on the host.
    fn pid(&self) -> u32;

    /// Stops all vCPUs.
    async fn pause(&self) -> Result<(), VmError>;

    /// Continues after [`Vm::pause`].
    async fn resume(&self) -> Result<(), VmError>;

    /// Writes the paused guest to `directory`, which is there and empty; it stays paused, and can be
    /// resumed or killed. Disks are not written: they must be the same when it is restored. Guests
    /// with several extents to a disk, or with shared directories, may be refused. After
    /// an error what is in the directory is no guest.
    async fn save(&self, directory: &Path) -> Result<(), VmError>;

    /// Adds a disk to the running guest and returns its device nodes.
    async fn add_disk(&self, disk: crate::Disk) -> Result<Vec<String>, VmError>;

    /// Takes a disk back that [`Vm::add_disk`] added, named by all the nodes that returned: its
    /// files are closed, and its place takes another disk, possibly with the same nodes. The guest
    /// is to have let go of it first. One that has not gets I/O errors from then on where there is
    /// [`Capabilities::disk_revoke`]; elsewhere it is [`VmError::Busy`], and all stays as it was.
    /// After another error the place is not used again.
    async fn remove_disk(&self, devices: &[String]) -> Result<(), VmError>;

    /// Gives the running guest `bytes` of memory, no less than it booted with, and returns how many
    /// it has then, which may be a little more. Waits until its kernel has taken, or given back,
    /// what that is; what it took last it may put to use a little later. A guest that does not in time is [`VmError::Memory`]: one that was to have more has
    /// again what it had, as far as it gives back, and one that was to have less has what it did not
    /// give back. Only where there is [`crate::Capabilities::memory_growth`].
    async fn set_memory(&self, bytes: u64) -> Result<u64, VmError>;

    /// Bounds the CPU time of the hypervisor with all of its guest, and which CPUs it runs on, from now on.
    async fn set_cpu(&self, share: CpuShare) -> Result<(), VmError>;

    /// Bounds what the hypervisor with all of its guest reads from and writes to devices of the
    /// host, from now on; those not named stay as they are. The guest can bound its processes
    /// better, since it knows which wrote what; this holds for a guest that does not.
    async fn set_io(&self, limits: &[IoLimit]) -> Result<(), VmError>;

    /// What the hypervisor process uses on the host.
    async fn usage(&self) -> Result<VmUsage, VmError>;

    /// How long the guest has waited for the host. Nothing, where the host does not tell.
    async fn waits(&self) -> VmWaits {
        VmWaits::default()
    }

    /// What the hypervisor counts, by its own names (`exits.mmio_read`, `disk0.bytes_in`); empty
    /// where it counts nothing.
    async fn counters(&self) -> Result<BTreeMap<String, u64>, VmError> {
        Ok(BTreeMap::new())
    }

    /// Waits until the hypervisor process has ended, however often it is called.
    async fn wait(&self) -> VmExit;

    /// Ends the guest at once; returns when the process is gone. Fine to call again.
    async fn kill(&self);
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum VmExit {
    /// The guest powered off.
    PoweredOff,
    /// The guest kernel panicked; `message` is its panic line.
    Panicked { message: String },
    /// [`Vm::kill`] was called.
    Killed,
    /// Another signal ended the process; `oom` when the host's OOM killer is to blame.
    Signaled { signal: i32, oom: bool },
    /// The hypervisor itself failed.
    Failed { code: i32, detail: String },
}

/// A guest's part of the host's CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuShare {
    /// Against others, 1 to 10000; 100 is usual.
    pub weight: u64,
    /// Microseconds of CPU time in each period of microseconds; `None`: no bound.
    pub quota: Option<(u64, u64)>,
    /// Those of the host that it runs on, by number; `None`: all.
    #[serde(default)]
    pub cpus: Option<BTreeSet<usize>>,
}

impl Default for CpuShare {
    fn default() -> Self {
        Self { weight: 100, quota: None, cpus: None }
    }
}

/// Bounds for one block device of the host, each per second; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// Major and minor number of a whole disk.
    pub device: (u32, u32),
    pub read_bytes: Option<u64>,
    pub write_bytes: Option<u64>,
    pub read_operations: Option<u64>,
    pub write_operations: Option<u64>,
}

/// What a hypervisor process uses on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmUsage {
    pub cpu: Duration,
    pub resident_bytes: u64,
    /// Bytes that no other process shares.
    pub private_bytes: u64,
}

/// How the host has treated a guest since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmWaits {
    /// By task of the hypervisor: how long it was ready to run and had no CPU.
    pub ready: BTreeMap<u32, Duration>,
    /// One waits for a disk of the host in this moment, and cannot be interrupted.
    pub blocked: bool,
}
