//! The contract over QEMU with KVM, on hosts whose KVM runs unmodified kernels. Elsewhere the test
//! says why not and passes; `scripts/test lab` runs it in the laboratory, where it has to have KVM.

mod host;

use std::time::Duration;

use hyper_hypervisor::contract::{self, Fixture};
use hyper_hypervisor::{Hypervisor as _, Wall};
use hyper_qemu::{Options, Qemu};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_keeps_the_contract_with_kvm() {
    let Some(kernel) = host::ready() else { return };
    // For trying: where KVM is emulated itself, not every CPU feature is emulated right.
    let cpu = std::env::var("HYPER_TEST_CPU").ok();
    let qemu = Qemu::new(Options { cpu, ..Options::default() });
    if qemu.capabilities().wall != Wall::Hardware {
        let findings = qemu.probe().await.findings;
        let why = findings.into_iter().find(|finding| finding.what == "KVM");
        let why = why.map(|finding| finding.detail).unwrap_or_default();
        assert_ne!(std::env::var("HYPER_REQUIRE_KVM").as_deref(), Ok("1"), "{why}");
        println!("SKIPPED: {why}");
        return;
    }
    let work = host::work();
    let tap = host::Tap::make(77, true);
    let fixture = Fixture {
        kernel,
        initramfs: contract::initramfs(work.path()).unwrap(),
        work: work.path().to_owned(),
        memory_bytes: 128 << 20,
        // KVM itself may be emulated: nested in a machine without it.
        boot: Duration::from_secs(60),
        net: tap.as_ref().map(host::Tap::net),
    };
    contract::run(&qemu, &fixture).await.unwrap_or_else(|broken| panic!("{broken}"));
}
