//! Running containers as users do, with both clients and on every runtime.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, run, runtimes};
use sha2::{Digest, Sha256};

fn host_kernel() -> String {
    run("uname", &["-r"], Duration::from_secs(5)).succeeded().text()
}

#[test]
fn exit_code_of_the_command_is_the_exit_code_of_the_client() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let arguments = ["run", "--rm", "--runtime", runtime, "busybox", "sh", "-c", "exit 17"];
        engine.docker(&arguments).exited(17);
        engine.hyper(&arguments).exited(17);
    }
}

#[test]
fn the_container_has_a_kernel_of_its_own() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let guest = engine
            .docker(&["run", "--rm", "--runtime", runtime, "busybox", "uname", "-r"])
            .succeeded();
        assert!(!guest.text().is_empty());
        assert_ne!(guest.text(), host_kernel(), "{runtime} shows the host's kernel");
    }
}

#[test]
fn output_goes_to_the_stream_it_was_written_to() {
    let engine = Engine::with_busybox();
    let script = "echo out; echo err >&2; printf 'no newline'";
    let outcome = engine.hyper(&["run", "--rm", "busybox", "sh", "-c", script]).succeeded();
    assert_eq!(outcome.text(), "out\nno newline");
    assert_eq!(outcome.stderr, "err\n");
    let outcome = engine.docker(&["run", "--rm", "busybox", "sh", "-c", script]).succeeded();
    assert_eq!(outcome.text(), "out\nno newline");
    assert_eq!(outcome.stderr, "err\n");
}

#[test]
fn two_hundred_megabytes_through_cat_are_unharmed() {
    let engine = Engine::with_busybox();
    let mut input = vec![0_u8; 200 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for chunk in input.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    let wanted = Sha256::digest(&input);
    for runtime in runtimes() {
        let arguments = ["run", "-i", "--rm", "--runtime", runtime, "busybox", "cat"];
        let outcome = engine.hyper_with_input(&arguments, input.clone()).succeeded();
        assert_eq!(outcome.stdout.len(), input.len(), "{runtime}");
        assert_eq!(Sha256::digest(&outcome.stdout), wanted, "{runtime}");
    }
}

#[test]
fn a_terminal_has_size_echo_and_exit_code() {
    let engine = Engine::with_busybox();
    for client in ["docker", "hyper"] {
        let program = match client {
            "docker" => "docker".to_owned(),
            _ => hyper_e2e::program("hyper").display().to_string(),
        };
        let line = format!(
            "stty rows 33 cols 77; {program} -H {} run -it --rm busybox sh; echo client $?",
            engine.host()
        );
        let mut child = std::process::Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start script");
        let mut stdin = child.stdin.take().expect("piped");
        std::thread::sleep(Duration::from_secs(2));
        stdin.write_all(b"stty size; tty; exit 23\n").expect("type");
        let mut text = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut text).expect("screen");
        child.wait().expect("reap");
        assert!(text.contains("33 77"), "{client}: {text}");
        assert!(text.contains("/dev/pts/0"), "{client}: {text}");
        assert!(text.contains("client 23"), "{client}: {text}");
    }
}

#[test]
fn detach_keys_leave_the_container_running() {
    let engine = Engine::with_busybox();
    let line = format!(
        "{} -H {} run -it --name it busybox sh; echo left $?",
        hyper_e2e::program("hyper").display(),
        engine.host()
    );
    let mut child = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start script");
    let mut stdin = child.stdin.take().expect("piped");
    eventually("the container runs", Duration::from_secs(60), || {
        engine.hyper(&["ps", "-q"]).text().len() == 12
    });
    std::thread::sleep(Duration::from_secs(1));
    stdin.write_all(&[0x10, 0x11]).expect("ctrl-p ctrl-q");
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("screen");
    child.wait().expect("reap");
    assert!(text.contains("left 0"), "{text}");
    assert_eq!(engine.inspect("it", "{{.State.Running}}"), "true");
}

#[test]
fn docker_client_lives_a_whole_life() {
    let engine = Engine::with_busybox();
    let id = engine
        .docker(&[
            "run",
            "-d",
            "--name",
            "web",
            "busybox",
            "sh",
            "-c",
            "echo ready; exec sleep 600",
        ])
        .succeeded()
        .text();
    assert_eq!(id.len(), 64);
    let listed = engine.docker(&["ps", "--format", "{{.ID}} {{.Names}} {{.Status}}"]).succeeded();
    assert!(listed.text().starts_with(&format!("{} web Up", &id[..12])), "{}", listed.text());
    eventually("the log has the line", Duration::from_secs(10), || {
        engine.docker(&["logs", "web"]).text() == "ready"
    });
    engine.docker(&["exec", "web", "sh", "-c", "exit 37"]).exited(37);
    assert_eq!(engine.docker(&["exec", "web", "echo", "hi"]).succeeded().text(), "hi");
    assert_eq!(
        engine.docker(&["inspect", "-f", "{{.State.Status}}", "web"]).succeeded().text(),
        "running"
    );
    // The client rounds `--until 0s` down to a whole second: the events are listed a little later.
    eventually("both events are listed", Duration::from_secs(10), || {
        let events =
            engine.docker(&["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"]);
        let text = events.text();
        ["create", "start"].iter().all(|action| text.lines().any(|line| line == *action))
    });
    engine.docker(&["rm", "web"]).exited(1).says(&["running"]);
    engine.docker(&["stop", "-t", "1", "web"]).succeeded();
    assert_eq!(
        engine.docker(&["inspect", "-f", "{{.State.ExitCode}}", "web"]).succeeded().text(),
        "137"
    );
    // The same container starts again, with the files it wrote.
    engine.docker(&["start", "web"]).succeeded();
    engine.docker(&["rm", "-f", "web"]).succeeded();
    engine.docker(&["inspect", "web"]).exited(1);
    assert!(engine.docker(&["images", "-q"]).succeeded().text().len() == 12);
    engine.docker(&["info"]).succeeded();
    engine.docker(&["version"]).succeeded();
    engine.docker(&["rmi", "busybox"]).succeeded();
    assert_eq!(engine.docker(&["images", "-q"]).succeeded().text(), "");
}

#[test]
fn logs_follow_until_the_end() {
    let engine = Engine::with_busybox();
    let script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done; printf last";
    engine.hyper(&["run", "-d", "--name", "talk", "busybox", "sh", "-c", script]).succeeded();
    let wanted = "line 1\nline 2\nline 3\nline 4\nline 5\nlast";
    assert_eq!(engine.docker(&["logs", "-f", "talk"]).succeeded().text(), wanted);
    assert_eq!(engine.hyper(&["logs", "talk"]).succeeded().text(), wanted);
    assert_eq!(engine.hyper(&["logs", "--tail", "2", "talk"]).succeeded().text(), "line 5\nlast");
}

#[test]
fn options_of_run_reach_the_process() {
    let engine = Engine::with_busybox();
    let text = |arguments: &[&str]| {
        let mut all = vec!["run", "--rm"];
        all.extend(arguments);
        engine.docker(&all).succeeded().text()
    };
    assert_eq!(text(&["-e", "A=b c", "busybox", "sh", "-c", "echo $A"]), "b c");
    assert_eq!(text(&["-w", "/tmp", "busybox", "pwd"]), "/tmp");
    assert_eq!(text(&["--hostname", "box", "busybox", "hostname"]), "box");
    assert_eq!(text(&["-u", "www-data", "busybox", "id", "-u"]), "33");
    assert_eq!(text(&["-u", "12:34", "busybox", "sh", "-c", "id -u; id -g"]), "12\n34");
    assert_eq!(text(&["--entrypoint", "echo", "busybox", "x"]), "x");
    assert_eq!(text(&["--pids-limit", "77", "busybox", "cat", "/sys/fs/cgroup/pids.max"]), "77");
    assert_eq!(
        text(&["-m", "64m", "busybox", "cat", "/sys/fs/cgroup/memory.max"]),
        (64 << 20).to_string()
    );
    engine.docker(&["run", "--rm", "--read-only", "busybox", "touch", "/x"]).exited(1);
    assert!(text(&["busybox", "cat", "/proc/1/status"]).contains("Seccomp:\t2"));
    let caps = text(&["--cap-drop", "ALL", "busybox", "grep", "CapEff", "/proc/1/status"]);
    assert!(caps.ends_with("0000000000000000"), "{caps}");
}

#[test]
fn more_cpus_than_a_guest_can_have_are_a_bound() {
    let engine = Engine::with_busybox();
    // Emulated guests with several CPUs are QEMU's to get right.
    for runtime in runtimes().into_iter().filter(|runtime| *runtime != "qemu") {
        let (cpus, queues) = if runtime == "uml" { ("1", "1") } else { ("2", "2") };
        // A bound above the host's CPUs is refused, and the laboratory has one.
        let wish = match runtime {
            "uml" => ["--cpus", "2"],
            _ => ["--annotation", "io.hyper.vcpus=2"],
        };
        let run = ["run", "-d", "--name", runtime, "--runtime", runtime];
        engine.docker(&[&run[..], &wish, &["busybox", "sleep", "1000"]].concat()).succeeded();
        let script = "nproc; ls -d /sys/class/net/eth0/queues/tx-* | wc -l";
        let said = engine.docker(&["exec", runtime, "sh", "-c", script]).succeeded().text();
        assert_eq!(said, format!("{cpus}\n{queues}"), "{runtime}");
        engine.docker(&["update", "-m", "48m", "--memory-swap", "48m", runtime]).succeeded();
        engine.docker(&["rm", "-f", runtime]).succeeded();
    }
    let wish =
        ["run", "--rm", "--runtime", "uml", "--annotation", "io.hyper.vcpus=2", "busybox", "true"];
    engine.docker(&wish).exited(125).says(&["uml", "2 vCPUs", "always 1"]);
}

#[test]
fn a_killed_process_and_oom_are_told_apart() {
    let engine = Engine::with_busybox();
    // Not the first process: that one ignores signals from inside its own pid namespace.
    let victim = "sh -c 'kill -9 $$'; exit $?";
    engine.hyper(&["run", "--rm", "busybox", "sh", "-c", victim]).exited(137);
    let hog = "tail /dev/zero";
    engine.hyper(&["run", "--name", "hog", "-m", "32m", "busybox", "sh", "-c", hog]).exited(137);
    assert_eq!(engine.inspect("hog", "{{.State.OOMKilled}}"), "true");
}
