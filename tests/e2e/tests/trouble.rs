//! What the host does to pods: full disks, no memory, time that passes while they stand still.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hyper_e2e::{Engine, eventually, image, run, runtimes, text};

/// A small file system of the test's own; unmounted when dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn of(megabytes: u32) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("image");
        let disk = Self { dir };
        let short = Duration::from_secs(30);
        run("truncate", &["-s", &format!("{megabytes}M"), &text(&file)], short).succeeded();
        run("mkfs.ext4", &["-q", "-m", "0", &text(&file)], short).succeeded();
        fs::create_dir(disk.path()).expect("mount point");
        run("mount", &["-o", "loop", &text(&file), &text(&disk.path())], short).succeeded();
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &text(&self.path())], Duration::from_secs(30));
    }
}

#[test]
fn container_that_fills_the_hosts_disk_is_told_and_nothing_else_is_lost() {
    let disk = SmallDisk::of(120);
    let data = text(&disk.path().join("data"));
    let mut engine = Engine::start_with(&["--data-root", &data]);
    engine.hyper(&["load", "-q", "-i", &text(&image("busybox"))]).succeeded();
    for runtime in runtimes() {
        let (calm, greedy) = (format!("calm-{runtime}"), format!("greedy-{runtime}"));
        let run = ["run", "-d", "--runtime", runtime, "--name", &calm, "busybox", "sleep", "600"];
        engine.hyper(&run).succeeded();
        let fill = "dd if=/dev/zero of=/big bs=1M count=300 conv=fsync; echo ended $?";
        let run = ["run", "--runtime", runtime, "--name", &greedy, "busybox", "sh", "-c", fill];
        let said = engine.hyper(&run).succeeded().text();
        assert!(said.contains("ended 1"), "{runtime}: fsync tells: {said}");
        let note = engine.inspect(&greedy, "{{.State.Error}}");
        assert!(note.contains("is full") && note.contains("make room"), "{runtime}: {note}");
        engine.hyper(&["exec", &calm, "echo", "alive"]).succeeded();
        // Removing makes room; the removal itself must not be forgotten for want of it.
        engine.hyper(&["rm", "-f", &greedy, &calm]).succeeded();
        engine.hyper(&["run", "--rm", "--runtime", runtime, "busybox", "true"]).succeeded();
    }
    engine.kill_daemon();
    engine.restart();
    assert_eq!(engine.hyper(&["ps", "-aq"]).succeeded().text(), "");
}

/// The directory of the pod's hypervisor in the hierarchy that limits memory.
fn memory_cgroup(pid: &str) -> (PathBuf, &'static str) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups");
    let place = |line: &str| line.splitn(3, ':').nth(2).unwrap_or_default().to_owned();
    if let Some(line) = groups.lines().find(|line| line.contains(":memory:")) {
        let dir = Path::new("/sys/fs/cgroup/memory").join(place(line).trim_start_matches('/'));
        return (dir, "memory.limit_in_bytes");
    }
    let line = groups.lines().find(|line| line.starts_with("0::")).expect("a v2 cgroup");
    (Path::new("/sys/fs/cgroup").join(place(line).trim_start_matches('/')), "memory.max")
}

#[test]
fn hypervisor_that_the_hosts_oom_killer_ends_is_told() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("heavy-{runtime}");
        let eat = "sleep 2; head -c 90m /dev/zero | tail | wc -c; sleep 60";
        let run = ["run", "-d", "--name", &name, "--runtime", runtime, "busybox", "sh", "-c", eat];
        engine.hyper(&run).succeeded();
        let pid = engine.pod_report(&name)["hypervisor_pid"].as_u64().expect("a pid").to_string();
        let (group, limit) = memory_cgroup(&pid);
        let used = ["memory.usage_in_bytes", "memory.current"]
            .iter()
            .find_map(|file| fs::read_to_string(group.join(file)).ok())
            .and_then(|text| text.trim().parse::<u64>().ok())
            .expect("usage");
        fs::write(group.join(limit), (used + (4 << 20)).to_string()).expect("set the limit");
        eventually("the OOM killer strikes", Duration::from_secs(60), || {
            engine.inspect(&name, "{{.State.Running}}") == "false"
        });
        let state =
            engine.inspect(&name, "{{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Error}}");
        assert!(state.starts_with("137 true "), "{runtime}: {state}");
        assert!(state.contains("OOM killer"), "{runtime}: {state}");
        engine.hyper(&["rm", &name]).succeeded();
    }
}

#[test]
fn image_runs_on_both_hypervisors_at_once() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let run = ["run", "-d", "--name", runtime, "--runtime", runtime, "busybox", "sleep", "600"];
        engine.hyper(&run).succeeded();
    }
    for runtime in runtimes() {
        let again = ["run", "--rm", "--runtime", runtime, "busybox", "echo", "too"];
        assert_eq!(engine.hyper(&again).succeeded().text(), "too");
    }
}

#[test]
fn clock_is_right_after_a_pause() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("clock-{runtime}");
        let run = ["run", "-d", "--name", &name, "--runtime", runtime, "busybox", "sleep", "600"];
        engine.hyper(&run).succeeded();
        engine.docker(&["pause", &name]).succeeded();
        std::thread::sleep(Duration::from_secs(5));
        engine.docker(&["unpause", &name]).succeeded();
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let before = now().as_secs();
        let told = engine.hyper(&["exec", &name, "date", "+%s"]).succeeded().text();
        let guest: u64 = told.parse().expect("seconds");
        assert!(
            (before.saturating_sub(1)..=now().as_secs() + 1).contains(&guest),
            "{runtime}: {guest}, not {before}"
        );
    }
}
