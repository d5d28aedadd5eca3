//! Guests that are held to rates of disk transfers which the host's cgroups do not hold: writes, on
//! hosts with cgroup v1. Where KVM works (see `contract.rs`), and files are on a block device; in
//! the laboratory: `xtask lab --cgroup v1 --disk 2`.

mod host;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use hyper_hypervisor::contract::{Session, Shape, disk};
use hyper_hypervisor::{Hypervisor as _, IoLimit};
use hyper_kvm::Kvm;

const BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_held_to_what_its_host_cannot_hold() {
    let Some(ready) = host::ready() else { return };
    let number = std::fs::metadata(ready.work.path()).unwrap().dev();
    let device = (rustix::fs::major(number), rustix::fs::minor(number));
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if v2 || device.0 == 0 {
        let lacking = format!("the host holds them itself, or has no device: {device:?}");
        assert_ne!(std::env::var("HYPER_REQUIRE_KVM").as_deref(), Ok("1"), "{lacking}");
        println!("SKIPPED: {lacking}");
        return;
    }
    let fixture = ready.fixture(96 << 20, None);
    let kvm = Kvm::new(ready.options);
    let mut written = disk(&fixture, "written", 1, &[BYTES]).unwrap();
    written.read_only = false;
    let shape = Shape { disks: vec![written.clone()], ..Shape::default() };
    let mut session = Session::boot(&kvm, &fixture, shape).await.unwrap();
    let node = kvm.guest_devices(&[written], 0).concat();
    let bytes = vec![7; BYTES];
    // Rates per second; whether writing all takes that long.
    for (write_bytes, slow) in [(None, false), (Some(BYTES as u64 / 8), true), (None, false)] {
        let limit = IoLimit { device, write_bytes, ..IoLimit::default() };
        session.vm.set_io(&[limit]).await.unwrap();
        let start = Instant::now();
        // The first write of a new rate passes, whatever its length: the next ones wait for it.
        for half in [0, BYTES / 2] {
            let write = format!("write {node} {half} {}", BYTES / 2);
            session.ask_with(&write, &bytes[half..half + BYTES / 2]).await.unwrap();
        }
        let took = start.elapsed();
        println!("{write_bytes:?} bytes per second: {took:?}");
        assert_eq!(took > Duration::from_secs(3), slow, "{write_bytes:?}: {took:?}");
        // Eight seconds: who holds them does so once.
        assert!(took < Duration::from_secs(12), "{write_bytes:?}: {took:?}");
    }
    session.power_off().await.unwrap();
}
