//! Runtimes of others by Docker's own client: `runc`, `crun` and `runsc`, as far as they run on this machine.

use std::time::Duration;

use hyper_e2e::{Alone, Engine, Host, eventually, image, run, run_with};

const MINUTE: Duration = Duration::from_secs(60);

/// What `hyper doctor` says of a runtime here: usable, and the end of why not.
fn doctor(engine: &Engine, name: &str) -> (bool, String) {
    let report: serde_json::Value =
        serde_json::from_str(&engine.hyper(&["doctor", "--json"]).text()).expect("a report");
    let all = report["runtimes"].as_array().expect("runtimes");
    let found = all.iter().find(|runtime| runtime["name"] == name).expect("the runtime");
    let failed = found["findings"].as_array().into_iter().flatten().find(|f| f["ok"] == false);
    let why = failed.and_then(|finding| finding["detail"].as_str()).unwrap_or_default();
    (found["usable"] == true, why.to_owned())
}

/// Processes with these words in their command lines.
fn pids(words: &str) -> Vec<String> {
    let found = run("pgrep", &["-f", words], MINUTE).text();
    found.split_whitespace().map(str::to_owned).collect()
}

/// The host is as it was before, or comes to be.
#[track_caller]
fn settles(before: &Host, marker: &str) {
    for _ in 0..100 {
        if Host::look(marker) == *before {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(Host::look(marker), *before);
}

#[test]
fn a_container_of_runc_is_one_like_any_other_and_leaves_nothing() {
    let alone = Alone::wait();
    let engine = Engine::with_busybox();
    let marker = engine.dir().display().to_string();
    let run1 = ["run", "--rm", "--runtime", "runc"];
    // The first makes what stays while hyperd runs: the bridge, and our name among the cgroups.
    engine.docker(&[&run1[..], &["busybox", "true"]].concat()).succeeded();
    let before = Host::at_rest(&alone, &marker);
    for (words, code) in
        [(&["sh", "-c", "exit 7"][..], 7), (&["nope"], 127), (&["/etc"], 126), (&["true"], 0)]
    {
        engine.docker(&[&run1[..], &["busybox"], words].concat()).exited(code);
    }
    let user = engine.docker(&[&run1[..], &["-u", "nobody", "busybox", "id", "-un"]].concat());
    assert_eq!(user.succeeded().text(), "nobody");
    engine
        .docker(&[&run1[..], &["-u", "nosuch", "busybox", "id"]].concat())
        .exited(125)
        .says(&["unable to find user nosuch"]);

    let bound = engine.dir().join("bound");
    std::fs::create_dir(&bound).expect("directory");
    std::fs::write(bound.join("here"), "from the host\n").expect("file");
    let bind = format!("{}:/bound:ro", bound.display());
    let script = "mkdir /www; echo page > /www/index.html; echo out; echo err >&2; \
                  trap 'exit 3' TERM; httpd -h /www; while :; do sleep 0.1; done";
    #[rustfmt::skip]
    engine
        .docker(&["run", "-d", "--name", "one", "--runtime", "runc", "-p", "127.0.0.1::80", "-v", &bind,
            "-v", "filled:/etc", "--tmpfs", "/small:size=1m", "-m", "48m", "--cpus", "0.5", "--pids-limit", "50",
            "-e", "A=b", "busybox", "sh", "-c", script])
        .succeeded();
    let port = engine.docker(&["port", "one", "80"]).succeeded().text();
    eventually("the page is served", MINUTE, || {
        run("curl", &["-s", "-m", "5", &port], MINUTE).text() == "page"
    });
    assert_eq!(engine.inspect("one", "{{.Hyper.Runtime}} {{.Hyper.Wall}}"), "runc shared-kernel");
    let row = engine.hyper(&["ps", "--format", "{{.Names}} {{.Wall}}"]).succeeded().text();
    assert_eq!(row, "one shared-kernel");
    let exec = |words: &[&str]| engine.docker(&[&["exec", "one"], words].concat());
    exec(&["sh", "-c", "exit 5"]).exited(5);
    let seen = exec(&["sh", "-c", "cat /bound/here; echo $A; ls /etc/passwd /etc/resolv.conf"])
        .succeeded();
    assert_eq!(seen.text(), "from the host\nb\n/etc/passwd\n/etc/resolv.conf");
    exec(&["touch", "/bound/new"]).exited(1);
    exec(&["dd", "if=/dev/zero", "of=/small/x", "bs=1M", "count=2"]).exited(1);
    let logs = engine.docker(&["logs", "one"]).succeeded();
    assert!(logs.text() == "out", "{logs:?}");
    let stats =
        engine.docker(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "one"]);
    assert!(stats.succeeded().text().contains("/ 48MiB"), "the limit is seen");
    let top = engine.docker(&["top", "one"]).succeeded().text();
    assert!(top.contains("httpd"), "{top}");
    let changes = engine.docker(&["diff", "one"]).succeeded().text();
    assert!(changes.contains("A /www/index.html"), "{changes}");
    engine.docker(&["pause", "one"]).succeeded();
    engine.docker(&["unpause", "one"]).succeeded();
    engine.docker(&["stop", "-t", "10", "one"]).succeeded();
    assert_eq!(engine.inspect("one", "{{.State.ExitCode}}"), "3");
    // Its files are reached while it does not run, too, and go into an image.
    let file = engine.dir().join("page").display().to_string();
    engine.docker(&["cp", "one:/www/index.html", &file]).succeeded();
    assert_eq!(std::fs::read_to_string(&file).expect("copied"), "page\n");
    engine.docker(&["cp", &file, "one:/www/second"]).succeeded();
    engine.docker(&["commit", "one", "made"]).succeeded();
    let text = engine.docker(&["run", "--rm", "made", "cat", "/www/second"]).succeeded().text();
    assert_eq!(text, "page", "what runc's container wrote is seen in a guest");
    engine.docker(&["start", "one"]).succeeded();
    engine.docker(&["rm", "-f", "-v", "one"]).succeeded();
    engine.docker(&["volume", "rm", "filled"]).succeeded();
    let tty = "stdin of a terminal";
    let echoed =
        engine.docker_command(&["run", "-i", "--rm", "--runtime", "runc", "busybox", "cat"]);
    let echoed = run_with(echoed, tty.as_bytes().to_vec(), MINUTE);
    assert_eq!(echoed.succeeded().text(), tty);
    settles(&before, &marker);
    assert_eq!(pids(&format!("shim.*{marker}")), Vec::<String>::new());
    let roots = std::fs::read_dir(engine.dir().join("exec/roots")).expect("roots").count();
    assert_eq!(roots, 0, "the image is mounted as long as it is used");
}

#[test]
fn out_of_memory_is_told() {
    let engine = Engine::with_busybox();
    let script = "x=$(dd if=/dev/zero bs=1M count=64 | tr '\\0' a); echo $x | wc -c";
    let words =
        ["run", "--name", "oom", "--runtime", "runc", "-m", "16m", "busybox", "sh", "-c", script];
    engine.docker(&words).exited(137);
    assert_eq!(engine.inspect("oom", "{{.State.OOMKilled}}"), "true");
}

#[test]
fn logs_and_exit_codes_outlive_hyperd() {
    let mut engine = Engine::with_busybox();
    let script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 9";
    for name in ["through", "ended"] {
        let words =
            ["run", "-d", "--name", name, "--runtime", "runc", "busybox", "sh", "-c", script];
        engine.docker(&words).succeeded();
    }
    let long = ["run", "-d", "--name", "long", "--runtime", "runc", "busybox", "sleep", "1000"];
    engine.docker(&long).succeeded();
    engine.kill_daemon();
    std::thread::sleep(Duration::from_millis(500));
    engine.restart();
    let logs = engine.docker(&["logs", "-f", "through"]).succeeded().text();
    assert_eq!((logs.lines().count(), logs.lines().last()), (200, Some("line 199")));
    assert_eq!(engine.docker(&["wait", "through"]).succeeded().text(), "9");
    engine.kill_daemon();
    // The other one was started later, and ends later.
    std::thread::sleep(Duration::from_secs(3));
    engine.restart();
    assert_eq!(engine.inspect("ended", "{{.State.ExitCode}}"), "9");
    assert_eq!(engine.docker(&["logs", "ended"]).succeeded().text().lines().count(), 200);
    // It once gave the process the host's capabilities.
    let refused = engine.docker(&["exec", "--privileged", "long", "true"]);
    assert!(refused.stderr.contains("exec --privileged"), "{refused:?}");
    let refused = engine.hyper(&["pod", "exec", "--guest", "long", "true"]);
    assert!(refused.code == 1 && refused.stderr.contains("exec in the guest"), "{refused:?}");
    assert_eq!(engine.docker(&["exec", "long", "echo", "still"]).succeeded().text(), "still");
    engine.docker(&["kill", "long"]).succeeded();
    assert_eq!(engine.docker(&["wait", "long"]).succeeded().text(), "137");
}

#[test]
fn a_killed_shim_or_supervisor_leaves_a_clear_state_and_no_process() {
    let alone = Alone::wait();
    let engine = Engine::with_busybox();
    let marker = engine.dir().display().to_string();
    engine.docker(&["run", "--rm", "--runtime", "runc", "busybox", "true"]).succeeded();
    let before = Host::at_rest(&alone, &marker);
    engine
        .docker(&["create", "--name", "one", "--runtime", "runc", "busybox", "sleep", "987654"])
        .succeeded();
    let id = engine.inspect("one", "{{.Id}}");
    for (program, code, named) in [
        ("containerd-shim-runc-v2", "137", "the shim of runtime `runc`"),
        ("containerd-shim-hyper-v2", "255", "supervisor"),
    ] {
        engine.docker(&["start", "one"]).succeeded();
        for pid in pids(&format!("{program}.*-id {id}")) {
            run("kill", &["-9", &pid], MINUTE).succeeded();
        }
        eventually("the end is known", MINUTE, || {
            engine.inspect("one", "{{.State.Status}}") == "exited"
        });
        assert_eq!(engine.inspect("one", "{{.State.ExitCode}}"), code);
        let why = engine.inspect("one", "{{.State.Error}}");
        assert!(why.contains(named), "{why}");
        eventually("its processes are gone", MINUTE, || pids("sleep 987654").is_empty());
        settles(&before, &marker);
    }
    engine.docker(&["start", "one"]).succeeded();
    engine.docker(&["rm", "-f", "one"]).succeeded();
    settles(&before, &marker);
}

#[test]
fn names_are_resolved_between_containers_of_every_runtime() {
    let engine = Engine::with_busybox();
    engine.docker(&["network", "create", "mine"]).succeeded();
    for (name, runtime) in [("shared", "runc"), ("guest", "uml")] {
        #[rustfmt::skip]
        engine
            .docker(&["run", "-d", "--name", name, "--runtime", runtime, "--network", "mine", "busybox",
                "sleep", "1000"])
            .succeeded();
    }
    for (from, to) in [("shared", "guest"), ("guest", "shared"), ("shared", "shared")] {
        let answered = engine.docker(&["exec", from, "ping", "-c1", "-W5", to]).succeeded().text();
        assert!(answered.contains("1 packets received"), "{answered}");
    }
    engine.docker(&["exec", "shared", "nslookup", "nobody.example"]).exited(1);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let engine = Engine::with_busybox();
    let refused = |words: &[&str], says: &[&str]| {
        let all = [&["run", "--rm"], words, &["busybox", "true"]].concat();
        engine.docker(&all).exited(125).says(says);
    };
    refused(&["--runtime", "nope"], &["unknown or invalid runtime name: nope"]);
    refused(&["--runtime", "io.containerd.nope.v1"], &["containerd-shim-nope-v1"]);
    refused(&["--runtime", "runc", "--privileged"], &["--privileged", "runc"]);
    refused(&["--runtime", "runc", "--init"], &["--init"]);
    refused(&["--runtime", "runc", "--storage-opt", "size=1G"], &["--storage-opt size"]);
    refused(&["--runtime", "runc", "--annotation", "io.hyper.vcpus=2"], &["io.hyper.vcpus"]);
    for wall in ["application-kernel", "hardware"] {
        let least = format!("io.hyper.min-isolation={wall}");
        refused(&["--runtime", "runc", "--annotation", &least], &["shared-kernel", wall, "runc"]);
    }
    refused(&["--annotation", "io.hyper.min-isolation=brick"], &["`brick`", "user-mode-kernel"]);
    engine
        .docker(&["run", "-d", "--name", "one", "--runtime", "runc", "busybox", "sleep", "100"])
        .succeeded();
    refused(&["--network", "container:one"], &["cannot be joined"]);
    engine
        .hyper(&[
            "run",
            "--rm",
            "--runtime",
            "runc",
            "--min-isolation",
            "emulated",
            "busybox",
            "true",
        ])
        .exited(125)
        .says(&["shared-kernel", "emulated"]);
}

#[test]
fn runtimes_are_configured_as_dockerds() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("hyperd.json").display().to_string();
    let log = dir.path().join("runc.log").display().to_string();
    let text = serde_json::json!({
        "default-runtime": "logged",
        "runtimes": { "logged": { "path": "runc", "runtimeArgs": ["--log", log] } },
    });
    std::fs::write(&file, text.to_string()).expect("file");
    let engine = Engine::start_with(&["--config-file", &file]);
    engine.hyper(&["load", "-q", "-i", &image("busybox").display().to_string()]).succeeded();
    engine.docker(&["run", "--rm", "busybox", "true"]).succeeded();
    let info = engine
        .docker(&["info", "--format", "{{json .Runtimes}} {{.DefaultRuntime}}"])
        .succeeded()
        .text();
    assert!(
        info.ends_with(" logged") && info.contains("\"runc\"") && info.contains("shared-kernel"),
        "{info}"
    );
    let strict = Engine::start_with(&["--min-isolation", "user-mode-kernel"]);
    strict.hyper(&["load", "-q", "-i", &image("busybox").display().to_string()]).succeeded();
    strict
        .docker(&["run", "--rm", "--runtime", "runc", "busybox", "true"])
        .exited(125)
        .says(&["runtime runc is a wall of kind shared-kernel, min-isolation is user-mode-kernel"]);
    strict.docker(&["run", "--rm", "--runtime", "uml", "busybox", "true"]).succeeded();
}

#[test]
fn crun_runs_or_says_why_not() {
    let engine = Engine::with_busybox();
    let ran = engine.docker(&["run", "--rm", "--runtime", "crun", "busybox", "sh", "-c", "exit 4"]);
    match doctor(&engine, "crun") {
        (true, _) => drop(ran.exited(4)),
        (false, why) => {
            assert!(!why.is_empty(), "doctor says why");
            let words = why.split(", ").next().unwrap_or_default().to_owned();
            ran.exited(125).says(&[&words]);
        }
    }
}

#[test]
fn gvisor_runs_behind_its_own_kernel() {
    let engine = Engine::with_busybox();
    let (usable, why) = doctor(&engine, "runsc");
    assert!(usable, "runsc of Debian runs without networks at least: {why}");
    let alone = ["--runtime", "runsc", "--network", "none"];
    let booted = [&["run", "--rm"], &alone[..], &["busybox", "sh", "-c", "dmesg; exit 6"]].concat();
    let booted = engine.docker(&booted).exited(6).text();
    assert!(booted.contains("gVisor"), "{booted}");
    engine
        .docker(
            &[
                &["run", "-d", "--name", "one", "-m", "64m"],
                &alone[..],
                &["busybox", "sleep", "100"],
            ]
            .concat(),
        )
        .succeeded();
    assert_eq!(engine.inspect("one", "{{.Hyper.Wall}}"), "application-kernel");
    let seen = engine.docker(&["exec", "one", "sh", "-c", "grep MemTotal /proc/meminfo; exit 2"]);
    let seen = seen.exited(2).text();
    assert!(seen.contains("65536 kB"), "{seen}");
    engine.docker(&["top", "one"]).exited(1).says(&["kernel of their own"]);
    engine
        .docker(&["update", "--memory", "80m", "--memory-swap", "160m", "one"])
        .exited(1)
        .says(&["runsc"]);
    engine.docker(&["rm", "-f", "one"]).succeeded();
    engine.docker(&["network", "create", "mine"]).succeeded();
    engine
        .docker(&["run", "--rm", "--runtime", "runsc", "--network", "mine", "busybox", "true"])
        .exited(125)
        .says(&["names of network mine", "--dns"]);
}
