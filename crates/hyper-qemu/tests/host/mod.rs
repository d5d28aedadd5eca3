//! What the tests need of this machine.
#![allow(dead_code, reason = "each test program uses a part")]

mod tap;

use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(unused_imports, reason = "each test program uses a part")]
pub use tap::Tap;

/// The guest kernel, when guests can run here; makes sure that the jail's program is built.
pub fn ready() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/hyper-qemu");
    let kernel = std::env::var_os("HYPER_TEST_KERNEL")
        .map_or_else(|| root.join("target/guest/hyperkernel-x86_64"), PathBuf::from);
    let lacking = if !kernel.exists() {
        format!("no kernel `{}`: run `cargo xtask kernel`", kernel.display())
    } else if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        "no `qemu-system-x86_64`: apt-get install qemu-system-x86".to_owned()
    } else if !rustix::process::geteuid().is_root() {
        "not root".to_owned()
    } else {
        launcher(root);
        return Some(kernel);
    };
    assert_ne!(std::env::var("HYPER_REQUIRE_GUESTS").as_deref(), Ok("1"), "{lacking}");
    println!("SKIPPED: {lacking}");
    None
}

/// Cargo builds the programs of a dependency only when asked.
fn launcher(root: &Path) {
    // On a machine that got the built tests only, e.g. a laboratory without Cargo.
    if std::env::var_os("HYPER_LIBEXEC").is_some() {
        return;
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "hyper-jail", "--bin", "hyper-jail"])
        .current_dir(root)
        .status();
    assert!(built.is_ok_and(|status| status.success()), "build hyper-jail");
}

/// A private directory. The jail's user must be able to read what is in it.
pub fn work() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let work = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(work.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    work
}
