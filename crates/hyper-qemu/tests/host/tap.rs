//! A network for guests under test; the adapters' tests share it.

use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;

use hyper_hypervisor::Nic;
use hyper_hypervisor::contract::Net;

/// A tap with an address on the host; gone with its descriptors.
pub struct Tap {
    tap: Arc<OwnedFd>,
    subnet: u8,
}

nix::ioctl_write_ptr_bad!(
    /// Names the interface behind an open `/dev/net/tun`: Linux, if_tun.h.
    set_interface,
    0x4004_54ca,
    libc::ifreq
);

impl Tap {
    /// With the first address of 10.213.`subnet`.0/24, and with virtio-net's headers or without;
    /// `None`, with a printed reason, where the host has no taps.
    pub fn make(subnet: u8, header: bool) -> Option<Self> {
        let name = format!("ht{}.{subnet}", std::process::id());
        let file = match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            Ok(file) => file,
            Err(error) => {
                println!("SKIPPED: network: /dev/net/tun: {error}");
                return None;
            }
        };
        // SAFETY: all of the structure may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let header = if header { libc::IFF_VNET_HDR } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | header;
        request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("small flags");
        // SAFETY: the request is a valid ifreq, the descriptor is /dev/net/tun.
        if let Err(error) = unsafe { set_interface(file.as_raw_fd(), &raw const request) } {
            println!("SKIPPED: network: TUNSETIFF: {error}");
            return None;
        }
        let host = format!("{}/24", address(subnet, 1));
        for words in [vec!["addr", "add", &host, "dev", &name], vec!["link", "set", &name, "up"]] {
            let done = Command::new("ip").args(&words).status();
            assert!(done.is_ok_and(|status| status.success()), "ip {words:?}");
        }
        Some(Self { tap: Arc::new(file.into()), subnet })
    }

    pub fn net(&self) -> Net {
        let nic = Nic { tap: Arc::clone(&self.tap), mac: "02:00:00:00:77:02".into(), mtu: 1500 };
        Net { nic, host: address(self.subnet, 1), guest: address(self.subnet, 2) }
    }
}

fn address(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, subnet, host)
}
