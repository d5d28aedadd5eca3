//! What a guest is made of: the first line on the control socket.

use serde::{Deserialize, Serialize};

/// Descriptor numbers that are always given.
pub mod fd {
    /// A unix stream socket: see [`crate::wire`].
    pub const CONTROL: i32 = 3;
    /// A unix stream socket: the bytes of the guest's link.
    pub const LINK: i32 = 4;
    /// A unix stream socket or pipe: the guest's serial port.
    pub const CONSOLE: i32 = 5;
    /// `/dev/kvm`.
    pub const KVM: i32 = 6;
    pub const KERNEL: i32 = 7;
    pub const INITRAMFS: i32 = 8;
    /// Disks, taps and sockets follow.
    pub const FIRST_FREE: i32 = 9;
}

/// Most virtual CPUs: the MP table has to fit into a kibibyte.
pub const MAX_VCPUS: u32 = 32;
/// Least memory in bytes with which a kernel gets far enough to complain.
pub const MIN_MEMORY: u64 = 32 << 20;
/// Most disks of a guest, those that come later included.
pub const MAX_DISKS: usize = 64;
/// Most files that one disk is made of; a message carries at most 253 descriptors (SCM_MAX_FD).
pub const MAX_EXTENTS: usize = 100;
pub const MAX_NICS: usize = 8;
/// Most pairs of queues of a network device: each keeps some 0.4 MB of the guest's memory ready.
pub const MAX_NIC_QUEUES: usize = 8;
/// Threads that a disk may have beside its own, of the monitor or of the host's io_uring.
pub const HANDS: usize = 4;
/// Bytes of a kernel command line, its final zero included (COMMAND_LINE_SIZE of x86).
pub const MAX_CMDLINE: usize = 2048;

/// A guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub vcpus: u32,
    pub memory_bytes: u64,
    /// Words for the kernel, before those that name the devices.
    pub cmdline: String,
    pub disks: Vec<Disk>,
    /// Places for disks that come later.
    pub spares: usize,
    /// Disks wait for the host's by its io_uring, where it has one.
    #[serde(default)]
    pub io_uring: bool,
    pub nics: Vec<Nic>,
    #[serde(default)]
    pub pages: Pages,
    /// Most memory that the guest can be given while it runs beyond `memory_bytes`; 0: none. A
    /// saved guest's is what it was.
    #[serde(default)]
    pub growth_bytes: u64,
    /// Connected socket of a vhost-user device for virtio-fs. It gets all of the guest's memory.
    pub share: Option<i32>,
    /// Goes on where a saved guest was; no kernel is loaded then. vCPUs, memory and devices must
    /// be those of that guest.
    #[serde(default)]
    pub saved: Option<Saved>,
}

/// How guest memory is had. A saved guest's is the file's, whatever this says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pages {
    pub huge: Huge,
    /// All of it is there before the guest runs.
    pub prefault: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Huge {
    /// As the host does it by itself.
    #[default]
    No,
    /// Asks for transparent ones, which the host gives as it has them.
    Transparent,
    /// Those of the host's pool, [`HUGE_PAGE`] each, all taken before the guest runs. Memory is a
    /// multiple of that.
    Reserved,
}

impl Pages {
    /// Whether pages stay the guest's that it does not need: it was given them for good.
    pub fn kept(self) -> bool {
        self.prefault || self.huge == Huge::Reserved
    }
}

/// Bytes of a huge page: one that KVM maps with one entry.
pub const HUGE_PAGE: u64 = 2 << 20;

/// The files of a saved guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub state: i32,
    pub memory: i32,
}

/// A block device: files back to back. Lengths are multiples of 512 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub extents: Vec<Extent>,
    pub read_only: bool,
    /// Flushes may be skipped: nobody wants the disk when the host is gone.
    pub ephemeral: bool,
    /// The guest has it as persistent memory, page by page the host's page cache. For disks that
    /// are read-only and there from the start; extents are whole pages.
    #[serde(default)]
    pub mapped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// In the first message a number; ignored in later ones, whose descriptors come with them.
    #[serde(default)]
    pub fd: i32,
    pub bytes: u64,
}

/// A network device on a tap with `IFF_VNET_HDR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// One for each pair of the device's queues.
    pub queues: Vec<NicQueue>,
    pub mac: [u8; 6],
    pub mtu: u16,
}

/// A queue of a tap, which has `IFF_MULTI_QUEUE` when there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicQueue {
    pub tap: i32,
    /// An open `/dev/vhost-net`, to be used if it can.
    #[serde(default)]
    pub vhost: Option<i32>,
}
