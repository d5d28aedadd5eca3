//! What the contract does not ask: QEMU's own ways to be used up, to fail, and to be walled in.

mod host;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper_hypervisor::contract::{self, Fixture, Session, Shape};
use hyper_hypervisor::{Disk, Hypervisor as _, VmConfig, VmError, VmExit, Wall};
use hyper_qemu::{Accelerator, Options, Qemu};

struct Ground {
    fixture: Fixture,
    qemu: Qemu,
    _work: tempfile::TempDir,
}

fn ground() -> Option<Ground> {
    let kernel = host::ready()?;
    let work = host::work();
    let fixture = Fixture {
        kernel: kernel.clone(),
        initramfs: contract::initramfs(work.path()).expect("cc -static"),
        work: work.path().to_owned(),
        memory_bytes: 128 << 20,
        boot: Duration::from_secs(20),
        net: None,
    };
    Some(Ground { fixture, qemu: qemu(None, Some(kernel)), _work: work })
}

fn qemu(program: Option<PathBuf>, kernel: Option<PathBuf>) -> Qemu {
    Qemu::new(Options { program, accelerator: Accelerator::Tcg, kernel, ..Options::default() })
}

fn config(fixture: &Fixture, name: &str) -> VmConfig {
    VmConfig {
        id: format!("{name}-{}", std::process::id()),
        kernel: hyper_hypervisor::GuestKernel {
            kernel: fixture.kernel.clone(),
            initramfs: fixture.initramfs.clone(),
            extra_cmdline: vec![],
        },
        vcpus: 1,
        memory_bytes: fixture.memory_bytes,
        disks: vec![],
        nics: vec![],
        late_disks: true,
        share: None,
        run_dir: fixture.work.clone(),
        cgroup: None,
    }
}

/// Fills all slots of a guest and reads every disk. Names start with `name`.
async fn fill(ground: &Ground, name: &str, at_launch: usize, later: usize) {
    let disk = |at: usize, read_only: bool| {
        let file = format!("{name}{at}");
        let sizes: &[usize] = if at.is_multiple_of(2) { &[8192, 4096] } else { &[8192] };
        let made = contract::disk(
            &ground.fixture,
            &file,
            at as u64,
            if read_only { sizes } else { &[8192] },
        );
        Disk { read_only, ..made.expect("a disk") }
    };
    let mut all: Vec<Disk> = (0..at_launch).map(|at| disk(at, true)).collect();
    let shape = Shape { disks: all.clone(), ..Shape::default() };
    let mut session = Session::boot(&ground.qemu, &ground.fixture, shape).await.expect("boots");
    for at in at_launch..at_launch + later {
        let disk = disk(at, (at - at_launch).is_multiple_of(2));
        let nodes = session.vm.add_disk(disk.clone()).await.expect("a spare slot");
        all.push(disk);
        assert_eq!(nodes, ground.qemu.guest_devices(&all, at));
        session.ask(&format!("forget {}", nodes[0])).await.expect("forgets");
    }
    for (at, disk) in all.iter().enumerate() {
        let wanted: Vec<u8> = disk
            .extents
            .iter()
            .flat_map(|extent| fs::read(&extent.path).expect("a file"))
            .collect();
        let node = ground.qemu.guest_devices(&all, at).concat();
        let got = session.fetch(&format!("read {node} 0 {}", wanted.len())).await;
        assert!(got.expect("reads") == wanted, "{node}");
    }
    for read_only in [true, false] {
        let error = session.vm.add_disk(disk(99, read_only)).await.expect_err("no place left");
        assert!(error.to_string().contains("places are used up"), "{error}");
    }
    session.power_off().await.expect("powers off");
}

#[tokio::test]
async fn every_placeholder_of_each_machine_takes_a_disk() {
    let Some(ground) = ground() else { return };
    // Small: five transports are left for disks. Large: the spares of a guest without disks.
    fill(&ground, "small", 3, 2).await;
    fill(&ground, "large", 0, 12).await;
    // q35: more disks than microvm has transports.
    fill(&ground, "q35", 30, 12).await;
}

#[tokio::test]
async fn a_disk_that_cannot_be_added_leaves_its_slot_free() {
    let Some(ground) = ground() else { return };
    let first = contract::disk(&ground.fixture, "first", 1, &[4096]).unwrap();
    let shape = Shape { disks: vec![first.clone(); 3], ..Shape::default() };
    let mut session = Session::boot(&ground.qemu, &ground.fixture, shape).await.unwrap();
    let mut short = first.clone();
    short.extents[0].bytes = 8192;
    assert!(matches!(session.vm.add_disk(short).await, Err(VmError::File { .. })));
    let node = session.vm.add_disk(first).await.unwrap().concat();
    session.ask(&format!("forget {node}")).await.unwrap();
    session.fetch(&format!("read {node} 0 4096")).await.unwrap();
    session.power_off().await.unwrap();
}

#[tokio::test]
async fn the_process_has_no_privileges_and_sees_nothing() {
    let Some(ground) = ground() else { return };
    let disk = contract::disk(&ground.fixture, "walled", 1, &[4096, 4096]).unwrap();
    let shape = Shape { disks: vec![disk], ..Shape::default() };
    let session = Session::boot(&ground.qemu, &ground.fixture, shape).await.unwrap();
    let proc = PathBuf::from(format!("/proc/{}", session.vm.pid()));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(field("Uid:").iter().all(|uid| uid != "0"), "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set} {status}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".into()], vec!["2".into()]));
    for space in ["mnt", "pid", "net", "ipc", "uts"] {
        let theirs = fs::read_link(proc.join("ns").join(space)).unwrap();
        assert_ne!(theirs, fs::read_link(format!("/proc/self/ns/{space}")).unwrap());
    }
    let entries = |path: &str| {
        let mut names: Vec<String> = fs::read_dir(proc.join("root").join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let root = entries("");
    let allowed = ["dev", "etc", "initramfs", "kernel", "lib", "lib64", "usr"];
    assert!(root.iter().all(|name| allowed.contains(&name.as_str())), "{root:?}");
    assert_eq!(entries("dev"), ["null"]);
    assert_eq!(entries("etc"), ["ld.so.cache"]);
    assert_eq!(entries("usr/bin"), ["qemu-system-x86_64"]);
    // Descriptors: sockets and pipes of ours, the disks, and QEMU's own event descriptors.
    for entry in fs::read_dir(proc.join("fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap().display().to_string();
        let fine = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null", "/null"]
            .iter()
            .any(|kind| target.starts_with(kind))
            || target.contains("/walled.");
        assert!(fine, "QEMU holds {target}");
    }
    session.power_off().await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_missing_or_not_qemu_is_told() {
    let Some(ground) = ground() else { return };
    let none = qemu(Some("/no/such/qemu".into()), None);
    let error = none.launch(config(&ground.fixture, "none")).await.err().unwrap();
    assert!(matches!(&error, VmError::Missing { hint, .. } if hint.contains("apt-get")), "{error}");
    let probe = none.probe().await;
    assert!(!probe.usable && probe.findings.iter().any(|f| !f.ok && f.detail.contains("/no/such")));

    let started = Instant::now();
    let wrong = qemu(Some("/usr/bin/false".into()), None);
    let error = wrong.launch(config(&ground.fixture, "wrong")).await.err().unwrap();
    assert!(error.to_string().contains("ended with code 1"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(!wrong.probe().await.usable);
}

#[tokio::test]
async fn the_probe_says_what_was_found() {
    let Some(ground) = ground() else { return };
    let probe = ground.qemu.probe().await;
    assert!(probe.usable, "{probe:?}");
    assert!(probe.version.as_deref().is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())));
    assert!(probe.findings.iter().any(|f| f.what == "machine `microvm`" && f.ok), "{probe:?}");
    assert_eq!(ground.qemu.capabilities().wall, Wall::Emulated);
}

#[tokio::test]
async fn a_qemu_that_does_not_answer_is_silent_and_can_be_killed() {
    let Some(ground) = ground() else { return };
    let session = Session::boot(&ground.qemu, &ground.fixture, Shape::default()).await.unwrap();
    let pid = session.vm.pid().to_string();
    let stopped = std::process::Command::new("kill").args(["-STOP", &pid]).status().unwrap();
    assert!(stopped.success());
    let error = session.vm.pause().await.unwrap_err();
    assert!(matches!(error, VmError::Silent { .. }), "{error}");
    let started = Instant::now();
    session.vm.kill().await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(session.vm.wait().await, VmExit::Killed);
}

#[tokio::test]
async fn kvm_that_does_not_work_is_never_replaced_in_silence() {
    let Some(ground) = ground() else { return };
    let options = Options { accelerator: Accelerator::Kvm, ..Options::default() };
    let kvm = Qemu::new(options);
    match kvm.launch(config(&ground.fixture, "kvm")).await {
        Err(VmError::Missing { what, hint, .. }) => {
            assert!(what.contains("KVM") && !hint.is_empty());
            assert!(!kvm.probe().await.usable);
        }
        Err(other) => panic!("{other}"),
        Ok(_) => assert_eq!(kvm.capabilities().wall, Wall::Hardware),
    }
}
