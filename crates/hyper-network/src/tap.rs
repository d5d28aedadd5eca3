//! Taps. The two ioctls that no safe library has with all the flags they need.
#![expect(
    unsafe_code,
    reason = "TUNSETIFF, TUNSETPERSIST; the crates that wrap them cannot ask for IFF_VNET_HDR"
)]

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::error::{Result, file, link};

nix::ioctl_write_ptr_bad!(
    /// Names the interface behind an open `/dev/net/tun`: Linux, if_tun.h.
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Opens taps in a new network namespace that has nothing else and ends with them: for guests that
/// shall have cards and no network. `queues`: of each. Blocking.
///
/// # Errors
/// As [`open`]; no right to make a namespace.
pub fn unconnected(count: usize, queues: usize) -> Result<Vec<Vec<OwnedFd>>> {
    let work = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|error| file("make", "a network namespace")(error.into()))?;
        (0..count).map(|at| open(&format!("tap{at}"), queues)).collect()
    };
    // A thread of its own leaves the namespace with its end.
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(work);
    let thread = thread.map_err(file("start", "a thread"))?;
    thread
        .join()
        .unwrap_or_else(|_| Err(file("make", "taps")(std::io::Error::other("it panicked"))))
}

nix::ioctl_write_int_bad!(
    /// Whether an interface stays when its last descriptor is closed: Linux, if_tun.h.
    set_persistent,
    nix::request_code_write!(b'T', 203, size_of::<libc::c_int>())
);

/// Leaves a tap in its namespace when its last descriptor is closed: it goes with the namespace,
/// and the process that ends with it does not wait the 18 ms that the kernel takes to remove one.
///
/// # Errors
/// The kernel's.
pub fn leave(tap: &OwnedFd) -> Result<()> {
    // SAFETY: the argument is a number; the descriptor is open and a tap's.
    unsafe { set_persistent(tap.as_raw_fd(), 1) }
        .map(drop)
        .map_err(|error| link("keep", "tap")(error.into()))
}

/// Opens a new tap in the thread's network namespace, a descriptor for each of its `queues`; it is gone with the last of
/// them. Frames carry a `virtio_net_hdr`, so that checksums and segmentation can be left to the host. What is sent to
/// the tap is spread over all queues, whoever reads them.
///
/// # Errors
/// No `/dev/net/tun`, or the name is taken.
pub fn open(name: &str, queues: usize) -> Result<Vec<OwnedFd>> {
    // A tap that may have several is made with room for all that the kernel allows.
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    (0..queues.max(1)).map(|_| queue(name, several)).collect()
}

fn queue(name: &str, several: libc::c_int) -> Result<OwnedFd> {
    let path = "/dev/net/tun";
    let tun = OpenOptions::new().read(true).write(true).open(path).map_err(file("open", path))?;
    // SAFETY: all of this C structure may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    // SAFETY: the request is a valid, zero-ended ifreq that outlives the call; the descriptor is
    // open and /dev/net/tun's.
    unsafe { set_interface(tun.as_raw_fd(), &raw const request) }
        .map_err(|error| link("make tap", name)(error.into()))?;
    Ok(tun.into())
}
