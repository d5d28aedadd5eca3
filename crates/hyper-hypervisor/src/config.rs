//! What a guest is made of.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The guest kernel and the initramfs that holds the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Appended to the command line the hypervisor itself needs; no secrets here.
    pub extra_cmdline: Vec<String>,
}

/// One file that is (part of) a disk. Lengths are multiples of 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    pub path: PathBuf,
    pub bytes: u64,
}

/// A block device; its place in [`VmConfig::disks`] is its identity in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub extents: Vec<Extent>,
    pub read_only: bool,
    /// Host caches may be lost with the host: for disks that die with their container.
    pub ephemeral: bool,
    /// The guest maps what the host has cached of it in place of reading it, so that it is in memory
    /// once for all guests. Of a launch, read-only, and where [`crate::Capabilities::disk_map`].
    pub mapped: bool,
}

/// A network device backed by a tap that is already open.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The tap's queues, one for each pair that the device has; at least one, and no more than
    /// [`crate::Capabilities::nic_queues`].
    pub tap: Vec<Arc<OwnedFd>>,
    /// `02:…`, lower case.
    pub mac: String,
    pub mtu: u32,
}

impl Nic {
    /// The bytes of [`Nic::mac`]; `None` when it is no MAC address.
    pub fn mac_bytes(&self) -> Option<[u8; 6]> {
        crate::check::mac(&self.mac)
    }
}

/// Directories of the host, served by a vhost-user device for virtio-fs that listens already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// A unix socket that everybody may connect to, in a directory that nobody can enter; takes
    /// one connection. The device says by itself that its tag in the guest is `tag`.
    pub socket: PathBuf,
    pub tag: String,
}

/// A guest to launch.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Pod id: names cgroup, process title and files; `[a-zA-Z0-9_.-]{1,128}`.
    pub id: String,
    pub kernel: GuestKernel,
    pub vcpus: u32,
    pub memory_bytes: u64,
    pub disks: Vec<Disk>,
    /// Others come later. What that needs is there from the start and costs time to boot.
    pub late_disks: bool,
    pub nics: Vec<Nic>,
    /// The device's process can read and write all of the guest's memory.
    pub share: Option<Share>,
    /// Private directory of this pod on the host, owned by the caller; removed by the caller.
    pub run_dir: PathBuf,
    /// Parent cgroup of the pod, relative to each hierarchy's root; `None`: the hypervisor's own.
    pub cgroup: Option<String>,
}
