//! What the integration tests share: where kernel and launcher are.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use hyper_hypervisor::Nic;
use hyper_hypervisor::contract::Net;
use hyper_uml::Options;

/// The guest kernel.
pub fn kernel() -> PathBuf {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest/hyperkernel-um");
    let path = std::env::var_os("HYPER_KERNEL_UM").map_or_else(|| built.into(), PathBuf::from);
    assert!(path.is_file(), "no guest kernel `{}`: run kernel/build um", path.display());
    path
}

/// Options with a launcher that is up to date: Cargo does not build programs of dependencies.
pub fn options() -> Options {
    static LAUNCHER: OnceLock<PathBuf> = OnceLock::new();
    let launcher = LAUNCHER.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "hyper-jail", "--bin", "hyper-jail"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success(), "cannot build hyper-jail");
        // This test is <target>/<profile>/deps/<test>.
        let here = std::env::current_exe().unwrap();
        here.ancestors().nth(2).unwrap().join("hyper-jail")
    });
    Options { launcher: Some(launcher.clone()), kernel: Some(kernel()), ..Options::default() }
}

nix::ioctl_write_ptr_bad!(
    /// Names the interface behind an open `/dev/net/tun`: Linux, if_tun.h.
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// A tap with an address on the host, gone with its descriptor; `None` where there are none.
pub fn net(vnet_header: bool) -> Option<Net> {
    // An unpatched kernel names its devices otherwise, and takes a tap for a socket.
    let image = std::fs::read(kernel()).unwrap();
    if image.windows(6).any(|bytes| bytes == b"vec%d\0") {
        println!("SKIPPED: network: the kernel has no patch 0007");
        return None;
    }
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
    let at = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let tun = match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(tun) => tun,
        Err(error) => {
            println!("SKIPPED: network: /dev/net/tun: {error}");
            return None;
        }
    };
    let name = format!("hu{}.{at}", std::process::id());
    // SAFETY: all of this C structure may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let header = if vnet_header { libc::IFF_VNET_HDR } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | header;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap();
    // SAFETY: the request is a valid ifreq, the descriptor is /dev/net/tun.
    unsafe { set_interface(tun.as_raw_fd(), &raw const request) }.unwrap();
    let host = Ipv4Addr::new(10, 213, 78 + at, 1);
    let address = format!("{host}/24");
    for words in [vec!["addr", "add", &address, "dev", &name], vec!["link", "set", &name, "up"]] {
        let done = Command::new("ip").args(&words).status();
        assert!(done.is_ok_and(|status| status.success()), "ip {words:?}");
    }
    let nic = Nic { tap: Arc::new(tun.into()), mac: "02:00:00:00:78:02".into(), mtu: 1500 };
    Some(Net { nic, host, guest: Ipv4Addr::new(10, 213, 78 + at, 2) })
}
