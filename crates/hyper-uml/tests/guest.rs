//! Guests beyond the contract: many disks, least memory, launchers that die, files that may not
//! be read, and what a launch costs. Needs root.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper_hypervisor::{
    Carrier, Disk, Extent, GuestKernel, Hypervisor, Vm, VmConfig, VmError, VmExit, contract,
};
use hyper_uml::{Options, Separation, Uml};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

mod support;

const BOOT: Duration = Duration::from_secs(20);

/// A directory for files of guests, and the contract's guest program in an initramfs.
struct Bench {
    dir: TempDir,
    initramfs: PathBuf,
    uml: Uml,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let initramfs = contract::initramfs(dir.path()).unwrap();
        Self { dir, initramfs, uml: Uml::new(support::options()) }
    }

    fn config(&self, id: &str) -> VmConfig {
        let id = format!("guest-{id}-{}", std::process::id());
        let run_dir = self.dir.path().join(&id);
        std::fs::create_dir(&run_dir).unwrap();
        VmConfig {
            id,
            kernel: GuestKernel {
                kernel: support::kernel(),
                initramfs: self.initramfs.clone(),
                extra_cmdline: Vec::new(),
            },
            vcpus: 1,
            memory_bytes: 64 << 20,
            disks: Vec::new(),
            nics: Vec::new(),
            late_disks: true,
            share: None,
            run_dir,
            cgroup: None,
        }
    }

    fn file(&self, name: &str, content: &[u8]) -> Extent {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Extent { path, bytes: content.len() as u64 }
    }
}

struct Guest {
    vm: Box<dyn Vm>,
    link: BufReader<Box<dyn Carrier>>,
}

impl Guest {
    async fn boot(bench: &Bench, config: VmConfig) -> Self {
        let mut vm = bench.uml.launch(config).await.unwrap();
        let link = BufReader::new(vm.take_link().unwrap());
        let mut guest = Self { vm, link };
        let said = timeout(BOOT, guest.line()).await;
        assert_eq!(said.as_deref(), Ok("ready"), "{}", guest.vm.console());
        guest
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.link.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }

    async fn ask(&mut self, command: &str) -> String {
        self.link.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        timeout(BOOT, self.line()).await.unwrap()
    }
}

fn read_only(extents: Vec<Extent>) -> Disk {
    Disk { extents, read_only: true, ephemeral: false, mapped: false }
}

#[tokio::test]
async fn sixty_extents_have_each_its_device_and_its_content() {
    let bench = Bench::new();
    let mut config = bench.config("many");
    for disk in 0..3_u8 {
        let extents = (0..20_u8).map(|at| {
            let content = vec![disk * 20 + at + 1; 4096 * (usize::from(at) + 1)];
            bench.file(&format!("e{disk}.{at}"), &content)
        });
        config.disks.push(read_only(extents.collect()));
    }
    let disks = config.disks.clone();
    let mut guest = Guest::boot(&bench, config).await;
    for (disk, _) in disks.iter().enumerate() {
        let nodes = bench.uml.guest_devices(&disks, disk);
        assert_eq!(nodes.len(), 20);
        for (at, node) in nodes.iter().enumerate() {
            let bytes = 4096 * (at + 1);
            assert_eq!(guest.ask(&format!("size {node}")).await, format!("ok {bytes}"));
            assert_eq!(guest.ask(&format!("read {node} 0 4096")).await, "ok 4096");
            let mut content = vec![0; 4096];
            guest.link.read_exact(&mut content).await.unwrap();
            assert!(content.iter().all(|byte| usize::from(*byte) == disk * 20 + at + 1));
        }
    }
    guest.vm.kill().await;
}

#[tokio::test]
async fn least_memory_boots_and_less_is_refused() {
    let bench = Bench::new();
    let least = bench.uml.capabilities().min_memory_bytes;
    let mut config = bench.config("least");
    config.memory_bytes = least;
    let mut guest = Guest::boot(&bench, config).await;
    assert_eq!(guest.ask("echo here").await, "ok here");
    let used = guest.vm.usage().await.unwrap();
    assert!(used.private_bytes > 1 << 20 && used.private_bytes < least, "{used:?}");
    let mut config = bench.config("less");
    config.memory_bytes = least - 4096;
    let refused = bench.uml.launch(config).await;
    assert!(matches!(refused, Err(VmError::MemoryTooSmall { .. })));
}

#[tokio::test]
async fn files_the_jail_may_not_read_are_named_with_the_remedy() {
    let bench = Bench::new();
    let extent = bench.file("secret", &[1; 4096]);
    std::fs::set_permissions(&extent.path, PermissionsExt::from_mode(0o600)).unwrap();
    let mut config = bench.config("secret");
    config.disks = vec![read_only(vec![extent.clone()])];
    let Err(VmError::File { path, source, .. }) = bench.uml.launch(config).await else {
        panic!("launched");
    };
    assert_eq!(path, extent.path);
    assert!(source.to_string().contains("readable"), "{source}");
    // A directory that the jail's uid may not enter does not matter: the file is bound.
    std::fs::set_permissions(&extent.path, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::set_permissions(bench.dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut config = bench.config("closed");
    config.disks = vec![read_only(vec![extent])];
    let mut guest = Guest::boot(&bench, config).await;
    assert_eq!(guest.ask("size /dev/ubda").await, "ok 4096");
}

#[tokio::test]
async fn a_killed_launcher_is_told_and_takes_the_guest_along() {
    let bench = Bench::new();
    let config = bench.config("keeper");
    let id = config.id.clone();
    let guest = Guest::boot(&bench, config).await;
    let kernel = guest.vm.pid();
    let init = parent(kernel);
    let keeper = parent(init);
    let kill = std::process::Command::new("kill").args(["-9", &keeper.to_string()]).status();
    assert!(kill.unwrap().success());
    let ended = timeout(BOOT, guest.vm.wait()).await.unwrap();
    assert!(matches!(&ended, VmExit::Failed { detail, .. } if detail.contains("launcher")));
    for pid in [kernel, init, keeper] {
        // A zombie is the business of whoever inherited it.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{id} left {stat}");
    }
}

fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_probe_boots_the_kernel_or_says_why_not() {
    let bench = Bench::new();
    let probe = bench.uml.probe().await;
    for found in &probe.findings {
        println!("{} {} {}", if found.ok { "ok " } else { "NOT" }, found.what, found.detail);
    }
    assert!(probe.usable, "{:?}", probe.findings);
    assert!(probe.version.is_some_and(|version| version.starts_with("7.")));
    let text = bench.file("text", b"#!/bin/sh\nexit 1\n").path;
    let bad = Uml::new(Options { kernel: Some(text), ..support::options() }).probe().await;
    assert!(!bad.usable);
    let none = Uml::new(Options { kernel: None, ..support::options() }).probe().await;
    assert!(!none.usable);
}

/// Every kind of work, so that the allow-list of system calls is complete; and a guest that uses
/// all of its memory is not killed by the host.
#[tokio::test]
async fn a_busy_guest_makes_no_forbidden_call() {
    for separation in [Separation::Ptrace, Separation::Seccomp] {
        let mut bench = Bench::new();
        bench.uml = Uml::new(Options { separation, ..support::options() });
        let mut image = contract::Archive::default();
        for dir in ["bin", "dev"] {
            image.directory(dir);
        }
        image.device("dev/console", 5, 1);
        image.program("bin/busybox", &std::fs::read("/usr/bin/busybox").unwrap());
        image.program("init", include_bytes!("workload/busy.sh"));
        bench.initramfs = bench.file("busy.cpio", &image.finish()).path;
        let mut config = bench.config("busy");
        config.memory_bytes = 96 << 20;
        for name in ["ext4", "raw"] {
            let extents = vec![bench.file(name, &vec![0xa5; 16 << 20])];
            config.disks.push(Disk { extents, read_only: false, ephemeral: true, mapped: false });
        }
        let mut vm = bench.uml.launch(config).await.unwrap();
        let mut link = BufReader::new(vm.take_link().unwrap());
        let mut said = Vec::new();
        let talk = async {
            let mut line = String::new();
            while matches!(link.read_line(&mut line).await, Ok(1..)) {
                said.push(line.trim_end().to_owned());
                line.clear();
            }
            vm.wait().await
        };
        let ended = timeout(Duration::from_secs(120), talk).await;
        let story = format!("{separation:?}: {said:?}, console {}", vm.console());
        assert_eq!(ended, Ok(VmExit::PoweredOff), "{story}");
        assert!(said.iter().any(|line| line == "DONE"), "{story}");
    }
}

#[tokio::test]
async fn what_a_launch_costs() {
    let bench = Bench::new();
    let (mut launches, mut words) = (Vec::new(), Vec::new());
    let mut used = None;
    for run in 0..10 {
        let config = bench.config(&format!("cost{run}"));
        let started = Instant::now();
        let mut vm = bench.uml.launch(config).await.unwrap();
        launches.push(started.elapsed());
        let mut link = vm.take_link().unwrap();
        let mut byte = [0];
        timeout(BOOT, link.read_exact(&mut byte)).await.unwrap().unwrap();
        words.push(started.elapsed());
        used = Some(vm.usage().await.unwrap());
        vm.kill().await;
    }
    launches.sort_unstable();
    words.sort_unstable();
    println!(
        "launch {:?} (best {:?}), first byte {:?} (best {:?}), {used:?}",
        launches[5], launches[0], words[5], words[0]
    );
    assert!(words[0] < Duration::from_secs(5), "{words:?}");
    assert!(used.is_some_and(|used| used.private_bytes < 48 << 20));
}
