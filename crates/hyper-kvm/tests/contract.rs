//! The contract over KVM, on hosts whose KVM runs unmodified kernels; `cargo xtask lab` gives any
//! machine such a host. Elsewhere the test says why not and passes: nothing that can be installed
//! gives a host KVM.

mod host;

use hyper_hypervisor::contract::{self, Fixture};
use hyper_kvm::Kvm;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kvm_keeps_the_contract() {
    let Some(ready) = host::ready() else { return };
    let tap = host::Tap::make(77, true);
    let fixture = Fixture {
        kernel: ready.kernel,
        initramfs: contract::initramfs(ready.work.path()).unwrap(),
        work: ready.work.path().to_owned(),
        memory_bytes: 128 << 20,
        // KVM itself may be emulated.
        boot: host::BOOT,
        net: tap.as_ref().map(host::Tap::net),
    };
    let kvm = Kvm::new(ready.options);
    contract::run(&kvm, &fixture).await.unwrap_or_else(|broken| panic!("{broken}"));
}
