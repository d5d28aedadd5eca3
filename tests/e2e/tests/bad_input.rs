//! Bad input and broken parts: a clear error, the state as before, nothing left.

use std::io::Write;
use std::time::{Duration, Instant};

use hyper_e2e::{Engine, eventually, processes, program, run, runtimes};

#[test]
fn command_that_is_missing_or_not_executable() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let run = |command: &str| {
            engine.docker(&["run", "--rm", "--runtime", runtime, "busybox", command])
        };
        run("no-such-command").exited(127).says(&["no-such-command"]);
        run("/etc/passwd").exited(126).says(&["/etc/passwd"]);
    }
    let run = |command: &str| engine.hyper(&["run", "--rm", "busybox", command]);
    run("no-such-command").exited(127).says(&["no-such-command"]);
    run("/etc/passwd").exited(126).says(&["/etc/passwd"]);
    assert_eq!(engine.hyper(&["ps", "-aq"]).text(), "");
}

#[test]
fn exec_of_a_missing_command_is_127() {
    let engine = Engine::with_busybox();
    engine.hyper(&["run", "-d", "--name", "box", "busybox", "sleep", "600"]).succeeded();
    engine.hyper(&["exec", "box", "no-such-command"]).exited(127);
    engine.docker(&["exec", "box", "no-such-command"]).exited(127);
    engine.hyper(&["exec", "box", "true"]).succeeded();
}

#[test]
fn unknown_user_is_named() {
    let engine = Engine::with_busybox();
    engine.hyper(&["run", "--rm", "-u", "nosuch", "busybox", "true"]).exited(125).says(&["nosuch"]);
    assert_eq!(engine.hyper(&["ps", "-aq"]).text(), "");
}

#[test]
fn the_name_is_free_when_the_failure_of_run_rm_is_told() {
    let engine = Engine::with_busybox();
    for _ in 0..5 {
        let run = ["run", "--rm", "--name", "same", "-u", "nosuch", "busybox", "true"];
        engine.docker(&run).exited(125).says(&["nosuch"]);
        engine.hyper(&run).exited(125).says(&["nosuch"]);
    }
    assert_eq!(engine.hyper(&["ps", "-aq"]).text(), "");
}

#[test]
fn names_are_unique_and_checked() {
    let engine = Engine::with_busybox();
    engine.hyper(&["create", "--name", "twin", "busybox"]).succeeded();
    engine.hyper(&["create", "--name", "twin", "busybox"]).exited(125).says(&["twin"]);
    engine.docker(&["create", "--name", "twin", "busybox"]).exited(1).says(&["twin", "in use"]);
    engine.hyper(&["create", "--name", "a/b", "busybox"]).exited(125).says(&["a/b"]);
    assert_eq!(engine.hyper(&["ps", "-aq"]).text().lines().count(), 1);
}

#[test]
fn unknown_runtime_lists_the_known_ones() {
    let engine = Engine::with_busybox();
    engine
        .docker(&["run", "--rm", "--runtime", "nosuch", "busybox", "true"])
        .exited(125)
        .says(&["nosuch", "uml", "qemu"]);
}

#[test]
fn too_little_memory_is_refused() {
    let engine = Engine::with_busybox();
    engine.docker(&["run", "--rm", "-m", "1m", "busybox", "true"]).exited(125).says(&["memory"]);
    assert_eq!(engine.hyper(&["ps", "-aq"]).text(), "");
}

#[test]
fn kernel_that_does_not_boot_is_named() {
    let engine = Engine::with_busybox();
    let bad = engine.dir().join("not-a-kernel");
    std::fs::write(&bad, vec![0_u8; 5000]).expect("write");
    let bad = bad.display().to_string();
    for runtime in runtimes() {
        let started = Instant::now();
        engine
            .hyper(&["run", "--rm", "--runtime", runtime, "--kernel", &bad, "busybox", "true"])
            .exited(125)
            .says(&["kernel"]);
        assert!(started.elapsed() < Duration::from_secs(90), "{runtime}");
    }
    let marker = engine.dir().display().to_string();
    eventually("no process is left", Duration::from_secs(10), || processes(&marker).is_empty());
}

#[test]
fn invalid_json_and_unknown_routes_are_explained() {
    let engine = Engine::start();
    let socket = engine.socket().display().to_string();
    let curl = |arguments: &[&str]| {
        let mut all = vec!["-s", "--unix-socket", socket.as_str(), "-w", "\n%{http_code}"];
        all.extend(arguments);
        run("curl", &all, Duration::from_secs(10)).succeeded().text()
    };
    let url = "http://d/v1.47/containers/create";
    let answer = curl(&[
        "-X",
        "POST",
        "-H",
        "Content-Type: application/json",
        "-d",
        "{\"Image\": nope}",
        url,
    ]);
    assert!(answer.ends_with("400"), "{answer}");
    assert!(answer.contains("\"message\""), "{answer}");
    let answer = curl(&["http://d/v1.47/swarm"]);
    assert!(
        answer.ends_with("501") || answer.ends_with("503") || answer.ends_with("404"),
        "{answer}"
    );
    assert!(answer.contains("\"message\""), "{answer}");
}

#[test]
fn archives_that_escape_or_are_broken_are_refused() {
    let engine = Engine::start();
    for (name, archive) in hostile_archives() {
        let path = engine.dir().join(format!("{name}.tar"));
        std::fs::write(&path, archive).expect("write the archive");
        let outcome = engine.hyper(&["load", "-i", &path.display().to_string()]);
        assert_ne!(outcome.code, 0, "{name} was accepted: {}", outcome.text());
        assert!(outcome.stderr.contains("hyper: "), "{name}: {}", outcome.stderr);
    }
    assert_eq!(engine.hyper(&["images", "-q"]).text(), "");
    assert!(!std::path::Path::new("/tmp/hyper-e2e-escaped").exists());
}

/// docker-archives whose one layer is hostile, and files that are no archives.
fn hostile_archives() -> Vec<(&'static str, Vec<u8>)> {
    let mut archives = vec![
        ("empty", Vec::new()),
        ("noise", vec![0xa5; 4096]),
        ("dotdot", docker_archive(&member("../../tmp/hyper-e2e-escaped", b'0', "", b"x"))),
        ("hardlink-out", docker_archive(&member("link", b'1', "../../../etc/passwd", b""))),
    ];
    let mut short = docker_archive(&member("file", b'0', "", &[7; 3000]));
    short.truncate(short.len() / 2);
    archives.push(("truncated", short));
    archives
}

/// One ustar member.
fn member(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A docker-archive with one layer of one member.
fn docker_archive(layer_member: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut layer = layer_member.to_vec();
    layer.extend_from_slice(&[0; 1024]);
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["hostile:1"],"Layers":["layer.tar"]}]"#;
    let mut bytes = member("layer.tar", b'0', "", &layer);
    bytes.extend(member("config.json", b'0', "", config.as_bytes()));
    bytes.extend(member("manifest.json", b'0', "", manifest.as_bytes()));
    bytes.write_all(&[0; 1024]).expect("write to memory");
    bytes
}

/// Ids of the hypervisor processes below a running container, from the pod's report.
fn hypervisor_pid(engine: &Engine, name: &str) -> String {
    engine.pod_report(name)["hypervisor_pid"].as_u64().expect("a pid").to_string()
}

#[test]
fn killed_hypervisor_ends_the_container_and_says_so() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("victim-{runtime}");
        engine
            .hyper(&["run", "-d", "--name", &name, "--runtime", runtime, "busybox", "sleep", "600"])
            .succeeded();
        let pid = hypervisor_pid(&engine, &name);
        run("kill", &["-9", &pid], Duration::from_secs(5)).succeeded();
        let code = engine.hyper(&["wait", &name]).succeeded().text();
        assert_ne!(code, "0", "{runtime}");
        let reason = engine.inspect(&name, "{{.State.Error}}");
        assert!(reason.contains("hypervisor"), "{runtime}: {reason}");
        engine.hyper(&["rm", &name]).succeeded();
    }
}

#[test]
fn silent_guest_is_reported_and_can_be_removed() {
    let engine = Engine::with_busybox();
    engine
        .hyper(&["run", "-d", "--name", "mute", "--runtime", "qemu", "busybox", "sleep", "600"])
        .succeeded();
    let pid = hypervisor_pid(&engine, "mute");
    run("kill", &["-STOP", &pid], Duration::from_secs(5)).succeeded();
    eventually("the silence is noticed", Duration::from_secs(40), || {
        engine.inspect("mute", "{{.State.Running}}") == "false"
    });
    let reason = engine.inspect("mute", "{{.State.Error}}");
    assert!(!reason.is_empty());
    engine.hyper(&["rm", "-f", "mute"]).succeeded();
}

/// The deadlines of all guests passed at once where a host was suspended or stopped for a snapshot.
#[test]
fn guests_of_a_host_that_stood_still_live_on() {
    let engine = Engine::with_busybox();
    engine
        .hyper(&["run", "-d", "--name", "still", "--runtime", "uml", "busybox", "sleep", "600"])
        .succeeded();
    let guest = hypervisor_pid(&engine, "still");
    let supervisor = supervisor_of(&guest);
    let signal = |signal: &str, pids: &[&str]| {
        run("kill", &[&[signal], pids].concat(), Duration::from_secs(5)).succeeded();
    };
    signal("-STOP", &[&guest]);
    // It is asked every three seconds, and then has seven.
    std::thread::sleep(Duration::from_millis(3500));
    signal("-STOP", &[&supervisor]);
    std::thread::sleep(Duration::from_secs(10));
    signal("-CONT", &[&guest, &supervisor]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(engine.inspect("still", "{{.State.Running}}"), "true");
    engine.hyper(&["exec", "still", "true"]).succeeded();
}

/// The supervisor among the ancestors of a hypervisor.
fn supervisor_of(pid: &str) -> String {
    let mut pid = pid.to_owned();
    loop {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        if field("Name:").is_some_and(|name| name.trim().starts_with("containerd-shim")) {
            return pid;
        }
        pid = field("PPid:").expect("a parent").trim().to_owned();
    }
}

#[test]
fn panicked_guest_is_told_from_a_dead_process() {
    let engine = Engine::with_busybox();
    // The guest's own kernel is asked to crash; nothing of the host's is. Only the kernel of `uml`
    // has such a key; the contract suite lets guests of both panic.
    let crash = "echo c > /proc/sysrq-trigger; sleep 60";
    engine.hyper(&[
        "run",
        "--name",
        "panic",
        "--privileged",
        "--runtime",
        "uml",
        "busybox",
        "sh",
        "-c",
        crash,
    ]);
    assert_ne!(engine.inspect("panic", "{{.State.ExitCode}}"), "0");
    let reason = engine.inspect("panic", "{{.State.Error}}");
    assert!(reason.contains("panic"), "{reason}");
}

#[test]
fn hypervisor_that_is_missing_is_named_with_a_hint() {
    let directory = tempfile::tempdir().expect("directory");
    let config = directory.path().join("supervisor.toml");
    std::fs::write(&config, "[qemu]\nprogram = \"/nonexistent/qemu-system-x86_64\"\n")
        .expect("write");
    let setting = format!("HYPER_SUPERVISOR_CONFIG={}", config.display());
    let supervisor = program("containerd-shim-hyper-v2").display().to_string();
    let outcome =
        run("env", &[&setting, &supervisor, "probe"], Duration::from_secs(60)).succeeded();
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    let qemu = report["hypervisors"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|hypervisor| hypervisor["name"] == "qemu")
        .expect("qemu is listed");
    assert_eq!(qemu["usable"], false);
    let findings = qemu["findings"].to_string();
    assert!(findings.contains("/nonexistent/qemu-system-x86_64"), "{findings}");
    assert!(findings.contains("qemu-system-x86"), "{findings}");
}
