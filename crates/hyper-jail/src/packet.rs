//! One JSON text per packet of a SEQPACKET socket, descriptors beside it: how two processes of Hyper on one host speak
//! when one has what the other may not open (`unix(7)`, SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest packet; a jail's specification is a few KiB, most of it seccomp.
pub const MAX_PACKET: usize = 192 * 1024;
/// Most descriptors beside one packet (the kernel's SCM_MAX_FD is 253).
pub const MAX_FDS: usize = 128;

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
