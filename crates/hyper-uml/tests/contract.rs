//! The contract of the port over real guests. Needs root, a C compiler and
//! `target/guest/hyperkernel-um` (or `HYPER_KERNEL_UM`).
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_hypervisor::contract::{self, Fixture};
use hyper_uml::{Options, Separation, Uml};

mod support;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_mode_linux_keeps_the_contract() {
    let work = tempfile::tempdir().unwrap();
    open_to_all(work.path());
    for separation in [Separation::Ptrace, Separation::Seccomp] {
        println!("{separation:?}");
        let dir = work.path().join(format!("{separation:?}"));
        std::fs::create_dir(&dir).unwrap();
        let fixture = Fixture {
            kernel: support::kernel(),
            initramfs: contract::initramfs(&dir).unwrap(),
            work: dir,
            memory_bytes: 128 << 20,
            boot: Duration::from_secs(20),
            net: support::net(separation == Separation::Ptrace),
        };
        let uml = Uml::new(Options { separation, ..support::options() });
        contract::run(&uml, &fixture).await.unwrap();
    }
}

fn open_to_all(dir: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(PathBuf::from(dir), mode).unwrap();
}
