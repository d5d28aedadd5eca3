//! What the tests need of this machine.
#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

#[path = "../../../hyper-qemu/tests/host/tap.rs"]
mod tap;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_hypervisor::contract::{self, Fixture};
use hyper_kvm::Options;
pub use tap::Tap;

/// Longest time to the guest's first word: KVM itself may be emulated.
pub const BOOT: Duration = Duration::from_secs(60);

/// A host on which guests run.
pub struct Ready {
    pub kernel: PathBuf,
    pub options: Options,
    /// A private directory. The jail's user must be able to read what is in it.
    pub work: tempfile::TempDir,
}

impl Ready {
    /// What the contract needs for guests with so much memory.
    pub fn fixture(&self, memory_bytes: u64, net: Option<contract::Net>) -> Fixture {
        Fixture {
            kernel: self.kernel.clone(),
            initramfs: contract::initramfs(self.work.path()).expect("an initramfs"),
            work: self.work.path().to_owned(),
            memory_bytes,
            // KVM itself may be emulated.
            boot: BOOT,
            net,
        }
    }
}

/// The guest kernel and the monitor, where KVM works; `None`, with the reason printed, elsewhere.
/// `HYPER_REQUIRE_KVM=1` makes that a failure.
pub fn ready() -> Option<Ready> {
    use std::os::unix::fs::PermissionsExt as _;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/hyper-kvm");
    let kernel = std::env::var_os("HYPER_TEST_KERNEL")
        .map_or_else(|| root.join("target/guest/hyperkernel-x86_64"), PathBuf::from);
    let lacking = if !kernel.exists() {
        format!("no kernel `{}`: run `make guest`", kernel.display())
    } else if !rustix::process::geteuid().is_root() {
        "not root".to_owned()
    } else if let Err(problem) = hyper_kvm_probe::probe(Duration::from_secs(5)) {
        problem.to_string()
    } else {
        let work = tempfile::tempdir().expect("a temporary directory");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(work.path(), open).expect("chmod");
        // Built by whoever builds this test, see scripts/test.
        return Some(Ready { kernel, options: Options::default(), work });
    };
    assert_ne!(std::env::var("HYPER_REQUIRE_KVM").as_deref(), Ok("1"), "{lacking}");
    println!("SKIPPED: {lacking}");
    None
}
