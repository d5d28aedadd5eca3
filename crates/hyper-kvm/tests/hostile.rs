//! Guests that want no good, on any host with a KVM, also one that cannot run Linux: their kernels
//! are a page of plain code. Whatever they do, the monitor ends with them, in time, and says how.
//! Elsewhere skipped, unless `HYPER_REQUIRE_KVM=1`; `scripts/test lab` runs them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper_hypervisor::{Disk, Extent, GuestKernel, Hypervisor as _, Vm, VmConfig, VmExit};
use hyper_kvm::{Kvm, Options};
use tokio::time::timeout;

const GARBAGE: u32 = 0;
const STORM: u32 = 1;
const TRIPLE_FAULT: u32 = 2;
const SPIN: u32 = 3;
const ELSEWHERE: u32 = 4;
const ENDLESS: u32 = 5;
/// The code may be emulated, in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Ground {
    work: tempfile::TempDir,
    kvm: Kvm,
}

fn ground() -> Option<Ground> {
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if open.is_err() || !rustix::process::geteuid().is_root() {
        let lacking = "no /dev/kvm that can be opened, or not root";
        assert_ne!(std::env::var("HYPER_REQUIRE_KVM").as_deref(), Ok("1"), "{lacking}");
        println!("SKIPPED: {lacking}");
        return None;
    }
    let work = tempfile::tempdir().expect("a directory");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(work.path(), mode).expect("chmod");
    Some(Ground { work, kvm: Kvm::new(Options::default()) })
}

impl Ground {
    async fn start(&self, mode: u32, vcpus: u32) -> Box<dyn Vm> {
        let kernel = build(self.work.path(), mode);
        let initramfs = self.file("initramfs", 4096);
        let disk = |name: &str, read_only, mapped| {
            let extents = vec![self.extent(name)];
            Disk { extents, read_only, ephemeral: !read_only, mapped }
        };
        let disks = vec![
            disk("image", true, false),
            disk("upper", false, false),
            disk("mapped", true, true),
        ];
        let config = VmConfig {
            id: format!("hostile-{mode}-{}", std::process::id()),
            kernel: GuestKernel { kernel, initramfs, extra_cmdline: vec![] },
            vcpus,
            memory_bytes: 64 << 20,
            disks,
            nics: vec![],
            late_disks: true,
            share: None,
            run_dir: self.work.path().to_owned(),
            cgroup: None,
        };
        let mut vm = self.kvm.launch(config).await.expect("launches");
        // Somebody is at the other end.
        let link = vm.take_link().expect("a link");
        tokio::spawn(async move {
            let (mut reader, _writer) = tokio::io::split(link);
            let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
        });
        vm
    }

    fn extent(&self, name: &str) -> Extent {
        Extent { path: self.file(name, 1 << 20), bytes: 1 << 20 }
    }

    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.work.path().join(name);
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(bytes).expect("room");
        path
    }

    /// Runs one that reaches its end, which nothing may cut short.
    async fn survives(&self, mode: u32) {
        let vm = self.start(mode, 1).await;
        let exit = timeout(PATIENCE, vm.wait()).await;
        let console = vm.console();
        assert!(console.contains("survived"), "{exit:?}: {console:?}");
        assert_eq!(exit.expect("ends"), VmExit::PoweredOff, "{console:?}");
    }
}

fn build(work: &Path, mode: u32) -> PathBuf {
    let kernel = work.join(format!("kernel{mode}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile.c");
    let built = Command::new("cc")
        .args(["-O1", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-mno-red-zone"])
        .args(["-mgeneral-regs-only", "-nostdlib", "-static", "-Wl,-Ttext=0x1000000"])
        .args(["-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-z,max-page-size=4096"])
        .arg(format!("-DMODE={mode}"))
        .arg("-o")
        .args([&kernel, &source])
        .output()
        .expect("cc");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    kernel
}

#[tokio::test]
async fn garbage_in_queues_and_registers_is_survived() {
    let Some(ground) = ground() else { return };
    ground.survives(GARBAGE).await;
}

/// Rings whose index is beyond their length once kept the device's thread busy for good, and with
/// it the CPU that reset the device.
#[tokio::test]
async fn chains_without_end_are_survived() {
    let Some(ground) = ground() else { return };
    ground.survives(ENDLESS).await;
}

#[tokio::test]
async fn a_storm_of_kicks_is_survived() {
    let Some(ground) = ground() else { return };
    ground.survives(STORM).await;
}

#[tokio::test]
async fn memory_and_ports_that_are_not_there_are_survived() {
    let Some(ground) = ground() else { return };
    ground.survives(ELSEWHERE).await;
}

#[tokio::test]
async fn a_triple_fault_is_told_as_what_it_is() {
    let Some(ground) = ground() else { return };
    let vm = ground.start(TRIPLE_FAULT, 1).await;
    match timeout(PATIENCE, vm.wait()).await.unwrap() {
        VmExit::Failed { detail, .. } => {
            // A KVM that emulates gives up at the same place with other words.
            let told = detail.contains("triple fault") || detail.contains("KVM");
            assert!(told, "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn cpus_that_spin_are_paused_and_killed_at_once() {
    let Some(ground) = ground() else { return };
    let vm = ground.start(SPIN, 2).await;
    let deadline = Instant::now() + PATIENCE;
    while !vm.console().contains("spinning") {
        assert!(Instant::now() < deadline, "{:?}", vm.console());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    timeout(Duration::from_secs(10), vm.pause()).await.unwrap().unwrap();
    vm.resume().await.unwrap();
    timeout(Duration::from_secs(10), vm.kill()).await.unwrap();
    assert_eq!(vm.wait().await, VmExit::Killed);
}
