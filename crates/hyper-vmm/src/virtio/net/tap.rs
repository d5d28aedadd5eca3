//! What a tap is told: Linux, if_tun.h.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;

/// Length of the header before each packet.
pub(super) fn set_header(tap: &OwnedFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the request reads an int from the pointer; the descriptor is open.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the other side does for the host: checksums, and cutting of long segments.
pub(super) fn offloads(checksums: bool, tso4: bool, tso6: bool) -> u32 {
    if !checksums {
        return 0;
    }
    let bit = |wanted, bit| if wanted { bit } else { 0 };
    TUN_F_CSUM | bit(tso4, TUN_F_TSO4) | bit(tso6, TUN_F_TSO6)
}

pub(super) fn set_offloads(tap: &OwnedFd, offloads: u32) -> io::Result<()> {
    // SAFETY: the request takes a number, no pointer; the descriptor is open.
    let done =
        unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
