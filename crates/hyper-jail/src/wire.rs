//! What supervisor and launcher say to each other: one JSON text per packet of a SEQPACKET socket,
//! descriptors beside it. Private to this package; both ends are built together.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::spec::{Bind, Limits, Place, Resource};

/// Largest packet; a specification is a few KiB, most of it seccomp.
pub const MAX_PACKET: usize = 192 * 1024;
/// Most descriptors beside one packet (the kernel's SCM_MAX_FD is 253).
pub const MAX_FDS: usize = 128;
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

/// Sends one packet.
///
/// # Errors
/// The other end is gone, or the packet is larger than the socket takes.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(&text)];
    let sent =
        rustix::io::retry_on_intr(|| sendmsg(&socket, &parts, &mut beside, SendFlags::NOSIGNAL))?;
    if sent == text.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

/// Takes one packet; `None` when the other end is gone.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket without a packet; `InvalidData` on a packet that is cut
/// or not of this type.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = {
        let mut parts = [IoSliceMut::new(&mut text)];
        rustix::io::retry_on_intr(|| {
            recvmsg(&socket, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC)
        })
    };
    let got = match got {
        Ok(got) => got,
        // The other end closed with our packet unread.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut fds = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&text[..got.bytes])?;
    Ok(Some((message, fds)))
}
