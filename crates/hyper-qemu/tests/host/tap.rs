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
    /// Its queues.
    tap: Vec<Arc<OwnedFd>>,
    name: String,
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
        Self::with_queues(subnet, header, 1)
    }

    /// As [`Self::make`], with so many queues.
    pub fn with_queues(subnet: u8, header: bool, queues: usize) -> Option<Self> {
        let name = format!("ht{}.{subnet}", std::process::id());
        let tap = (0..queues).map(|_| queue(&name, header, queues > 1).map(Arc::new)).collect();
        let tap: Vec<_> = match tap {
            Ok(tap) => tap,
            Err(error) => {
                println!("SKIPPED: network: {error}");
                return None;
            }
        };
        let host = format!("{}/24", address(subnet, 1));
        // The same each time: a guest that goes on from a saved one remembers it.
        let mac = format!("02:00:00:00:78:{subnet:02x}");
        for words in [
            vec!["addr", "add", &host, "dev", &name],
            vec!["link", "set", &name, "address", &mac, "up"],
        ] {
            let done = Command::new("ip").args(&words).status();
            assert!(done.is_ok_and(|status| status.success()), "ip {words:?}");
        }
        Some(Self { tap, name, subnet })
    }

    /// Queues that are attached.
    pub fn attached(&self) -> usize {
        let queues = format!("/sys/class/net/{}/queues", self.name);
        let entries = std::fs::read_dir(&queues).expect("its queues").flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("tx-")).count()
    }

    pub fn net(&self) -> Net {
        let nic = Nic { tap: self.tap.clone(), mac: "02:00:00:00:77:02".into(), mtu: 1500 };
        Net { nic, host: address(self.subnet, 1), guest: address(self.subnet, 2) }
    }
}

fn queue(name: &str, header: bool, several: bool) -> std::io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all of the structure may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flag = |wanted, flag| if wanted { flag } else { 0 };
    let flags = libc::IFF_TAP
        | libc::IFF_NO_PI
        | flag(header, libc::IFF_VNET_HDR)
        | flag(several, libc::IFF_MULTI_QUEUE);
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("small flags");
    // SAFETY: the request is a valid ifreq, the descriptor is /dev/net/tun.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }?;
    Ok(file.into())
}

fn address(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, subnet, host)
}
