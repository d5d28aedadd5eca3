//! The contract over QEMU with TCG: real guests of the real hyperkernel, in the real jail.
//!
//! Needs root, QEMU and `target/guest/hyperkernel-x86_64`. Where they are missing the test says so
//! and passes, unless `HYPER_REQUIRE_GUESTS=1`.

mod host;

use std::time::Duration;

use hyper_hypervisor::contract::{self, Fixture};
use hyper_qemu::{Accelerator, Options, Qemu};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_keeps_the_contract() {
    let Some(kernel) = host::ready() else { return };
    let work = host::work();
    let tap = host::Tap::make(77, true);
    let fixture = Fixture {
        kernel,
        initramfs: contract::initramfs(work.path()).unwrap(),
        work: work.path().to_owned(),
        memory_bytes: 128 << 20,
        boot: Duration::from_secs(20),
        net: tap.as_ref().map(host::Tap::net),
    };
    let qemu = Qemu::new(Options { accelerator: Accelerator::Tcg, ..Options::default() });
    contract::run(&qemu, &fixture).await.unwrap_or_else(|broken| panic!("{broken}"));
}
