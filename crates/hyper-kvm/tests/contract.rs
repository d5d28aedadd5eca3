//! The contract over KVM, on hosts whose KVM runs unmodified kernels; `cargo xtask lab` gives any
//! machine such a host. Elsewhere the test says why not and passes: nothing that can be installed
//! gives a host KVM.

mod host;

use hyper_hypervisor::contract;
use hyper_kvm::Kvm;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kvm_keeps_the_contract() {
    let Some(ready) = host::ready() else { return };
    let tap = host::Tap::make(77, true);
    let fixture = ready.fixture(128 << 20, tap.as_ref().map(host::Tap::net));
    let kvm = Kvm::new(ready.options);
    contract::run(&kvm, &fixture).await.unwrap_or_else(|broken| panic!("{broken}"));
}
