//! A card with a pair of queues for each CPU, where KVM works; see `contract.rs`. Runs before the host's vhost-net is
//! loaded (`vhost.rs` tries that): here the monitor serves it, if nobody else has loaded it.

mod host;

use hyper_hypervisor::contract::{Session, Shape};
use hyper_kvm::Kvm;

const SUBNET: u8 = 80;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cpu_sends_and_hears_by_a_queue_of_its_own() {
    let Some(ready) = host::ready() else { return };
    let fixture = ready.fixture(128 << 20, None);
    let kvm = Kvm::new(ready.options);
    let shape = |nic| Shape { nics: vec![nic], vcpus: Some(2), ..Shape::default() };
    let tap = host::Tap::with_queues(SUBNET, true, 2).expect("a tap");
    let net = tap.net();
    let mut session = Session::boot(&kvm, &fixture, shape(net.nic.clone())).await.expect("a guest");
    assert_eq!(tap.attached(), 2, "the driver's wish did not reach the tap");
    host::talk_from_both(&mut session, &net).await;
    let directory = fixture.work.join("saved");
    std::fs::create_dir(&directory).expect("a directory");
    session.vm.pause().await.expect("pause");
    session.vm.save(&directory).await.expect("save");
    session.vm.resume().await.expect("resume");
    host::talk_from_both(&mut session, &net).await;
    session.power_off().await.expect("its end");
    drop((tap, net));
    // A guest with one CPU uses one.
    let tap = host::Tap::with_queues(SUBNET, true, 2).expect("a tap");
    let net = tap.net();
    let alone = Shape { nics: vec![net.nic.clone()], ..Shape::default() };
    let mut alone = Session::boot(&kvm, &fixture, alone).await.expect("a guest");
    assert_eq!(tap.attached(), 1);
    host::talk(&mut alone, &net).await;
    alone.power_off().await.expect("its end");
    // As it was left: a pod whose clone fails boots with the same tap.
    let clone = Session::go_on(&kvm, &fixture, &directory, shape(net.nic.clone())).await;
    let mut clone = clone.expect("a clone");
    assert_eq!(tap.attached(), 2, "what the saved driver had wished for was forgotten");
    host::talk_from_both(&mut clone, &net).await;
    clone.power_off().await.expect("its end");
}
