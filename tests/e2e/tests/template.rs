//! Pods that are cloned from templates: what is theirs alone, and what happens when there is none.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use hyper_e2e::{Engine, eventually};

const WAIT: Duration = Duration::from_secs(60);
const CLONES: usize = 4;

fn start() -> Engine {
    Engine::apart_with("templates = true\nstate-dir = \"DIR/state\"\n")
}

/// Starts a container that sleeps; says how its guest came to be.
fn origin(engine: &Engine, name: &str, flags: &[&str]) -> String {
    let mut words = vec!["run", "-d", "--name", name];
    words.extend(flags);
    words.extend(["busybox", "sleep", "1000"]);
    engine.docker(&words).succeeded();
    engine.pod_report(name)["origin"].as_str().expect("an origin").to_owned()
}

/// Starts containers until one is a clone, and leaves that one.
fn until_cloned(engine: &Engine, name: &str, flags: &[&str]) {
    eventually("a clone", WAIT, || {
        let origin = origin(engine, name, flags);
        let cloned = origin.starts_with("cloned from template ");
        assert!(cloned || origin == "booted: its template is being made", "{origin}");
        if !cloned {
            engine.docker(&["rm", "-f", name]).succeeded();
        }
        cloned
    });
}

fn said(engine: &Engine, name: &str, script: &str) -> String {
    engine.docker(&["exec", name, "sh", "-c", script]).succeeded().text().trim().to_owned()
}

/// Templates that are there.
fn templates(engine: &Engine) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(engine.dir().join("state/guest-templates"));
    let entries = entries.expect("templates").flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("hello").exists()).collect()
}

#[test]
fn clones_share_nothing_that_tells_them_apart() {
    let engine = start();
    let first = origin(&engine, "first", &["--runtime", "qemu"]);
    assert_eq!(first, "booted: its template is being made");
    until_cloned(&engine, "clone0", &["--runtime", "qemu"]);
    for at in 1..CLONES {
        let origin = origin(&engine, &format!("clone{at}"), &["--runtime", "qemu"]);
        assert!(origin.starts_with("cloned"), "{origin}");
    }
    for script in [
        "cat /proc/sys/kernel/random/boot_id",
        "head -c 16 /dev/urandom | od -t x8",
        "cat /proc/sys/kernel/random/uuid",
        "hostname",
        "cat /sys/class/net/eth0/address",
        "ip -4 -o addr show eth0",
    ] {
        let all: BTreeSet<String> =
            (0..CLONES).map(|at| said(&engine, &format!("clone{at}"), script)).collect();
        assert_eq!(all.len(), CLONES, "{script}: {all:?}");
    }
    // They have the time of now, their own network, and what they write is their own.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    let clock: u64 = said(&engine, "clone1", "date +%s").parse().expect("seconds");
    assert!(clock.abs_diff(now) < 10, "{clock} {now}");
    let address = engine.inspect("clone0", "{{.NetworkSettings.IPAddress}}");
    assert!(said(&engine, "clone0", "ip -4 -o addr show eth0").contains(&address));
    said(&engine, "clone1", &format!("ping -c 1 -W 5 {address}"));
    said(&engine, "clone0", "echo mine >/file; sync");
    said(&engine, "clone1", "test ! -e /file");
    // A restart is a new pod, of the same files.
    engine.docker(&["restart", "-t", "0", "clone0"]).succeeded();
    assert_eq!(said(&engine, "clone0", "cat /file"), "mine");
    let origin = engine.pod_report("clone0")["origin"].clone();
    assert!(origin.as_str().is_some_and(|origin| origin.starts_with("cloned")), "{origin}");
}

#[test]
fn where_there_is_no_clone_the_pod_boots_and_says_why() {
    let engine = start();
    let share = format!("{}:/host:ro", engine.dir().display());
    for (name, flags, why) in [
        ("shares", &["--runtime", "qemu", "-v", &share][..], "shared directories"),
        ("user-mode", &["--runtime", "uml"], "hypervisor `uml` cannot save guests"),
    ] {
        let origin = origin(&engine, name, flags);
        assert!(origin.starts_with("booted: ") && origin.contains(why), "{name}: {origin}");
    }
    let off = ["--runtime", "qemu", "--annotation", "io.hyper.template=off"];
    assert_eq!(origin(&engine, "declined", &off), "booted");
    let bad = ["--rm", "--runtime", "qemu", "--annotation", "io.hyper.template=maybe"];
    let bad = [&["run"], &bad[..], &["busybox", "true"]].concat();
    engine.docker(&bad).exited(125).says(&["io.hyper.template", "`maybe`", "on or off"]);
    let foreign = ["run", "--rm", "--runtime", "runc", "--annotation", "io.hyper.template=on"];
    let foreign = [&foreign[..], &["busybox", "true"]].concat();
    engine.docker(&foreign).exited(125).says(&["runc", "io.hyper.template", "no guest to clone"]);
}

#[test]
fn a_template_that_does_not_go_on_is_removed_and_made_again() {
    let engine = start();
    let flags = ["--runtime", "qemu", "--network", "none"];
    until_cloned(&engine, "good", &flags);
    let known = templates(&engine);
    assert_eq!(known.len(), 1);
    let memory = known[0].join("guest/memory");
    let length = std::fs::metadata(&memory).expect("its memory").len();
    // What is in the middle of its memory is not what it was.
    let file = std::fs::File::options().write(true).open(&memory).expect("its memory");
    file.set_len(length / 2).expect("a shorter one");
    let shorter = origin(&engine, "shorter", &flags);
    assert!(shorter.starts_with("booted: template ") && shorter.contains("bytes"), "{shorter}");
    assert_eq!(templates(&engine), Vec::<PathBuf>::new());
    until_cloned(&engine, "better", &flags);
    // The template goes; those that were cloned from it stay.
    std::fs::remove_dir_all(&templates(&engine)[0]).expect("remove the template");
    assert_eq!(said(&engine, "better", "echo here"), "here");
}

#[test]
fn the_maker_of_a_template_may_be_killed() {
    let engine = start();
    let flags = ["--runtime", "qemu", "--network", "none", "--memory", "96m"];
    let first = origin(&engine, "first", &flags);
    assert_eq!(first, "booted: its template is being made");
    let supervisor = engine.pod_report("first")["supervisor_pid"].as_i64().expect("a pid");
    // A child is its thread's.
    let threads = std::fs::read_dir(format!("/proc/{supervisor}/task")).expect("its threads");
    let children = threads.flatten().map(|thread| thread.path().join("children"));
    let makers: String =
        children.map(|file| std::fs::read_to_string(file).unwrap_or_default() + " ").collect();
    let is_maker = |pid: &&str| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.ends_with(b"\0template\0")
    };
    let maker = makers.split_whitespace().find(is_maker);
    assert!(maker.is_some() || !templates(&engine).is_empty(), "no maker among {makers}");
    // On a fast host it has ended already, and there is nothing to kill.
    if let Some(pid) = maker {
        let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill it");
        let guests = || {
            let listed = hyper_e2e::run("ps", &["-eo", "args"], WAIT).text();
            listed.lines().any(|line| line.contains("-name template-"))
        };
        eventually("its guest is gone", WAIT, || !guests());
    }
    until_cloned(&engine, "later", &flags);
    let left = std::fs::read_dir(engine.dir().join("state/guest-templates")).expect("templates");
    let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
    let new = left.iter().filter(|name| name.to_string_lossy().ends_with(".new")).count();
    assert_eq!(new, 0, "{left:?}");
}
