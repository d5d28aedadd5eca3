//! What the tests need of this machine.
#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

#[path = "../../../hyper-qemu/tests/host/tap.rs"]
mod tap;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_hypervisor::contract::{self, Fixture, Net, Session};
use hyper_kvm::Options;
pub use tap::Tap;
use tokio::net::UdpSocket;

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
    pub fn fixture(&self, memory_bytes: u64, net: Option<Net>) -> Fixture {
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

/// Has the guest hear from the host by its card.
pub async fn talk(session: &mut Session, net: &Net) {
    let socket = UdpSocket::bind((net.host, 0)).await.expect("a socket");
    let port = socket.local_addr().expect("an address").port();
    let serve = async {
        let mut bytes = [0; 64];
        loop {
            let (_, from) = socket.recv_from(&mut bytes).await.expect("a word");
            socket.send_to(b"pong", from).await.expect("an answer");
        }
    };
    let command = format!("udp eth0 {} {} {port}", net.guest, net.host);
    tokio::select! {
        said = session.ask(&command) => assert_eq!(said.as_deref(), Ok("pong")),
        () = serve => unreachable!("it serves for ever"),
    }
}

/// As [`talk`], from each of its two CPUs, which have a queue of the card each.
pub async fn talk_from_both(session: &mut Session, net: &Net) {
    for (cpu, mask) in [(0, "1"), (1, "2")] {
        session.ask(&format!("stay {cpu}")).await.expect("a second CPU");
        talk(session, net).await;
        // The kernel says so when all queues are in use, one for each CPU.
        let path = format!("/sys/class/net/eth0/queues/tx-{cpu}/xps_cpus");
        let sends = session.fetch(&format!("cat {path}")).await.expect("a queue for each");
        assert_eq!(String::from_utf8_lossy(&sends).trim().trim_start_matches(['0', ',']), mask);
    }
}
