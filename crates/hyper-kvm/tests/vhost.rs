//! A network card that the host's kernel serves, where KVM works and the kernel has vhost-net; see `contract.rs`, which
//! runs before and tries the monitor's own.

mod host;

use std::fs;
use std::process::Command;

use hyper_hypervisor::contract::{self, Session, Shape};
use hyper_kvm::Kvm;

/// Whether the kernel has it now.
fn has_vhost() -> bool {
    // Builtin, loaded, or neither: the device says.
    drop(Command::new("modprobe").arg("vhost_net").status());
    std::path::Path::new("/dev/vhost-net").exists()
}

/// Whether a thread of the kernel works for the process `pid`: `vhost-PID`, since Linux 6.4 one of its own.
fn is_served(pid: u32) -> bool {
    let name = format!("vhost-{pid}");
    let is =
        |comm: std::path::PathBuf| fs::read_to_string(comm).is_ok_and(|text| text.trim() == name);
    let under = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join("comm")).any(is)
    };
    under("/proc") || under(&format!("/proc/{pid}/task"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_kernel_serves_a_card() {
    let Some(ready) = host::ready() else { return };
    if !has_vhost() {
        let lacking = "this host's kernel has no vhost-net";
        assert_ne!(std::env::var("HYPER_REQUIRE_KVM").as_deref(), Ok("1"), "{lacking}");
        println!("SKIPPED: {lacking}");
        return;
    }
    let tap = host::Tap::make(78, true).expect("a tap, as the kernel has vhost-net");
    let net = tap.net();
    let pairs = host::Tap::with_queues(81, true, 2).expect("a tap of two queues");
    let fixture = ready.fixture(128 << 20, Some(net.clone()));
    let kvm = Kvm::new(ready.options);
    let checked = contract::run_only(&kvm, &fixture, "network device").await;
    checked.unwrap_or_else(|broken| panic!("{broken}"));
    let shape = Shape { nics: vec![net.nic], ..Shape::default() };
    let session = Session::boot(&kvm, &fixture, shape).await.unwrap();
    assert!(is_served(session.vm.pid()), "the monitor serves it itself");
    session.power_off().await.unwrap();

    let net = pairs.net();
    let shape = Shape { nics: vec![net.nic.clone()], vcpus: Some(2), ..Shape::default() };
    let mut session = Session::boot(&kvm, &fixture, shape).await.unwrap();
    assert!(is_served(session.vm.pid()), "the monitor serves it itself");
    assert_eq!(pairs.attached(), 2, "the driver's wish did not reach the tap");
    host::talk_from_both(&mut session, &net).await;
    session.vm.pause().await.unwrap();
    session.vm.resume().await.unwrap();
    host::talk_from_both(&mut session, &net).await;
    // More memory for a card whose control queue is the monitor's.
    session.vm.set_memory(256 << 20).await.unwrap();
    host::talk_from_both(&mut session, &net).await;
    session.power_off().await.unwrap();
}
