//! Containers that are started again, renamed, updated, and looked after.

use std::path::Path;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, runtimes};

const SOON: Duration = Duration::from_secs(60);

fn state(engine: &Engine, name: &str) -> String {
    engine.inspect(name, "{{.State.Status}} {{.RestartCount}}")
}

#[test]
fn restart_policies_are_dockers() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("fails-{runtime}");
        let run = ["run", "-d", "--name", &name, "--runtime", runtime, "--restart", "on-failure:2"];
        engine.docker(&[&run[..], &["busybox", "sh", "-c", "date; exit 3"]].concat()).succeeded();
        eventually("all tries are used up", SOON, || state(&engine, &name) == "exited 2");
        let said = engine.docker(&["logs", &name]).succeeded().text();
        assert_eq!(said.lines().count(), 3, "one line of each run: {said}");
    }
    let loops = ["run", "-d", "--name", "loops", "--restart", "always", "busybox", "false"];
    engine.docker(&loops).succeeded();
    // After so many it rests for seconds, which is long enough to ask.
    eventually("it is seen restarting", SOON, || {
        let restarts = engine.inspect("loops", "{{.RestartCount}}").parse::<u32>();
        let listed = engine.docker(&["ps", "--format", "{{.Names}} {{.Status}}"]).text();
        restarts.is_ok_and(|count| count >= 5) && listed.contains("Restarting (1)")
    });
    engine.docker(&["exec", "loops", "true"]).exited(1).says(&["is restarting"]);
    engine.docker(&["rm", "loops"]).exited(1).says(&["is restarting"]);
    engine.docker(&["stop", "loops"]).succeeded();
    assert!(state(&engine, "loops").starts_with("exited"));
    engine.docker(&["rm", "loops"]).succeeded();
    let both = ["create", "--rm", "--restart", "always", "busybox"];
    engine.hyper(&both).exited(125).says(&["AutoRemove"]);
    let retries = ["create", "--restart", "always:3", "busybox"];
    engine.hyper(&retries).exited(125).says(&["maximum retry count", "always"]);
}

#[test]
fn policies_survive_kill_9_of_hyperd_and_a_reboot() {
    let mut engine = Engine::with_busybox();
    for (name, policy) in [
        ("always", "always"),
        ("unless", "unless-stopped"),
        ("never", "no"),
        ("hand", "unless-stopped"),
    ] {
        let run = ["run", "-d", "--name", name, "--restart", policy, "busybox", "sleep", "600"];
        engine.docker(&run).succeeded();
    }
    engine.docker(&["stop", "-t", "0", "hand"]).succeeded();
    // Dies while nobody looks.
    engine.kill_daemon();
    let report = |engine: &Engine, name: &str| {
        engine.pod_report(name)["supervisor_pid"].as_u64().expect("a pid").to_string()
    };
    engine.restart();
    assert_eq!(state(&engine, "always"), "running 0");
    let pids: Vec<String> =
        ["always", "unless", "never"].iter().map(|name| report(&engine, name)).collect();
    // What is left of a reboot: the data, and nothing of a process or a tmpfs.
    engine.kill_daemon();
    for pid in &pids {
        hyper_e2e::run("kill", &["-9", pid], SOON).succeeded();
    }
    eventually("pods are gone", SOON, || {
        pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    for entry in std::fs::read_dir(engine.dir().join("exec/netns")).expect("namespaces").flatten() {
        let path = entry.path().display().to_string();
        hyper_e2e::run("umount", &[&path], SOON).succeeded();
    }
    std::fs::remove_dir_all(engine.dir().join("exec")).expect("a fresh tmpfs");
    engine.restart();
    for name in ["always", "unless"] {
        eventually("its policy has started it", SOON, || state(&engine, name) == "running 0");
        engine.docker(&["exec", name, "true"]).succeeded();
    }
    assert!(state(&engine, "hand").starts_with("exited"));
    let never = engine.inspect("never", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}");
    assert!(never.starts_with("exited 255") && never.contains("host was restarted"), "{never}");
    // A policy given later counts as well.
    engine.docker(&["update", "--restart", "always", "never"]).succeeded();
    engine.docker(&["start", "never"]).succeeded();
    engine.docker(&["exec", "never", "kill", "-9", "-1"]).text();
    engine.docker(&["exec", "never", "sh", "-c", "kill -TERM 1; kill -INT 1"]).text();
    let pid = report(&engine, "never");
    hyper_e2e::run("kill", &["-9", &pid], SOON).succeeded();
    eventually("it runs again", SOON, || state(&engine, "never") == "running 1");
}

/// Microseconds of CPU time in each 100 ms that the cgroup of a process of the host may use.
fn host_quota(pid: u64) -> Option<u64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, place) = (parts.next()?, parts.next()?, parts.next()?);
        let place = place.trim_start_matches('/');
        let (dir, file) = match controllers {
            "" => (Path::new("/sys/fs/cgroup").join(place), "cpu.max"),
            list if list.split(',').any(|word| word == "cpu") => {
                (Path::new("/sys/fs/cgroup/cpu").join(place), "cpu.cfs_quota_us")
            }
            _ => continue,
        };
        if let Ok(text) = std::fs::read_to_string(dir.join(file)) {
            return text.split_whitespace().next()?.parse().ok();
        }
    }
    None
}

#[test]
fn restart_rename_update_wait() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("web-{runtime}");
        let run = ["run", "-d", "--name", &name, "--runtime", runtime, "--memory", "64m"];
        engine.docker(&[&run[..], &["busybox", "sleep", "600"]].concat()).succeeded();
        let started = engine.inspect(&name, "{{.State.StartedAt}}");
        engine.docker(&["restart", "-t", "0", &name]).succeeded();
        assert_ne!(engine.inspect(&name, "{{.State.StartedAt}}"), started);
        let other = format!("other-{runtime}");
        engine.docker(&["rename", &name, &other]).succeeded();
        engine.docker(&["exec", &name, "true"]).exited(1).says(&["No such container"]);
        let limit = |file: &str| {
            let path = format!("/sys/fs/cgroup/{file}");
            engine.docker(&["exec", &other, "cat", &path]).succeeded().text()
        };
        assert_eq!(limit("memory.max"), (64 << 20).to_string());
        let update = ["update", "--memory", "48m", "--memory-swap", "48m", "--cpus", "0.5"];
        let more =
            ["--pids-limit", "50", "--cpu-shares", "512", "--restart", "on-failure:3", &other];
        engine.docker(&[&update[..], &more[..]].concat()).succeeded();
        assert_eq!(limit("memory.max"), (48 << 20).to_string());
        assert_eq!(limit("cpu.max"), "50000 100000");
        assert_eq!(limit("pids.max"), "50");
        let shown =
            engine.inspect(&other, "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}");
        assert_eq!(shown, format!("{} on-failure", 48 << 20));
        engine
            .docker(&["update", "--memory", "1m", &other])
            .exited(1)
            .says(&["Minimum memory limit"]);
        // Where it can grow, `growth.rs` tries that.
        if runtime != "kvm" {
            engine
                .docker(&["update", "--memory", "4g", "--memory-swap", "4g", &other])
                .exited(1)
                .says(&["cannot grow", "stop it"]);
        }
        // A hypervisor is held to it as well, with something over for its own work.
        let pid = engine.pod_report(&other)["hypervisor_pid"].as_u64().expect("a pid");
        eventually("the host holds the limit", SOON, || host_quota(pid) == Some(60_000));
        let waited = |condition: &str| {
            let id = engine.inspect(&other, "{{.Id}}");
            let url = format!("http://d/v1.47/containers/{id}/wait?condition={condition}");
            let mut command = std::process::Command::new("curl");
            command.args(["-sN", "-X", "POST", "--unix-socket"]).arg(engine.socket()).arg(url);
            command.stdout(std::process::Stdio::piped());
            let child = command.spawn().expect("curl");
            std::thread::sleep(Duration::from_millis(500));
            child
        };
        let told = |child: std::process::Child| {
            let out = child.wait_with_output().expect("curl");
            String::from_utf8_lossy(&out.stdout).trim().to_owned()
        };
        let next = waited("next-exit");
        engine.docker(&["kill", &other]).succeeded();
        assert_eq!(told(next), r#"{"StatusCode":137}"#);
        assert_eq!(told(waited("not-running")), r#"{"StatusCode":137}"#);
        let removed = waited("removed");
        engine.docker(&["rm", &other]).succeeded();
        assert_eq!(told(removed), r#"{"StatusCode":137}"#);
    }
}

#[test]
fn health_checks_are_run() {
    let mut engine = Engine::with_busybox();
    let health = |engine: &Engine, name: &str| engine.inspect(name, "{{.State.Health.Status}}");
    for runtime in runtimes() {
        let name = format!("sick-{runtime}");
        let run =
            ["run", "-d", "--name", &name, "--runtime", runtime, "--health-interval", "500ms"];
        let check = ["--health-cmd", "echo looked; test -e /ok", "--health-retries", "2"];
        engine.docker(&[&run[..], &check[..], &["busybox", "sleep", "600"]].concat()).succeeded();
        eventually("it is unhealthy", SOON, || health(&engine, &name) == "unhealthy");
        engine.docker(&["exec", &name, "touch", "/ok"]).succeeded();
        eventually("it is healthy", SOON, || health(&engine, &name) == "healthy");
        let log = engine.inspect(&name, "{{(index .State.Health.Log 0).Output}}");
        assert_eq!(log, "looked");
        let healthy = engine.docker(&["ps", "-q", "--filter", "health=healthy"]).succeeded().text();
        assert_eq!(healthy.lines().count(), 1, "{runtime}");
        let shown = engine.docker(&["ps", "--format", "{{.Status}}"]).succeeded().text();
        assert!(shown.contains("(healthy)"), "{shown}");
        // The client's times are whole seconds.
        std::thread::sleep(Duration::from_millis(1100));
        let past = ["events", "--since", "5m", "--until", "0s", "--filter", "event=health_status"];
        let told = engine.docker(&past).succeeded().text();
        assert!(told.contains("health_status: unhealthy"), "{told}");
        assert!(told.contains("health_status: healthy"), "{told}");
        if runtime == "uml" {
            engine.kill_daemon();
            engine.restart();
            assert_eq!(health(&engine, &name), "healthy");
            engine.docker(&["exec", &name, "rm", "/ok"]).succeeded();
            eventually("the new hyperd looks as well", SOON, || {
                health(&engine, &name) == "unhealthy"
            });
        }
        engine.docker(&["rm", "-f", &name]).succeeded();
    }
    let slow =
        ["run", "-d", "--name", "slow", "--health-cmd", "sleep 100", "--health-timeout", "1s"];
    let rest = ["--health-interval", "1s", "--health-retries", "1", "busybox", "sleep", "600"];
    engine.docker(&[&slow[..], &rest[..]].concat()).succeeded();
    eventually("too slow is unhealthy", SOON, || health(&engine, "slow") == "unhealthy");
    let log = engine.inspect("slow", "{{(index .State.Health.Log 0).Output}}");
    assert!(log.contains("exceeded timeout"), "{log}");
    let left = engine.docker(&["top", "slow"]).succeeded().text();
    assert!(left.matches("sleep 100").count() <= 2, "killed probes are gone: {left}");
}

#[test]
fn our_client_has_the_same_verbs() {
    let engine = Engine::with_busybox();
    let labels = engine.dir().join("labels");
    std::fs::write(&labels, "a=1\nb=2\n").expect("labels");
    let file = labels.display().to_string();
    let run = ["run", "-d", "--name", "web", "--restart", "unless-stopped", "--label-file", &file];
    let check = ["--label", "b=3", "--health-cmd", "true", "--health-interval", "300ms", "--init"];
    let limits = ["--memory", "64m", "--memory-swap", "64m", "--cpu-quota", "50000"];
    let command = ["busybox", "sleep", "600"];
    engine.hyper(&[&run[..], &check[..], &limits[..], &command[..]].concat()).succeeded();
    assert_eq!(engine.inspect("web", "{{.Config.Labels.a}} {{.Config.Labels.b}}"), "1 3");
    assert_eq!(engine.inspect("web", "{{.HostConfig.RestartPolicy.Name}}"), "unless-stopped");
    eventually("it is healthy", SOON, || {
        engine.hyper(&["ps"]).succeeded().text().contains("(healthy)")
    });
    engine.hyper(&["restart", "-t", "0", "web"]).succeeded();
    engine.hyper(&["rename", "web", "site"]).succeeded();
    let update =
        ["update", "--cpu-quota", "25000", "--restart", "no", "--pids-limit", "30", "site"];
    engine.hyper(&update).succeeded();
    let files = ["exec", "site", "sh", "-c", "cd /sys/fs/cgroup; cat cpu.max pids.max"];
    assert_eq!(engine.hyper(&files).succeeded().text(), "25000 100000\n30");
    let top = engine.hyper(&["top", "site", "-o", "pid,args"]).succeeded().text();
    assert!(top.starts_with("PID") && top.contains("sleep 600"), "{top}");
    engine.hyper(&["update", "--restart", "sometimes", "site"]).exited(1).says(&["sometimes"]);
    engine.hyper(&["create", "--health-interval", "3 days", "busybox"]).exited(1).says(&["3 days"]);
    engine.hyper(&["create", "--device", "/dev/fuse", "busybox"]).exited(125).says(&["/dev/fuse"]);
}

#[test]
fn an_unhealthy_container_is_started_again_if_it_wants_that() {
    let engine = Engine::with_busybox();
    let wish = ["--annotation", "io.hyper.unhealthy=restart"];
    engine
        .docker(&[&["create"], &wish[..], &["busybox"]].concat())
        .exited(1)
        .says(&["io.hyper.unhealthy", "--health-cmd"]);
    for runtime in runtimes() {
        let name = format!("sick-{runtime}");
        let run = ["run", "-d", "--name", &name, "--runtime", runtime, "--stop-timeout", "1"];
        let check = ["--health-cmd", "test -e /ok", "--health-interval", "300ms"];
        let rest = ["--health-retries", "2", "--restart", "on-failure", "busybox", "sh", "-c"];
        // Ignores its stop signal, as shells do that are PID 1.
        let line = "echo up; touch /ok; sleep 1; rm /ok; sleep 600";
        engine.docker(&[&run[..], &wish, &check, &rest, &[line]].concat()).succeeded();
        eventually("it was started again, twice", SOON, || {
            engine.docker(&["logs", &name]).succeeded().text().lines().count() >= 3
        });
        let restarts: u32 = engine.inspect(&name, "{{.RestartCount}}").parse().expect("a number");
        assert!(restarts >= 2, "{restarts}");
        engine.docker(&["stop", &name]).succeeded();
        assert!(state(&engine, &name).starts_with("exited"), "stopped by hand, it stays so");
    }
}
