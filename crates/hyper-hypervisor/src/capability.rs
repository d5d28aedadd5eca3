//! What a hypervisor can do, as data.

use serde::{Deserialize, Serialize};

/// How strong the wall between guest and host is; ordered, strongest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wall {
    /// Containers share the host's kernel.
    SharedKernel,
    /// An application kernel in user space serves the system calls (gVisor).
    ApplicationKernel,
    /// A whole Linux kernel as a user process; the jail around it is the wall.
    UserModeKernel,
    /// A CPU emulator runs the guest; no hardware separates it from the host.
    Emulated,
    /// The CPU's virtualization separates guest and host.
    Hardware,
}

/// How the guest sees a disk made of several extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskModel {
    /// One device, extents back to back.
    Stitched,
    /// One device for each extent.
    DevicePerExtent,
}

/// What one hypervisor can do on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub wall: Wall,
    pub disk_model: DiskModel,
    /// Block devices a guest can have.
    pub max_disks: usize,
    /// Disks can be added to a running guest, and taken back.
    pub disk_hotplug: bool,
    /// A disk that is taken back is out of reach for a guest that still uses it. Without this the
    /// guest's own kernel is who closes it, and is believed.
    pub disk_revoke: bool,
    /// Read-only disks of a launch can be mapped: [`crate::Disk::mapped`].
    pub disk_map: bool,
    pub max_vcpus: u32,
    pub max_nics: usize,
    /// Pairs of queues that a network device can have, for as many of the guest's CPUs to send and receive at once.
    pub nic_queues: usize,
    /// The whole guest can be stopped and continued.
    pub pause: bool,
    /// Directories of the host can be shared with a guest: [`crate::VmConfig::share`].
    pub share: bool,
    /// A paused guest can be saved and continued, more than once: [`crate::Vm::save`].
    pub save: bool,
    /// A running guest can be given more memory than it booted with, and that taken back:
    /// [`crate::Vm::set_memory`].
    pub memory_growth: bool,
    /// Smallest memory in bytes that the hypervisor accepts.
    pub min_memory_bytes: u64,
}
