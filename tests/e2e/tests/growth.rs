//! Containers and pods that are given more memory while they run, on runtimes that can (`kvm`, see
//! `scripts/test`); that the others refuse is told by `restart.rs` and `pod.rs`.

use std::time::Duration;

use hyper_e2e::{Engine, eventually, runtimes};

const MIB: u64 = 1 << 20;
/// What a guest has over its containers' limits.
const OVERHEAD: u64 = 64 * MIB;
const SOON: Duration = Duration::from_secs(60);

fn can() -> bool {
    let can = runtimes().contains(&"kvm");
    if !can {
        println!("SKIPPED: none of the runtimes {:?} grows", runtimes());
    }
    can
}

fn of(engine: &Engine, name: &str, what: &str) -> u64 {
    engine.pod_report(name)[what].as_u64().expect("a number")
}

#[test]
fn a_container_is_given_more_memory_uses_it_and_gives_it_back() {
    if !can() {
        return;
    }
    let engine = Engine::with_busybox();
    let shared = engine.dir().join("shared");
    std::fs::create_dir(&shared).expect("a directory");
    let volume = format!("{}:/shared", shared.display());
    let run = ["run", "-d", "--name", "small", "--runtime", "kvm", "-m", "128m", "-v", &volume];
    let more = ["--tmpfs", "/big:size=400m", "busybox", "sleep", "600"];
    engine.docker(&[&run[..], &more[..]].concat()).succeeded();
    let exec = |script: &str| engine.docker(&["exec", "small", "sh", "-c", script]);
    let update = |bytes: &str| {
        engine.docker(&["update", "--memory", bytes, "--memory-swap", bytes, "small"])
    };
    let guest = |what: &str| of(&engine, "small", what);
    let limit = || exec("cat /sys/fs/cgroup/memory.max").succeeded().text();
    let fill = "dd if=/dev/zero of=/big/it bs=1M count=300 2>/dev/null && md5sum </big/it";
    assert_eq!(guest("memory_bytes"), 128 * MIB + OVERHEAD);
    let before = guest("hypervisor_resident_bytes");
    for round in 0..2 {
        update("512m").succeeded();
        assert_eq!(guest("memory_bytes"), 512 * MIB + OVERHEAD);
        assert_eq!(limit(), (512 * MIB).to_string());
        assert_eq!(engine.inspect("small", "{{.HostConfig.Memory}}"), (512 * MIB).to_string());
        let stats = ["stats", "--no-stream", "--format", "{{.MemUsage}}", "small"];
        let shown = engine.docker(&stats).succeeded().text();
        assert!(shown.contains("512MiB"), "{shown}");
        let sum = exec(fill).succeeded().text();
        let full = guest("hypervisor_resident_bytes");
        assert!(full > before + 200 * MIB, "round {round}: {before} bytes, then {full}");
        // The server of shared directories reaches the memory that came later.
        let bytes: Vec<u8> = (0..8_000_000_u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(shared.join("in"), &bytes).expect("a file");
        exec("cp /shared/in /shared/out").succeeded();
        assert!(std::fs::read(shared.join("out")).expect("written") == bytes, "round {round}");
        assert_eq!(exec("md5sum </big/it").succeeded().text(), sum, "round {round}");
        exec("rm /big/it /shared/out").succeeded();
        update("128m").succeeded();
        assert_eq!(limit(), (128 * MIB).to_string());
        assert_eq!(guest("memory_bytes"), 128 * MIB + OVERHEAD, "round {round}");
        eventually("the host has its memory back", SOON, || {
            guest("hypervisor_resident_bytes") + 150 * MIB < full
        });
    }
    // More than there is, and a container that goes on with what it had.
    update("900g").exited(1).says(&["room for"]);
    assert_eq!(limit(), (128 * MIB).to_string());
    update("256m").succeeded();
    engine.docker(&["restart", "-t", "0", "small"]).succeeded();
    assert_eq!(guest("memory_bytes"), 256 * MIB + OVERHEAD);
    assert_eq!(limit(), (256 * MIB).to_string());
    engine.docker(&["rm", "-f", "small"]).succeeded();
}

#[test]
fn a_pod_is_given_more_memory_and_less() {
    if !can() {
        return;
    }
    let engine = Engine::with_busybox();
    let create = ["pod", "create", "--runtime", "kvm", "--memory", "192m", "shop"];
    engine.hyper(&create).succeeded();
    engine.hyper(&["pod", "start", "shop"]).succeeded();
    let run = ["run", "-d", "--pod", "shop", "--name", "web", "--tmpfs", "/big:size=400m"];
    engine.hyper(&[&run[..], &["busybox", "sleep", "600"]].concat()).succeeded();
    let update = |bytes: &str| engine.hyper(&["pod", "update", "--memory", bytes, "shop"]);
    let fill = "dd if=/dev/zero of=/big/it bs=1M count=300";
    let exec = |script: &str| engine.docker(&["exec", "web", "sh", "-c", script]);
    update("576m").succeeded();
    assert_eq!(of(&engine, "web", "memory_bytes"), 576 * MIB);
    exec(fill).succeeded();
    // What the containers hold stays theirs.
    update("192m").exited(1).says(&["the containers use"]);
    assert_eq!(of(&engine, "web", "memory_bytes"), 576 * MIB);
    exec("rm /big/it").succeeded();
    update("160m").succeeded();
    assert_eq!(of(&engine, "web", "memory_bytes"), 192 * MIB, "what it booted with stays");
    // The pod's own limit is the rule: a container of it gets no more.
    engine.docker(&["update", "--memory", "300m", "--memory-swap", "300m", "web"]).succeeded();
    assert_eq!(of(&engine, "web", "memory_bytes"), 192 * MIB);
    engine.hyper(&["pod", "rm", "-f", "shop"]).succeeded();
}
