//! Guests in reserved huge pages, on `kvm` only, so they run when they are asked for: `-- --ignored`. The host's pool of them
//! is changed for the time of the test.

use std::fs;

use hyper_e2e::Engine;

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const CONFIG: &str = "memory = 134217728\n[kvm]\nhuge-pages = \"reserved\"\n";

/// The size of the pool as it was.
struct Before(String);

impl Drop for Before {
    fn drop(&mut self) {
        fs::write(POOL, &self.0).expect("give the pool back");
    }
}

#[test]
#[ignore = "needs a KVM that runs guests"]
fn a_guest_in_reserved_pages_shares_directories_and_one_without_them_says_so() {
    let engine = Engine::apart_with(CONFIG);
    let _before = Before(fs::read_to_string(POOL).expect("a kernel with huge pages"));
    let shared = engine.dir().join("shared");
    fs::create_dir(&shared).expect("a directory");
    fs::write(shared.join("in"), "from the host\n").expect("a file");
    let volume = format!("{}:/shared", shared.display());
    let args = ["run", "--rm", "--runtime", "kvm", "--network", "none", "-v", &volume, "busybox"];
    let script =
        "cat /shared/in; dd if=/dev/zero bs=1M count=8 2>/dev/null | tee /shared/out | wc -c";
    let run = || engine.hyper(&[&args[..], &["sh", "-c", script]].concat());
    fs::write(POOL, "0").expect("empty the pool");
    let refused = run();
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("64 free huge pages of 2 MiB"), "{}", refused.stderr);
    assert!(refused.stderr.contains("sysctl vm.nr_hugepages"), "{}", refused.stderr);
    fs::write(POOL, "72").expect("fill the pool");
    assert_eq!(run().succeeded().text(), "from the host\n8388608");
    assert_eq!(fs::metadata(shared.join("out")).expect("written").len(), 8 << 20);
}
