//! Guests that were given more memory while they ran, where KVM works; see `contract.rs`, which
//! tries it for a guest alone. Here: what else reaches the guest's memory, and what saves it.

mod host;

use std::fs;
use std::path::{Path, PathBuf};

use hyper_hypervisor::Hypervisor as _;
use hyper_hypervisor::contract::{self, Fixture, Session, Shape};
use hyper_kvm::{Kvm, Options};

const MIB: u64 = 1 << 20;
const BOOTED: u64 = 96 * MIB;
const MORE: u64 = 160 * MIB;
/// So much of the guest's memory that some of it is what it was given.
const MOST: u64 = 180 * MIB;
const DISK: usize = 4 << 20;

/// The memory limit of the process's cgroup, if it has one.
fn limit(pid: u32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, place) = (parts.next()?, parts.next()?, parts.next()?);
        let place = place.trim_start_matches('/');
        let file = match controllers {
            "" => Path::new("/sys/fs/cgroup").join(place).join("memory.max"),
            list if list.split(',').any(|word| word == "memory") => {
                Path::new("/sys/fs/cgroup/memory").join(place).join("memory.limit_in_bytes")
            }
            _ => return None,
        };
        fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

/// A guest that has used memory it was given for its disk, its card and its link, with a device in the
/// monitor and one in the host's kernel; its cgroup's limit goes along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_reach_the_memory_that_came_later() {
    let Some(ready) = host::ready() else { return };
    drop(std::process::Command::new("modprobe").arg("vhost_net").status());
    let tap = host::Tap::make(79, true).expect("a tap");
    let net = tap.net();
    let fixture = ready.fixture(BOOTED, None);
    let disk = contract::disk(&fixture, "read", 7, &[DISK]).unwrap();
    let bytes = fs::read(&disk.extents[0].path).unwrap();
    let kvm = Kvm::new(ready.options);
    let shape = Shape { disks: vec![disk], nics: vec![net.nic.clone()], ..Shape::default() };
    let mut session = Session::boot(&kvm, &fixture, shape).await.unwrap();
    host::talk(&mut session, &net).await;
    let before = limit(session.vm.pid());
    println!("the memory limit of the cgroup: {before:?}");
    for round in 0..2 {
        let has = session.vm.set_memory(BOOTED + MORE).await.unwrap();
        assert_eq!(has, BOOTED + MORE);
        assert_eq!(limit(session.vm.pid()), before.map(|limit| limit + MORE));
        session.ask(&format!("take 0 {MOST}")).await.unwrap();
        // Pages for these come from wherever there are some now.
        let command = format!("read /dev/vda 0 {DISK}");
        let read = session.fetch(&command).await.unwrap();
        assert!(read == bytes, "round {round}: the disk reads as something else");
        session.ask("forget /dev/vda").await.unwrap();
        host::talk(&mut session, &net).await;
        let sent = vec![b'x'; 400];
        let echo = format!("echo {}", String::from_utf8_lossy(&sent));
        assert_eq!(session.ask(&echo).await.unwrap().as_bytes(), sent);
        session.ask("look 0").await.unwrap();
        session.ask("drop 0").await.unwrap();
        let has = session.vm.set_memory(BOOTED).await.unwrap();
        assert_eq!(has, BOOTED);
        assert_eq!(limit(session.vm.pid()), before);
        host::talk(&mut session, &net).await;
    }
    let counted = session.vm.counters().await.unwrap();
    let of = |name: &str| counted[&format!("mem.{name}")];
    assert_eq!((of("bytes_in"), of("bytes_out")), (2 * MORE, 2 * MORE));
    session.power_off().await.unwrap();
}

async fn saved(session: &Session, fixture: &Fixture, name: &str) -> Result<PathBuf, String> {
    let directory = fixture.work.join(name);
    fs::create_dir(&directory).expect("a directory");
    session.vm.pause().await.expect("pause");
    let saved = session.vm.save(&directory).await;
    saved.map(|()| directory).map_err(|error| hyper_adapter::chain(&error))
}

/// A guest with more than it booted with is not saved, and says what to do; one that gave it back
/// is, and so is one that never had more. Clones of both grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_grown_is_saved_when_it_gave_back() {
    let Some(ready) = host::ready() else { return };
    let fixture = ready.fixture(BOOTED, None);
    let kvm = Kvm::new(ready.options);
    let mut session = Session::boot(&kvm, &fixture, Shape::default()).await.unwrap();
    session.ask(&format!("take 0 {}", 4 * MIB)).await.unwrap();
    let fresh = saved(&session, &fixture, "fresh").await.unwrap();
    session.vm.resume().await.unwrap();
    session.vm.set_memory(BOOTED + MORE).await.unwrap();
    let refused = saved(&session, &fixture, "grown").await.unwrap_err();
    assert!(refused.contains("has grown: give it what it booted with first"), "{refused}");
    session.vm.resume().await.unwrap();
    session.ask("look 0").await.unwrap();
    session.vm.set_memory(BOOTED).await.unwrap();
    let again = saved(&session, &fixture, "again").await.unwrap();
    session.vm.kill().await;
    for (name, directory) in [("fresh", fresh), ("again", again)] {
        let clone = Session::go_on(&kvm, &fixture, &directory, Shape::default()).await;
        let mut clone = clone.expect(name);
        clone.ask("look 0").await.expect(name);
        clone.vm.set_memory(BOOTED + MORE).await.expect(name);
        clone.ask(&format!("take 1 {MOST}")).await.expect(name);
        clone.ask("look 1").await.expect(name);
        clone.ask("drop 1").await.expect(name);
        clone.vm.set_memory(BOOTED).await.expect(name);
        clone.ask("look 0").await.expect(name);
        clone.power_off().await.expect(name);
    }
}

/// Memory that was given for good is neither more nor less later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefaulted_memory_does_not_grow() {
    let Some(ready) = host::ready() else { return };
    let fixture = ready.fixture(BOOTED, None);
    let kvm = Kvm::new(Options { prefault: true, ..ready.options });
    assert!(!kvm.capabilities().memory_growth);
    let session = Session::boot(&kvm, &fixture, Shape::default()).await.unwrap();
    let refused = session.vm.set_memory(BOOTED + MORE).await.unwrap_err().to_string();
    assert!(refused.contains("reserved or prefaulted"), "{refused}");
    session.power_off().await.unwrap();
}
