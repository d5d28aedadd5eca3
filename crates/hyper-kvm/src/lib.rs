//! Port adapter `kvm`: guests on KVM, each by a monitor process of our own (`hyper-vmm`).
//!
//! ```text
//!  KvmVm ── keeper task ─────────────── hyper-jail: uid, namespaces, cgroup, seccomp
//!    │  control  socketpair ◄─► JSON lines, descriptors beside them (control.rs)   ┐
//!    │  link     socketpair ◄─► virtio-console port 1                              │ hyper-vmm, in a
//!    │  console  socketpair ◄── serial port                                        │ root with nothing
//!    │  kernel, initramfs, disks, taps, /dev/kvm: open descriptors                 ┘ but libraries
//! ```
//! There is no ACPI, so a guest that powers off halts and says so on its console, upon which the
//! adapter ends the monitor. A panic resets the CPUs, and its message is on the console, too.
//!
//! Invariant: the monitor opens nothing by name, and what it says is bounded and not trusted.
#![forbid(unsafe_code)]

mod calls;
mod control;
mod disk;
mod launch;
mod machine;
mod memory;
mod pages;
mod probe;
mod vm;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use hyper_adapter::node;
use hyper_hypervisor::{
    Capabilities, Disk, DiskModel, Hypervisor, Probe, Vm, VmConfig, VmError, Wall,
};
use hyper_vmm::config::{MAX_DISKS, MAX_VCPUS};
pub use pages::HugePages;

/// The word users pick it by.
pub const NAME: &str = "kvm";
/// Its disks in the guest are virtio-blk's.
const DISK: &str = "vd";
/// … and those that are mapped the persistent memory driver's.
const MAPPED: &str = "/dev/pmem";

/// A hyperkernel with an agent comes up in this; below it the guest runs out of memory at boot.
const MIN_MEMORY: u64 = 64 << 20;
const MAX_NICS: usize = 2;
const MAX_NIC_QUEUES: usize = hyper_vmm::config::MAX_NIC_QUEUES;
const PATIENCE: Duration = Duration::from_millis(800);

/// What an operator may choose.
#[derive(Debug, Clone)]
pub struct Options {
    /// The monitor; without it `hyper-vmm` is looked for where `hyper-jail` is.
    pub program: Option<PathBuf>,
    /// The guest kernel whose presence [`Hypervisor::probe`] tells.
    pub kernel: Option<PathBuf>,
    pub huge_pages: HugePages,
    /// All memory of a guest is there before it runs.
    pub prefault: bool,
    /// Guests can have images as memory that is the host's page cache.
    pub map_images: bool,
    /// The monitor waits for the host's disks by io_uring, where the host has one.
    pub io_uring: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            program: None,
            kernel: None,
            huge_pages: HugePages::default(),
            prefault: false,
            map_images: true,
            io_uring: true,
        }
    }
}

impl Options {
    /// Guests have their memory for good: a clone, whose pages come as it writes, would not.
    fn memory_is_kept(&self) -> bool {
        pages::told(self.huge_pages, self.prefault).kept()
    }
}

/// The adapter.
#[derive(Debug)]
pub struct Kvm {
    options: Options,
    /// What a look at KVM found, after the first one: why it cannot be used, if it cannot.
    seen: Arc<OnceLock<Option<String>>>,
}

impl Kvm {
    /// Looks at nothing yet.
    pub fn new(options: Options) -> Self {
        Self { options, seen: Arc::default() }
    }

    /// Runs guest code to see whether KVM works, once: some milliseconds, at most [`PATIENCE`].
    async fn look(&self) -> Option<String> {
        let seen = Arc::clone(&self.seen);
        let looked = tokio::task::spawn_blocking(move || {
            let look = || hyper_kvm_probe::probe(PATIENCE).err().map(|problem| problem.to_string());
            seen.get_or_init(look).clone()
        });
        looked.await.unwrap_or_else(|error| Some(error.to_string()))
    }
}

#[async_trait]
impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            wall: Wall::Hardware,
            disk_model: DiskModel::Stitched,
            max_disks: MAX_DISKS,
            disk_hotplug: true,
            disk_revoke: true,
            disk_map: self.options.map_images,
            max_vcpus: MAX_VCPUS,
            max_nics: MAX_NICS,
            nic_queues: MAX_NIC_QUEUES,
            pause: true,
            share: true,
            save: !self.options.memory_is_kept(),
            memory_growth: !self.options.memory_is_kept(),
            min_memory_bytes: MIN_MEMORY,
        }
    }

    async fn probe(&self) -> Probe {
        probe::probe(&self.options, self.look().await).await
    }

    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        // Not looked at for each guest: making and ending a virtual machine takes time. A KVM that
        // does not work ends the guest at its first instructions, with the reason.
        if let Some(Some(problem)) = self.seen.get() {
            return Err(VmError::Missing {
                hypervisor: NAME,
                what: "a KVM that runs unmodified kernels".to_owned(),
                hint: problem.clone(),
            });
        }
        launch::launch(&self.options, config).await
    }

    async fn restore(&self, directory: &Path, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        if self.options.memory_is_kept() {
            let what = "continue a saved guest in memory that is reserved or prefaulted";
            return Err(VmError::Unsupported { hypervisor: NAME, what: what.to_owned() });
        }
        launch::restore(&self.options, directory, config).await
    }

    fn guest_devices(&self, disks: &[Disk], disk: usize) -> Vec<String> {
        let Some(wanted) = disks.get(disk) else { return Vec::new() };
        let before = disks[..disk].iter().filter(|disk| disk.mapped == wanted.mapped).count();
        vec![if wanted.mapped { format!("{MAPPED}{before}") } else { node(DISK, before) }]
    }
}
