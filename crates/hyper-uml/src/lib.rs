//! Port adapter: user-mode Linux. The guest kernel is an ordinary program of the host (`ARCH=um`,
//! `Documentation/virt/uml/user_mode_linux_howto_v2.rst`), run in a jail of `hyper-jail`.
//!
//! ```text
//! jail root:  /initramfs  /d0 /d1 …  (extents, one file each)  /tmp (guest memory, mconsole)
//! descriptors: 1, 2 kernel console ─► 64 KiB ring    3 link = ttyS0    10… taps
//! ```
//!
//! How user and kernel of the guest are kept apart is [`Separation`]. The kernel's own help calls
//! `seccomp=on` "insecure and should only be used with a trusted userspace": guest programs run
//! beside a page of kernel code whose system calls they can use, and reach all of the guest's
//! memory. Every program in a container would then be as strong as the guest's kernel, and users
//! and containers of a pod would be walls in name only. So [`Separation::Ptrace`] is the default,
//! although it is slower; measured together on one busy host (7.3.4 before patches 0012 to 0015, which take a third of
//! the first two lines off `ptrace`; per operation):
//!
//! | | ptrace | seccomp |
//! | --- | --- | --- |
//! | system call | 7.5 µs | 5.2 µs |
//! | first touch of a page | 37 µs | 12 µs |
//! | fork, exit, wait | 1480 µs | 840 µs |
//! | pipe round trip of two processes | 56 µs | 33 µs |
//! | computing | native | native |
//!
//! Between guest and host stands the jail in both modes, and it is the same but for one thing: a
//! forbidden system call kills the guest under ptrace and fails under seccomp (see `calls.rs`).
//!
//! Invariants:
//! - A guest chooses no path on the host: its disks are files bound one by one, opened with the
//!   `d` flag (no copy-on-write header is looked for).
//! - Console and mconsole answers are bounded and never parsed beyond what an exit needs.
#![forbid(unsafe_code)]

mod calls;
mod cmdline;
mod console;
mod disk;
mod exit;
mod kernel;
mod launch;
mod mconsole;
mod probe;
mod vm;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use async_trait::async_trait;
use hyper_hypervisor::{
    Capabilities, Disk, DiskModel, Hypervisor, Probe, Vm, VmConfig, VmError, Wall,
};

/// The word users pick it by.
pub const NAME: &str = "uml";
/// The kernel takes 16 MiB, the agent speaks from 20 on; a container wants some, too.
const MIN_MEMORY_BYTES: u64 = 32 << 20;
/// Block devices of hyperkernel-um (kernel/patches); an unpatched kernel has 16.
const PATCHED_DISKS: usize = 256;
const MAX_NICS: usize = 8;

/// What keeps the guest's programs away from the guest's kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Separation {
    /// Every guest process is traced; its system calls never reach the host.
    #[default]
    Ptrace,
    /// Faster, but only for guests whose programs are all trusted as much as their kernel.
    Seccomp,
}

/// What differs between installations.
#[derive(Debug, Clone)]
pub struct Options {
    pub separation: Separation,
    /// Block devices of the kernels that are used: 256 with Hyper's patches, 16 without.
    pub max_disks: usize,
    /// The kernel that [`Hypervisor::probe`] tries.
    pub kernel: Option<PathBuf>,
    /// The `hyper-jail` program; found beside the running program or in `HYPER_LIBEXEC` unless
    /// given.
    pub launcher: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            separation: Separation::default(),
            max_disks: PATCHED_DISKS,
            kernel: None,
            launcher: None,
        }
    }
}

/// Launches guests whose kernel is a process.
#[derive(Debug, Default)]
pub struct Uml {
    options: Options,
    freezer: OnceLock<bool>,
}

impl Uml {
    pub fn new(options: Options) -> Self {
        Self { options, freezer: OnceLock::new() }
    }
}

#[async_trait]
impl Hypervisor for Uml {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            wall: Wall::UserModeKernel,
            disk_model: DiskModel::DevicePerExtent,
            max_disks: self.options.max_disks,
            disk_hotplug: true,
            // The guest's kernel has the files open.
            disk_revoke: false,
            disk_map: false,
            // 7.3 has CONFIG_SMP for um, but only in seccomp mode, and threads of one process
            // still share one vCPU.
            max_vcpus: 1,
            max_nics: MAX_NICS,
            nic_queues: 1,
            pause: *self.freezer.get_or_init(hyper_jail::can_freeze),
            share: true,
            save: false,
            memory_growth: false,
            min_memory_bytes: MIN_MEMORY_BYTES,
        }
    }

    async fn probe(&self) -> Probe {
        probe::probe(&self.options).await
    }

    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(launch::launch(&self.options, config).await?))
    }

    async fn restore(&self, _: &Path, _: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        let what = "continue a saved guest".to_owned();
        Err(VmError::Unsupported { hypervisor: NAME, what })
    }

    fn guest_devices(&self, disks: &[Disk], disk: usize) -> Vec<String> {
        let first = disks.iter().take(disk).map(|disk| disk.extents.len()).sum::<usize>();
        let count = disks.get(disk).map_or(0, |disk| disk.extents.len());
        (first..first + count).map(disk::node).collect()
    }
}
