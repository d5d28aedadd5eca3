//! Disks that are mapped, when their files are not what they were. What they are otherwise is part
//! of the contract. Where KVM works (see `contract.rs`), else skipped.

mod host;

use std::fs::OpenOptions;
use std::time::Duration;

use hyper_hypervisor::contract::{Session, Shape, disk};
use hyper_hypervisor::{Disk, Hypervisor as _, VmExit};
use hyper_kvm::Kvm;

const BYTES: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_shrinks_ends_its_guest_with_the_reason() {
    let Some(ready) = host::ready() else { return };
    let fixture = ready.fixture(96 << 20, None);
    let kvm = Kvm::new(ready.options);
    let image = disk(&fixture, "image", 1, &[4096, BYTES]).expect("a disk");
    let image = Disk { mapped: true, ..image };
    let node = kvm.guest_devices(std::slice::from_ref(&image), 0).concat();
    let file = image.extents[1].path.clone();
    let shape = Shape { disks: vec![image], ..Shape::default() };
    let mut session = Session::boot(&kvm, &fixture, shape).await.expect("boots");
    session.ask(&format!("size {node}")).await.expect("it is there");
    // Nobody does that to the image store; somebody with root may.
    OpenOptions::new().write(true).open(file).expect("opens").set_len(4096).expect("shrinks");
    session.send(&format!("read {node} {} 4096", BYTES / 2), b"").await.expect("is told");
    let exit = tokio::time::timeout(Duration::from_secs(60), session.vm.wait()).await;
    match exit.expect("the guest ends") {
        VmExit::Failed { detail, .. } => {
            assert!(detail.contains("the file of a mapped disk became shorter"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}
