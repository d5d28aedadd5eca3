//! What containers write and use: logs, events, attached clients, counters.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_e2e::{Engine, eventually, runtimes};

const SOON: Duration = Duration::from_secs(60);

fn begin(mut command: Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start a client")
}

fn said(child: Child) -> String {
    let output = child.wait_with_output().expect("client");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn stats_tell_what_a_container_uses() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (busy, calm) = (format!("busy-{runtime}"), format!("calm-{runtime}"));
        let work = "dd if=/dev/zero of=/f bs=1M count=20 conv=fsync 2>/dev/null; \
                    sleep 600 </dev/null & while :; do :; done";
        for (name, script) in [(&busy, work), (&calm, "exec sleep 600")] {
            let run = ["run", "-d", "--name", name, "--runtime", runtime, "-m", "64m", "busybox"];
            engine.docker(&[&run[..], &["sh", "-c", script]].concat()).succeeded();
        }
        let number = |name: &str, what: &str| -> f64 {
            let ask = ["stats", "--no-stream", "--format", what, name];
            let text = engine.docker(&ask).succeeded().text();
            text.trim_end_matches('%').parse().unwrap_or_else(|_| panic!("{what}: {text}"))
        };
        eventually("it works", SOON, || number(&busy, "{{.PIDs}}") >= 2.0);
        eventually("CPU is seen", SOON, || number(&busy, "{{.CPUPerc}}") > 20.0);
        assert!(number(&calm, "{{.CPUPerc}}") < 20.0, "{runtime}");
        eventually("what it wrote is seen", SOON, || {
            let ask = ["stats", "--no-stream", "--format", "{{.BlockIO}}", &busy];
            let text = engine.docker(&ask).succeeded().text();
            text.split(" / ").nth(1).is_some_and(|written| written.contains("MB"))
        });
        let ask = ["stats", "--no-stream", "--format", "{{.MemUsage}}", &calm];
        let memory = engine.docker(&ask).succeeded().text();
        assert!(memory.ends_with("/ 64MiB"), "{runtime}: {memory}");
        let table = engine.hyper(&["stats", "--no-stream"]).succeeded().text();
        assert!(table.contains(&busy) && table.contains(&calm), "{table}");
        let report = engine.pod_report(&busy);
        for part in [
            "hypervisor_private_bytes",
            "supervisor_private_bytes",
            "guest_memory_used_bytes",
            "hypervisor_cpu_ns",
            "supervisor_cpu_ns",
            "guest_cpu_ns",
        ] {
            assert!(
                report[part].as_u64().is_some_and(|value| value > 0),
                "{runtime} {part}: {report}"
            );
        }
        engine.docker(&["rm", "-f", &busy]).succeeded();
        // A stream ends with its container.
        let stream = begin(engine.docker_command(&["stats", "--format", "{{.Name}}", &calm]));
        std::thread::sleep(Duration::from_secs(3));
        engine.docker(&["pause", &calm]).succeeded();
        // What it did before it was paused may still count.
        assert!(number(&calm, "{{.CPUPerc}}") < 1.0, "{runtime}");
        engine.docker(&["rm", "-f", &calm]).succeeded();
        let mut stream = stream;
        std::thread::sleep(Duration::from_secs(2));
        let _ = stream.kill();
        assert!(said(stream).matches(&calm).count() >= 2, "{runtime}");
    }
}

#[test]
fn logs_are_rotated_filtered_and_complete() {
    let mut engine = Engine::with_busybox();
    let script = "i=0; while [ $i -lt 4000 ]; do echo line $i of many that are written; i=$((i+1)); \
                  done; printf end";
    for driver in ["json-file", "local"] {
        let name = format!("talk-{driver}");
        let options =
            ["--log-driver", driver, "--log-opt", "max-size=100k", "--log-opt", "max-file=3"];
        let run = ["create", "--name", &name];
        let command = ["busybox", "sh", "-c", script];
        engine.docker(&[&run[..], &options[..], &command[..]].concat()).succeeded();
        engine.docker(&["start", "-a", &name]).succeeded();
        let text = engine.docker(&["logs", &name]).succeeded().text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() > 1000 && lines.len() < 4001, "{driver}: {}", lines.len());
        assert_eq!(lines.last(), Some(&"end"), "{driver}");
        let first = 4001 - lines.len();
        for (at, line) in lines[..lines.len() - 1].iter().enumerate() {
            assert_eq!(*line, format!("line {} of many that are written", first + at), "{driver}");
        }
        let id = engine.inspect(&name, "{{.Id}}");
        let dir = engine.dir().join("data/containers").join(id);
        let files = std::fs::read_dir(dir).expect("directory").flatten();
        let logs = files.filter(|file| file.file_name().to_string_lossy().contains(".log")).count();
        assert_eq!(logs, 3, "{driver}");
        let tail = engine.docker(&["logs", "-n", "2", &name]).succeeded().text();
        assert_eq!(tail, "line 3999 of many that are written\nend");
    }
    let slow = "for i in 1 2 3 4 5 6; do echo line $i; sleep 1; done";
    engine.docker(&["run", "-d", "--name", "slow", "busybox", "sh", "-c", slow]).succeeded();
    let follower = begin(engine.docker_command(&["logs", "-f", "-t", "slow"]));
    assert_eq!(engine.docker(&["wait", "slow"]).succeeded().text(), "0");
    let stamped = said(follower);
    let third = stamped.lines().nth(2).expect("a third line");
    let (time, line) = third.split_once(' ').expect("a time");
    assert_eq!(line, "line 3");
    let since = engine.docker(&["logs", "--since", time, "slow"]).succeeded().text();
    assert_eq!(since, "line 3\nline 4\nline 5\nline 6");
    let until = engine.docker(&["logs", "--until", time, "slow"]).succeeded().text();
    assert_eq!(until, "line 1\nline 2\nline 3");
    // A follower sees the runs that a restart policy makes.
    let again =
        ["run", "-d", "--name", "again", "--restart", "on-failure:2", "busybox", "sh", "-c"];
    engine.docker(&[&again[..], &["sleep 1; echo ran; exit 1"]].concat()).succeeded();
    assert_eq!(engine.docker(&["logs", "-f", "again"]).succeeded().text(), "ran\nran\nran");
    engine
        .docker(&["run", "--log-driver", "none", "--name", "mute", "busybox", "echo", "x"])
        .succeeded();
    engine.docker(&["logs", "mute"]).exited(1).says(&["does not support reading"]);
    let journald = ["create", "--log-driver", "journald", "busybox"];
    engine.docker(&journald).exited(1).says(&["journald", "json-file"]);
    // hyperd dies while a container writes and its log rotates.
    let options = ["--log-opt", "max-size=20k", "--log-opt", "max-file=100"];
    let run = ["run", "-d", "--name", "through"];
    let script =
        "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; sleep 2; printf end";
    let command = ["busybox", "sh", "-c", script];
    engine.docker(&[&run[..], &options[..], &command[..]].concat()).succeeded();
    engine.kill_daemon();
    std::thread::sleep(Duration::from_secs(1));
    engine.restart();
    let text = engine.docker(&["logs", "-f", "through"]).succeeded().text();
    let wanted: Vec<String> = (0..3000).map(|n| format!("line {n}")).collect();
    assert_eq!(text, wanted.join("\n") + "\nend");
}

#[test]
fn events_have_dockers_fields_and_outlive_hyperd() {
    let mut engine = Engine::with_busybox();
    let run = ["run", "-d", "--name", "one", "--label", "tier=front", "busybox", "sleep", "600"];
    engine.docker(&run).succeeded();
    engine.docker(&["exec", "one", "true"]).succeeded();
    engine.docker(&["pause", "one"]).succeeded();
    engine.docker(&["unpause", "one"]).succeeded();
    engine.docker(&["rename", "one", "two"]).succeeded();
    engine.docker(&["top", "two"]).succeeded();
    engine.docker(&["kill", "-s", "KILL", "two"]).succeeded();
    engine.kill_daemon();
    engine.restart();
    engine.docker(&["rm", "two"]).succeeded();
    std::thread::sleep(Duration::from_millis(1100));
    let listed = |filters: &[&str], format: &str| {
        let begin = ["events", "--since", "10m", "--until", "0s", "--format", format];
        engine.docker(&[&begin[..], filters].concat()).succeeded().text()
    };
    let actions = listed(&["--filter", "type=container"], "{{.Action}}");
    let actions: Vec<&str> = actions.lines().collect();
    let wanted = [
        "create",
        "start",
        "exec_create: true",
        "exec_start: true",
        "exec_die",
        "pause",
        "unpause",
        "rename",
        "top",
        "kill",
        "die",
        "destroy",
    ];
    assert_eq!(actions, wanted);
    let die = listed(&["--filter", "event=die"], "{{json .Actor.Attributes}}");
    let die: serde_json::Value = serde_json::from_str(&die).expect("JSON");
    assert_eq!(die["exitCode"], "137");
    assert_eq!((&die["name"], &die["image"]), (&"two".into(), &"busybox".into()));
    assert!(die["execDuration"].as_str().is_some_and(|text| text.parse::<u64>().is_ok()), "{die}");
    assert_eq!(listed(&["--filter", "event=kill"], "{{.Actor.Attributes.signal}}"), "9");
    let renamed = listed(&["--filter", "event=rename"], "{{.Actor.Attributes.oldName}}");
    assert_eq!(renamed, "/one");
    let front = ["--filter", "label=tier=front", "--filter", "event=start"];
    assert_eq!(listed(&front, "{{.Action}}"), "start");
    assert_eq!(listed(&["--filter", "container=nosuch"], "{{.Action}}"), "");
    assert_eq!(listed(&["--filter", "type=image", "--filter", "event=load"], "{{.Type}}"), "image");
}

#[test]
fn several_clients_share_a_container() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("cat-{runtime}");
        let run = ["run", "-d", "-i", "--name", &name, "--runtime", runtime, "busybox", "cat"];
        engine.docker(&run).succeeded();
        let mut clients: Vec<Child> =
            (0..3).map(|_| begin(engine.docker_command(&["attach", &name]))).collect();
        std::thread::sleep(Duration::from_secs(1));
        for (number, client) in clients.iter_mut().enumerate() {
            let stdin = client.stdin.as_mut().expect("piped");
            stdin.write_all(format!("from {number}\n").as_bytes()).expect("type");
            stdin.flush().expect("type");
            std::thread::sleep(Duration::from_millis(300));
        }
        for client in &mut clients {
            let mut text = [0; 21];
            client.stdout.as_mut().expect("piped").read_exact(&mut text).expect("output");
            assert_eq!(&text, b"from 0\nfrom 1\nfrom 2\n", "{runtime}");
        }
        // One goes away: the others, and the container, stay.
        clients.remove(0).kill().expect("kill a client");
        let stdin = clients[0].stdin.as_mut().expect("piped");
        stdin.write_all(b"still\n").expect("type");
        for client in &mut clients {
            let mut text = [0; 6];
            client.stdout.as_mut().expect("piped").read_exact(&mut text).expect("output");
            assert_eq!(&text, b"still\n", "{runtime}");
        }
        engine.docker(&["kill", &name]).succeeded();
        for mut client in clients {
            client.wait().expect("reap");
        }
    }
}

#[test]
fn much_goes_through_an_exec_and_a_half_closed_stdin_ends_it() {
    let engine = Engine::with_busybox();
    let megabytes: usize =
        std::env::var("HYPER_E2E_STREAM_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    for runtime in runtimes() {
        let name = format!("pipe-{runtime}");
        // Emulated guests move a tenth of it.
        let bytes = (if runtime == "qemu" { megabytes / 5 } else { megabytes }) << 20;
        let run = ["run", "-d", "--name", &name, "--runtime", runtime, "busybox", "sleep", "600"];
        engine.docker(&run).succeeded();
        // In: counted after the end of input; the answer comes over the half-closed connection.
        let mut client = begin(engine.docker_command(&["exec", "-i", &name, "wc", "-c"]));
        let mut stdin = client.stdin.take().expect("piped");
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..bytes >> 20 {
            stdin.write_all(&chunk).expect("write");
        }
        drop(stdin);
        assert_eq!(said(client).trim(), bytes.to_string(), "{runtime}");
        // Out: a reader that pauses slows the writer, and nothing is lost or kept in memory.
        let count = format!("head -c {bytes} /dev/zero");
        let mut client = begin(engine.docker_command(&["exec", &name, "sh", "-c", &count]));
        let mut stdout = client.stdout.take().expect("piped");
        let before = engine.pod_report(&name)["supervisor_private_bytes"].as_u64().expect("bytes");
        std::thread::sleep(Duration::from_secs(2));
        let after = engine.pod_report(&name)["supervisor_private_bytes"].as_u64().expect("bytes");
        assert!(after < before + (16 << 20), "{runtime}: {before} then {after}");
        let mut buffer = vec![0; 1 << 20];
        let mut seen = 0;
        loop {
            match stdout.read(&mut buffer).expect("read") {
                0 => break,
                read => seen += read,
            }
        }
        assert_eq!(seen, bytes, "{runtime}");
        client.wait().expect("reap");
    }
}
