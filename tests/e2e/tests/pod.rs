//! Pods that several containers share: their life, what is shared in them, what becomes of them
//! when things die.

use std::time::Duration;

use hyper_e2e::{Engine, eventually, run, runtimes};

const SOON: Duration = Duration::from_secs(30);

fn pod_field(engine: &Engine, pod: &str, template: &str) -> String {
    engine.hyper(&["pod", "inspect", "--format", template, pod]).succeeded().text()
}

#[test]
fn containers_of_a_pod_share_loopback_hostname_and_guest() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (pod, web) = (format!("duo-{runtime}"), format!("web-{runtime}"));
        engine.hyper(&["pod", "create", "--runtime", runtime, &pod]).succeeded();
        assert_eq!(pod_field(&engine, &pod, "{{.status}}"), "created");
        engine.hyper(&["pod", "start", &pod]).succeeded();
        assert_eq!(pod_field(&engine, &pod, "{{.status}}"), "running", "a pod may be empty");
        let serve =
            "mkdir /www; hostname > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www";
        let args = ["run", "-d", "--pod", &pod, "--name", &web, "busybox", "sh", "-c", serve];
        engine.hyper(&args).succeeded();
        let fetch = "for i in $(seq 100); do wget -qO- http://localhost:8080/ && exit; \
                     sleep 0.1; done 2>/dev/null; exit 1";
        let args = ["run", "--rm", "--pod", &pod, "busybox", "sh", "-c", fetch];
        assert_eq!(engine.hyper(&args).succeeded().text(), pod, "{runtime}: the pod's name");

        // Two containers, one guest.
        let report: serde_json::Value =
            serde_json::from_str(&pod_field(&engine, &pod, "{{json .report}}")).expect("report");
        assert_eq!(report["hypervisor"], *runtime);
        assert_eq!(report["containers"].as_array().map(Vec::len), Some(2), "sandbox and web");
        let shown = engine.hyper(&["pod", "stats", "--format", "{{.Name}} {{.Guest}}"]);
        assert!(shown.succeeded().text().starts_with(&pod));
        let listed = engine.hyper(&["pod", "ps", "--format", "{{.Name}} {{.Status}} {{.Running}}"]);
        assert_eq!(listed.succeeded().text(), format!("{pod} running 1/1"));
        let said = engine.hyper(&["pod", "exec", &pod, "hostname"]).succeeded().text();
        assert_eq!(said, pod);

        // Docker's way to say it, with Docker's client.
        let join = format!("container:{web}");
        let args = ["run", "--rm", "--network", &join, "busybox", "sh", "-c", fetch];
        assert_eq!(engine.docker(&args).succeeded().text(), pod);

        engine.hyper(&["pod", "pause", &pod]).succeeded();
        assert_eq!(pod_field(&engine, &pod, "{{.status}}"), "paused");
        engine.hyper(&["pod", "unpause", &pod]).succeeded();
        engine.hyper(&["pod", "exec", &pod, "true"]).succeeded();

        let refused = engine.hyper(&["pod", "rm", &pod]);
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains("stop it first"), "{}", refused.stderr);
        engine.hyper(&["pod", "stop", "-t", "1", &pod]).succeeded();
        assert_eq!(engine.inspect(&web, "{{.State.Status}}"), "exited");
        // Its containers start with it again.
        engine.hyper(&["pod", "start", &pod]).succeeded();
        assert_eq!(engine.inspect(&web, "{{.State.Status}}"), "running");
        engine.hyper(&["pod", "rm", "-f", &pod]).succeeded();
        assert_ne!(engine.hyper(&["inspect", &web]).code, 0, "its containers go with it");
    }
}

#[test]
fn a_container_comes_back_into_its_pod_more_often_than_there_are_places_for_disks() {
    let engine = Engine::with_busybox();
    engine.hyper(&["pod", "create", "--runtime", "qemu", "many"]).succeeded();
    let args = ["create", "--pod", "many", "--name", "once", "busybox", "sh", "-c", "date >> /log"];
    engine.hyper(&args).succeeded();
    for _ in 0..9 {
        engine.hyper(&["start", "-a", "once"]).succeeded();
    }
    let args = ["run", "--rm", "--pod", "many", "busybox", "uname", "-r"];
    assert!(engine.hyper(&args).succeeded().text().contains("hyper"));
    let log = engine.hyper(&["cp", "once:/log", "-"]).succeeded().stdout;
    assert!(log.windows(4).filter(|word| word == b"UTC ").count() >= 9, "what it wrote is kept");
}

#[test]
fn a_pod_whose_containers_come_and_go_never_runs_out_of_disks() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (pod, other) = (format!("busy-{runtime}"), format!("idle-{runtime}"));
        engine.hyper(&["pod", "create", "--runtime", runtime, &pod]).succeeded();
        let stays = ["run", "-d", "--pod", &pod, "--name", &other, "busybox", "sleep", "600"];
        engine.hyper(&stays).succeeded();
        // A guest of uml has 256 disks, a pod's on the others twelve that come later.
        let rounds = if runtime == "uml" { 90 } else { 14 };
        for round in 0..rounds {
            let script = format!("cat /f; echo {round} | tee /f");
            let args = ["run", "--rm", "--pod", &pod, "busybox", "sh", "-c", &script];
            let said = engine.hyper(&args).succeeded().text();
            assert_eq!(said, round.to_string(), "{runtime}: nothing of the one before is left");
        }
        // A volume that is a disk goes the same way, and keeps what it has.
        let volume = format!(
            "type=volume,src=log-{runtime},dst=/log,volume-driver=disk,volume-opt=size=64m"
        );
        for round in 1..=8 {
            let count = "echo line >> /log/lines; wc -l < /log/lines";
            let args = ["run", "--rm", "--pod", &pod, "--mount", &volume, "busybox"];
            let said = engine.hyper(&[&args[..], &["sh", "-c", count]].concat()).succeeded().text();
            assert_eq!(said, round.to_string(), "{runtime}");
        }
        // What the pod cannot reach any more another one may have.
        let args = ["run", "--rm", "--runtime", runtime, "--mount", &volume, "busybox"];
        let elsewhere = engine.hyper(&[&args[..], &["cat", "/log/lines"]].concat());
        if runtime == "uml" {
            assert!(elsewhere.stderr.contains("in use by another pod"), "{}", elsewhere.stderr);
        } else {
            assert_eq!(elsewhere.succeeded().text().lines().count(), 8);
        }
        assert_eq!(engine.inspect(&other, "{{.State.Status}}"), "running");
        let directory = engine.dir().display().to_string();
        let logs = ["-rc", "--include=supervisor.log", "a disk stays in the guest", &directory];
        let counts = run("grep", &logs, SOON).text();
        assert!(!counts.is_empty(), "the supervisor has no log");
        assert!(counts.lines().all(|line| line.ends_with(":0")), "{runtime}: {counts}");
        engine.hyper(&["pod", "rm", "-f", &pod]).succeeded();

        // A guest that has room for one more container only.
        let first = format!("first-{runtime}");
        let args = ["run", "-d", "--runtime", runtime, "--name", &first, "busybox", "sleep", "600"];
        engine.hyper(&args).succeeded();
        for _ in 0..4 {
            let args = ["run", "--rm", "--network", &format!("container:{first}"), "busybox"];
            engine.docker(&[&args[..], &["touch", "/f"]].concat()).succeeded();
        }
        engine.hyper(&["rm", "-f", &first]).succeeded();
    }
}

#[test]
fn pods_and_their_containers_survive_kill_9_of_hyperd() {
    let mut engine = Engine::with_busybox();
    engine.hyper(&["pod", "create", "kept"]).succeeded();
    let count = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";
    for name in ["left", "right"] {
        let args = ["run", "-d", "--pod", "kept", "--name", name, "busybox", "sh", "-c", count];
        engine.hyper(&args).succeeded();
    }
    let serve = "exec httpd -f -p 8080 -h /etc";
    let args = ["run", "-d", "--pod", "kept", "--name", "server", "busybox", "sh", "-c", serve];
    engine.hyper(&args).succeeded();
    let show = "ip -4 -o addr show eth0 | sed 's/.*inet //; s,/.*,,'";
    let address = engine.hyper(&["exec", "server", "sh", "-c", show]).succeeded().text();
    let reached = || std::net::TcpStream::connect(format!("{address}:8080")).is_ok();
    eventually("the host reaches the pod", SOON, reached);
    engine.kill_daemon();
    std::thread::sleep(Duration::from_millis(500));
    engine.restart();
    assert_eq!(pod_field(&engine, "kept", "{{.status}}"), "running");
    assert!(reached(), "the pod keeps its network");
    for name in ["left", "right"] {
        assert_eq!(engine.inspect(name, "{{.State.Status}}"), "running");
        let lines = engine.hyper(&["logs", name]).succeeded().text();
        for (at, line) in lines.lines().enumerate() {
            assert_eq!(line, format!("line {}", at + 1), "{name}: a line is lost");
        }
    }
    let mixed = engine.hyper(&["pod", "logs", "--tail", "2", "kept"]).succeeded().text();
    assert!(mixed.contains("left   | line ") && mixed.contains("right  | line "), "{mixed}");
    // Some of them end, and the other does not mind.
    engine.hyper(&["rm", "-f", "left", "server"]).succeeded();
    assert_eq!(engine.inspect("right", "{{.State.Status}}"), "running");

    // A pod that dies while hyperd is away is told as what it is.
    let report: serde_json::Value =
        serde_json::from_str(&pod_field(&engine, "kept", "{{json .report}}")).expect("report");
    let hypervisor = report["hypervisor_pid"].to_string();
    engine.kill_daemon();
    run("kill", &["-9", &hypervisor], SOON).succeeded();
    engine.restart();
    eventually("the pod is seen to have stopped", SOON, || {
        pod_field(&engine, "kept", "{{.status}}") == "stopped"
    });
    assert!(pod_field(&engine, "kept", "{{.reason}}").contains("signal 9"));
    eventually("so has its container", SOON, || {
        engine.inspect("right", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    });
    engine.hyper(&["start", "right"]).succeeded();
    assert_eq!(pod_field(&engine, "kept", "{{.status}}"), "running", "it starts its pod");
}

#[test]
fn guest_that_dies_ends_its_pod_and_all_its_containers() {
    let engine = Engine::with_busybox();
    engine.hyper(&["pod", "create", "doomed"]).succeeded();
    for name in ["one", "two"] {
        engine
            .hyper(&["run", "-d", "--pod", "doomed", "--name", name, "busybox", "sleep", "600"])
            .succeeded();
    }
    let report: serde_json::Value =
        serde_json::from_str(&pod_field(&engine, "doomed", "{{json .report}}")).expect("report");
    run("kill", &["-9", &report["hypervisor_pid"].to_string()], SOON).succeeded();
    for name in ["one", "two"] {
        eventually("the container has ended", SOON, || {
            engine.inspect(name, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
        });
        assert!(engine.inspect(name, "{{.State.Error}}").contains("signal 9"));
    }
    eventually("the pod has stopped", SOON, || {
        pod_field(&engine, "doomed", "{{.status}}") == "stopped"
    });
    engine.hyper(&["pod", "rm", "doomed"]).succeeded();
}

#[test]
fn the_container_that_others_joined_may_end_before_them() {
    let engine = Engine::with_busybox();
    engine.hyper(&["run", "-d", "--name", "owner", "busybox", "sleep", "600"]).succeeded();
    let args =
        ["run", "-d", "--network", "container:owner", "--name", "guest", "busybox", "sleep", "600"];
    engine.docker(&args).succeeded();
    engine.hyper(&["rm", "-f", "owner"]).succeeded();
    assert_eq!(engine.inspect("guest", "{{.State.Status}}"), "running");
    engine.hyper(&["exec", "guest", "true"]).succeeded();
    engine.hyper(&["rm", "-f", "guest"]).succeeded();
}

#[test]
fn a_pod_is_changed_and_boots_with_it() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("grows-{runtime}");
        let create =
            ["pod", "create", "--runtime", runtime, "--memory", "64m", "--network", "none"];
        engine.hyper(&[&create[..], &["--label", "tier=old", &name]].concat()).succeeded();
        let join = ["create", "--pod", &name, "busybox", "sleep", "600"];
        engine.hyper(&join).succeeded();
        let update =
            |flags: &[&str]| engine.hyper(&[&["pod", "update"], flags, &[name.as_str()]].concat());
        // A guest of uml has one.
        let cpus = if runtime == "uml" { "1" } else { "2" };
        update(&["--memory", "96m", "--cpus", cpus, "--label", "team=x"]).succeeded();
        engine.hyper(&["pod", "start", &name]).succeeded();
        let told = |template: &str| pod_field(&engine, &name, template);
        assert_eq!(told("{{.memory_bytes}} {{.vcpus}}"), format!("{} {cpus}", 96 << 20));
        assert_eq!(told("{{.report.vcpus}} {{.labels.team}}"), format!("{cpus} x"));
        let show = ["pod", "exec", &name, "cat", "/proc/meminfo"];
        let memory = engine.hyper(&show).succeeded().text();
        let total = memory.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
        assert!(total > Some(64 << 10), "it booted with the new size: {memory}");
        // Where a guest can grow, `growth.rs` tries that.
        if runtime != "kvm" {
            update(&["--memory", "128m"]).exited(1).says(&["memory", "stop it"]);
        }
        update(&["--label", "team=y", "--label-rm", "tier"]).succeeded();
        assert_eq!(told("{{json .labels}}"), r#"{"team":"y"}"#);
        assert_eq!(told("{{.memory_bytes}}"), (96 << 20).to_string(), "nothing else changed");
        engine.hyper(&["pod", "rm", "-f", &name]).succeeded();
    }
    engine.hyper(&["pod", "update", "--label", "a=b", "nobody"]).exited(1).says(&["nobody"]);
    engine.hyper(&["pod", "create", "small"]).succeeded();
    engine.hyper(&["pod", "update", "--memory", "1m", "small"]).exited(1).says(&["16 MiB"]);
    engine.hyper(&["pod", "update", "--egress", "some", "small"]).exited(1).says(&["some"]);
}

#[test]
fn a_pod_that_runs_is_given_less_memory_and_what_it_frees_goes_back_to_the_host() {
    const MIB: u64 = 1 << 20;
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("sized-{runtime}");
        let create = ["pod", "create", "--runtime", runtime, "--memory", "256m", "--network"];
        engine.hyper(&[&create[..], &["none", &name]].concat()).succeeded();
        let fill = "dd if=/dev/zero of=/t/fill bs=1M count=120 2>&1";
        let args = ["run", "-d", "--pod", &name, "--tmpfs", "/t:size=200m", "busybox"];
        engine.hyper(&[&args[..], &["sleep", "600"]].concat()).succeeded();
        let inside = |script: &str| engine.hyper(&["pod", "exec", &name, "sh", "-c", script]);
        let update = |memory: &str| engine.hyper(&["pod", "update", "--memory", memory, &name]);
        let held = || {
            let bytes = pod_field(&engine, &name, "{{.report.hypervisor_resident_bytes}}");
            bytes.parse::<u64>().unwrap() / MIB
        };
        let at_first = held();
        inside(fill).succeeded();
        let full = held();
        // What the boot had freed goes back meanwhile.
        assert!(full > at_first + 80, "{runtime}: {at_first} MiB, then {full}");
        update("128m").exited(1).says(&["the containers use", "cannot be reclaimed"]);
        if runtime != "kvm" {
            update("300m").exited(1).says(&["booted with", "stop it"]);
        }
        inside("rm /t/fill").succeeded();
        eventually("the host has the memory back", 2 * SOON, || held() < full - 80);
        update("128m").succeeded();
        let outcome = inside(fill);
        assert_eq!(outcome.code, 137, "{runtime}: it has no room for that: {}", outcome.stderr);
        inside("rm /t/fill").succeeded();
        update("256m").succeeded();
        inside(fill).succeeded();
        update("20m").exited(1).says(&["for itself"]);
        engine.hyper(&["pod", "pause", &name]).succeeded();
        update("128m").exited(1).says(&["paused", "cannot update it"]);
        engine.hyper(&["pod", "unpause", &name]).succeeded();
        assert_eq!(pod_field(&engine, &name, "{{.memory_bytes}}"), (256 * MIB).to_string());
        engine.hyper(&["pod", "rm", "-f", &name]).succeeded();
    }
}

#[test]
fn what_a_pod_cannot_be_is_refused_by_name() {
    let engine = Engine::with_busybox();
    engine.hyper(&["pod", "create", "taken"]).succeeded();
    for (arguments, words) in [
        (&["pod", "create", "taken"][..], "\"taken\" is in use"),
        (&["pod", "create", "-"], "invalid pod name `-`"),
        (&["pod", "create", "--memory", "1m", "small"], "16 MiB"),
        (&["pod", "create", "--runtime", "steam", "odd"], "steam"),
        (&["pod", "create", "--hostname", "a b", "odd"], "a b"),
        (&["pod", "create", "--sysctl", "kernel.shmmax=1", "odd"], "kernel.shmmax"),
        (&["pod", "start", "nobody"], "no such pod: nobody"),
        (&["pod", "pause", "taken"], "is not running"),
        (&["pod", "kill", "taken"], "no container runs in it"),
        (&["pod", "exec", "taken", "true"], "has no containers"),
        (&["run", "--pod", "nobody", "busybox", "true"], "no such pod: nobody"),
        (&["run", "--pod", "taken", "--runtime", "qemu", "busybox", "true"], "conflicting options"),
        (&["run", "--pod", "taken", "--hostname", "x", "busybox", "true"], "conflicting options"),
        (&["run", "--network", "container:nobody", "busybox", "true"], "nobody"),
    ] {
        let outcome = engine.hyper(arguments);
        assert_ne!(outcome.code, 0, "{arguments:?}");
        assert!(outcome.stderr.contains(words), "{arguments:?}: {}", outcome.stderr);
    }
    assert_eq!(engine.hyper(&["pod", "ps", "-q"]).succeeded().text().lines().count(), 1);
}
