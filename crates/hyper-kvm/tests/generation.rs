//! A guest that goes on from a saved one hears of it before it does anything else, where KVM works; see `contract.rs`.

mod host;

use hyper_hypervisor::contract::{Session, Shape};
use hyper_kvm::Kvm;

/// Interrupts by which the guest was told.
async fn told(session: &mut Session) -> u32 {
    let table = session.fetch("cat /proc/interrupts").await.expect("its interrupts");
    let table = String::from_utf8(table).expect("text");
    let line = table.lines().find(|line| line.trim_end().ends_with("vmgenid"));
    let line = line.unwrap_or_else(|| panic!("the guest has no generation id:\n{table}"));
    line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_on_from_a_saved_guest_reseeds_at_once() {
    let Some(ready) = host::ready() else { return };
    let fixture = ready.fixture(128 << 20, None);
    let kvm = Kvm::new(ready.options);
    // What the kernel says of it is below warnings.
    let shape = || Shape { extra_cmdline: vec!["loglevel=6".to_owned()], ..Shape::default() };
    let mut saved = Session::boot(&kvm, &fixture, shape()).await.unwrap();
    assert_eq!(told(&mut saved).await, 0);
    let directory = fixture.work.join("saved");
    std::fs::create_dir(&directory).unwrap();
    saved.vm.pause().await.unwrap();
    saved.vm.save(&directory).await.unwrap();
    saved.vm.resume().await.unwrap();
    // It is the same as before, not another.
    assert_eq!(told(&mut saved).await, 0);
    saved.power_off().await.unwrap();
    for _ in 0..2 {
        let mut clone = Session::go_on(&kvm, &fixture, &directory, shape()).await.unwrap();
        assert_eq!(told(&mut clone).await, 1);
        let console = clone.vm.console();
        assert!(console.contains("reseeded due to virtual machine fork"), "{console}");
        clone.power_off().await.unwrap();
    }
}
