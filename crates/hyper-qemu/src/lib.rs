//! Port adapter `qemu`: QEMU's microvm machine, or q35 for many disks, with KVM where it really
//! works, else TCG.
//!
//! ```text
//!  QemuVm ── keeper task ──────────────── hyper-jail: uid, namespaces, cgroup, seccomp
//!    │  link     socketpair ◄─► virtserialport hyper.link   ┐
//!    │  QMP      socketpair ◄─► monitor (control.rs)        │ qemu-system-x86_64,
//!    │  console  socketpair ◄── isa-serial (console.rs)     │ in a root that holds its
//!    │  disks    open descriptors ─► fdsets ─► virtio-blk   │ libraries, the kernel and
//!    │  taps     open descriptors ─► virtio-net             ┘ the initramfs, read-only
//! ```
//!
//! Decisions:
//! - microvm: the smallest machine with virtio, and the fastest to boot. `machine.rs` has its two
//!   sizes, and q35 for guests that need PCI's room. Places are fixed at launch; the free ones become placeholders of 1 TiB, half of
//!   them read-only, and [`Vm::add_disk`](hyper_hypervisor::Vm::add_disk) puts a disk behind one.
//! - QEMU never opens a path of the host: disks, taps and sockets are passed as descriptors, also
//!   to a running guest. A disk of several extents is a VMDK descriptor in a memfd.
//! - Without ACPI a guest cannot power the machine off: Linux halts, says so on the console, and
//!   the adapter quits QEMU. A panic is told by the console too.
//!
//! Invariant: whatever QEMU says (QMP, console, standard error) is untrusted and bounded.
#![forbid(unsafe_code)]

mod accelerator;
mod block;
mod calls;
mod commands;
mod control;
mod disk;
mod jail;
mod kernel;
mod launch;
mod machine;
mod pipe;
mod probe;
mod saved;
mod vm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use hyper_adapter::node;
use hyper_hypervisor::{
    Capabilities, Disk, DiskModel, Hypervisor, Probe, Vm, VmConfig, VmError, Wall,
};

pub use accelerator::Accelerator;
use accelerator::Chosen;

/// The word users pick it by.
pub const NAME: &str = "qemu";
/// Its disks in the guest are virtio-blk's.
const DISK: &str = "vd";

/// What the hyperkernel is built for (`CONFIG_NR_CPUS`).
const MAX_VCPUS: u32 = 64;
/// A hyperkernel with an agent comes up in this; below it the guest runs out of memory at boot.
const MIN_MEMORY: u64 = 64 << 20;
const MAX_NICS: usize = 2;
/// The device of shared directories takes a place as network devices do.
const SHARES: usize = 1;

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// QEMU's program; without it `qemu-system-x86_64` is looked for in the usual places.
    pub program: Option<PathBuf>,
    pub accelerator: Accelerator,
    /// QEMU's CPU model; without it all that the host's CPU (or TCG) has.
    pub cpu: Option<String>,
    /// The guest kernel whose presence [`Hypervisor::probe`] tells.
    pub kernel: Option<PathBuf>,
}

/// The adapter.
#[derive(Debug)]
pub struct Qemu {
    options: Options,
    chosen: Chosen,
}

impl Qemu {
    /// Looks whether KVM works, by running guest code, unless told not to. Blocks for some
    /// milliseconds, at most for one second.
    pub fn new(options: Options) -> Self {
        let mut chosen = Chosen::find(options.accelerator, Duration::from_millis(800));
        chosen.cpu.clone_from(&options.cpu);
        Self { options, chosen }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            wall: if self.chosen.kvm { Wall::Hardware } else { Wall::Emulated },
            disk_model: DiskModel::Stitched,
            max_disks: machine::disk_slots(MAX_NICS + SHARES),
            disk_hotplug: true,
            disk_revoke: true,
            disk_map: false,
            max_vcpus: MAX_VCPUS,
            max_nics: MAX_NICS,
            nic_queues: 1,
            pause: true,
            share: true,
            save: true,
            memory_growth: false,
            min_memory_bytes: MIN_MEMORY,
        }
    }

    async fn probe(&self) -> Probe {
        probe::probe(&self.options, &self.chosen).await
    }

    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        launch::launch(&self.options, &self.chosen, config).await
    }

    async fn restore(&self, directory: &Path, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        launch::restore(&self.options, &self.chosen, directory, config).await
    }

    fn guest_devices(&self, disks: &[Disk], disk: usize) -> Vec<String> {
        if disk < disks.len() { vec![node(DISK, disk)] } else { Vec::new() }
    }
}
