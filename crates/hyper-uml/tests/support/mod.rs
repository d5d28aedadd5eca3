//! What the integration tests share: where kernel and launcher are.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]
#![allow(dead_code, reason = "each test program uses a part of it")]

#[path = "../../../hyper-qemu/tests/host/tap.rs"]
mod tap;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

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

/// A network with virtio-net's headers or without; `None`, with a printed reason, without taps.
pub fn net(vnet_header: bool) -> Option<Net> {
    // An unpatched kernel names its devices otherwise, and takes a tap for a socket.
    let image = std::fs::read(kernel()).unwrap();
    if image.windows(6).any(|bytes| bytes == b"vec%d\0") {
        println!("SKIPPED: network: the kernel has no patch 0007");
        return None;
    }
    static NEXT: AtomicU8 = AtomicU8::new(78);
    let subnet = NEXT.fetch_add(1, Ordering::Relaxed);
    tap::Tap::make(subnet, vnet_header).map(|tap| tap.net())
}
