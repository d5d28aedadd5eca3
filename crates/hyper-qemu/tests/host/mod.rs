//! What the tests need of this machine.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hyper_hypervisor::Nic;
use hyper_hypervisor::contract::Net;

/// The guest kernel, when guests can run here; makes sure that the jail's program is built.
pub fn ready() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/hyper-qemu");
    let kernel = std::env::var_os("HYPER_TEST_KERNEL")
        .map_or_else(|| root.join("target/guest/hyperkernel-x86_64"), PathBuf::from);
    let lacking = if !kernel.exists() {
        format!("no kernel `{}`: run `cargo xtask kernel`", kernel.display())
    } else if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        "no `qemu-system-x86_64`: apt-get install qemu-system-x86".to_owned()
    } else if !rustix::process::geteuid().is_root() {
        "not root".to_owned()
    } else {
        launcher(root);
        return Some(kernel);
    };
    assert_ne!(std::env::var("HYPER_REQUIRE_GUESTS").as_deref(), Ok("1"), "{lacking}");
    println!("SKIPPED: {lacking}");
    None
}

/// Cargo builds the programs of a dependency only when asked.
fn launcher(root: &Path) {
    // On a machine that got the built tests only, e.g. a laboratory without Cargo.
    if std::env::var_os("HYPER_LIBEXEC").is_some() {
        return;
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "hyper-jail", "--bin", "hyper-jail"])
        .current_dir(root)
        .status();
    assert!(built.is_ok_and(|status| status.success()), "build hyper-jail");
}

/// A private directory. The jail's user must be able to read what is in it.
pub fn work() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let work = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(work.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    work
}

/// A tap with an address on the host; gone with its descriptors.
pub struct Tap {
    tap: Arc<OwnedFd>,
}

const HOST: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 2);

nix::ioctl_write_ptr_bad!(
    /// Names the interface behind an open `/dev/net/tun`: Linux, if_tun.h.
    set_interface,
    0x4004_54ca,
    libc::ifreq
);

impl Tap {
    /// `None`, with a printed reason, where the host has no taps.
    pub fn make() -> Option<Self> {
        let name = format!("hq{}", std::process::id());
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
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("small flags");
        // SAFETY: the request is a valid ifreq, the descriptor is /dev/net/tun.
        if let Err(error) = unsafe { set_interface(file.as_raw_fd(), &raw const request) } {
            println!("SKIPPED: network: TUNSETIFF: {error}");
            return None;
        }
        let address = format!("{HOST}/24");
        for words in [vec!["addr", "add", &address, "dev", &name], vec!["link", "set", &name, "up"]]
        {
            let done = Command::new("ip").args(&words).status();
            assert!(done.is_ok_and(|status| status.success()), "ip {words:?}");
        }
        Some(Self { tap: Arc::new(file.into()) })
    }

    pub fn net(&self) -> Net {
        let nic = Nic { tap: Arc::clone(&self.tap), mac: "02:00:00:00:77:02".into(), mtu: 1500 };
        Net { nic, host: HOST, guest: GUEST }
    }
}
