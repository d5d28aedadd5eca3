//! Settings of `docker run`, each seen from inside the container.

use std::path::Path;
use std::time::{Duration, Instant};

use hyper_e2e::{Engine, disk_of, eventually, runtimes, tool};

const SOON: Duration = Duration::from_secs(60);

/// Runs busybox with `flags` and a script; what it wrote.
#[track_caller]
fn seen(engine: &Engine, runtime: &str, flags: &[&str], script: &str) -> String {
    let begin = ["run", "--rm", "--runtime", runtime];
    let end = ["busybox", "sh", "-c", script];
    engine.docker(&[&begin[..], flags, &end[..]].concat()).succeeded().text()
}

#[test]
fn limits_are_enforced_in_the_guest() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let limits =
            ["--cpus", "0.5", "--cpu-shares", "512", "--memory", "64m", "--pids-limit", "20"];
        let files = "cd /sys/fs/cgroup; cat cpu.max cpu.weight memory.max pids.max; \
                     i=0; while [ $i -lt 30 ]; do sleep 9 </dev/null & i=$((i+1)); done; wait";
        let run = ["run", "--rm", "--runtime", runtime];
        let command = ["busybox", "sh", "-c", files];
        let outcome = engine.docker(&[&run[..], &limits[..], &command[..]].concat());
        let said = outcome.text();
        assert_eq!(said, "50000 100000\n20\n67108864\n20", "{runtime}");
        assert!(outcome.stderr.contains("can't fork"), "{runtime}: {}", outcome.stderr);
        let name = format!("eats-{runtime}");
        let run = ["run", "--name", &name, "--runtime", runtime, "-m", "32m"];
        engine.docker(&[&run[..], &["busybox", "tail", "/dev/zero"]].concat()).exited(137);
        let shown = engine.inspect(&name, "{{.State.OOMKilled}} {{.State.ExitCode}}");
        assert_eq!(shown, "true 137", "{runtime}");
    }
    let quota = ["--cpu-period", "50000", "--cpu-quota", "20000"];
    assert_eq!(seen(&engine, "uml", &quota, "cat /sys/fs/cgroup/cpu.max"), "20000 50000");
    let ulimits = ["--ulimit", "nofile=100:200", "--ulimit", "core=0"];
    assert_eq!(seen(&engine, "uml", &ulimits, "ulimit -n; ulimit -Hn; ulimit -c"), "100\n200\n0");
    let warned = ["create", "-m", "64m", "--memory-swap", "128m", "busybox"];
    engine.docker(&warned).succeeded().says(&["no swap"]);
    let warned = ["create", "--oom-kill-disable", "-m", "64m", "busybox"];
    engine.docker(&warned).succeeded().says(&["OomKillDisable is discarded"]);
}

/// What the host's cgroups (v1 or v2) say of write bounds.
fn bounds_on_host() -> String {
    let script = "cat $(find /sys/fs/cgroup -path '*hyper*' '(' -name io.max -o -name \
                  blkio.throttle.write_bps_device ')') 2>/dev/null";
    tool("sh", &["-c", script])
}

#[test]
fn disk_transfers_are_held_to_their_rates_in_the_guest_and_on_the_host() {
    let engine = Engine::with_busybox();
    // Where there is none only the refusals below can be tried.
    let disk = disk_of(engine.dir());
    for (runtime, disk) in runtimes().into_iter().filter_map(|one| Some((one, disk.as_ref()?))) {
        let name = format!("slow-{runtime}");
        let flag = format!("{disk}:4mb");
        let begin = ["run", "-d", "--name", &name, "--runtime", runtime];
        let bound = ["--device-write-bps", &flag, "busybox", "sleep", "600"];
        engine.docker(&[&begin[..], &bound[..]].concat()).succeeded();
        let inside =
            |script: &str| engine.docker(&["exec", &name, "sh", "-c", script]).succeeded().text();
        let said = inside("cat /sys/fs/cgroup/io.max");
        assert!(said.contains("wbps=4194304"), "{runtime}: {said}");
        // With cgroup v1 the monitor of `kvm` holds writes by itself.
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let host = bounds_on_host();
        assert!(host.contains("4194304") || (runtime == "kvm" && !v2), "{runtime}: {host}");
        let start = Instant::now();
        inside("dd if=/dev/zero of=/f bs=1M count=16 conv=fsync 2>/dev/null");
        // Twice as fast as it should be, so that no burst at the begin counts.
        assert!(start.elapsed() > Duration::from_secs(2), "{runtime}: {:?}", start.elapsed());
        let shown = engine.inspect(&name, "{{json .HostConfig.BlkioDeviceWriteBps}}");
        assert_eq!(shown, format!(r#"[{{"Path":"{disk}","Rate":4194304}}]"#));
        engine.docker(&["rm", "-f", &name]).succeeded();
    }
    for (flags, words) in [
        (["--device-read-bps", "/dev/null:1mb"], ["/dev/null", "no block device"]),
        (["--device-write-iops", "/dev/no-such:10"], ["/dev/no-such", "No such file"]),
        (["--blkio-weight", "500"], ["BlkioWeight", "--device-write-bps"]),
    ] {
        let outcome = engine.hyper(&[&["create"], &flags[..], &["busybox"]].concat());
        outcome.exited(125).says(&words);
    }
    engine.hyper(&["create", "--device-read-bps", "/dev/x", "busybox"]).exited(1).says(&["RATE"]);
}

#[test]
fn privileges_are_what_was_asked_for() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let caps = "grep CapEff /proc/self/status | cut -f2";
        let eff = |flags: &[&str]| {
            let text = seen(&engine, runtime, flags, caps);
            u64::from_str_radix(&text, 16).expect("a mask")
        };
        let (net_admin, chown) = (1 << 12, 1);
        let default = eff(&[]);
        assert_eq!(default & net_admin, 0, "{runtime}");
        assert_eq!(eff(&["--cap-add", "NET_ADMIN"]), default | net_admin);
        assert_eq!(eff(&["--cap-drop", "CHOWN"]), default & !chown);
        assert_eq!(eff(&["--cap-drop", "ALL", "--cap-add", "CHOWN"]), chown);
        let mount = "mkdir -p /m; mount -t tmpfs t /m 2>/dev/null && echo mounted || echo refused";
        assert_eq!(seen(&engine, runtime, &[], mount), "refused");
        assert_eq!(seen(&engine, runtime, &["--privileged"], mount), "mounted");
        let nnp = "grep NoNewPrivs /proc/self/status | cut -f2";
        assert_eq!(seen(&engine, runtime, &["--security-opt", "no-new-privileges"], nnp), "1");
        let filter = "grep Seccomp: /proc/self/status | cut -f2";
        assert_eq!(seen(&engine, runtime, &[], filter), "2");
        assert_eq!(seen(&engine, runtime, &["--security-opt", "seccomp=unconfined"], filter), "0");
    }
    let profile = engine.dir().join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],
        "action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
    std::fs::write(&profile, text).expect("profile");
    let option = format!("seccomp={}", profile.display());
    let script = "mkdir /x 2>&1; touch /y && echo made";
    let said = seen(&engine, "uml", &["--security-opt", &option], script);
    assert!(said.contains("not permitted") && said.ends_with("made"), "{said}");
    let adj = ["--oom-score-adj", "500"];
    assert_eq!(seen(&engine, "uml", &adj, "cat /proc/self/oom_score_adj"), "500");
}

#[test]
fn who_where_and_what_is_run() {
    let engine = Engine::with_busybox();
    let labels = engine.dir().join("labels");
    std::fs::write(&labels, "# none\ntier=front\n").expect("labels");
    let variables = engine.dir().join("variables");
    std::fs::write(&variables, "FROM_FILE=yes\n# none\n").expect("variables");
    for runtime in runtimes() {
        let who = ["--user", "33:44", "--group-add", "55", "--group-add", "tty"];
        let said = seen(&engine, runtime, &who, "id -u; id -g; id -G");
        assert_eq!(said, "33\n44\n44 5 55", "{runtime}");
        let place = ["--workdir", "/made/here", "--hostname", "h1", "--domainname", "d.example"];
        let said = seen(&engine, runtime, &place, "pwd; hostname; hostname -f; cat /etc/hostname");
        assert_eq!(said, "/made/here\nh1\nh1.d.example\nh1", "{runtime}");
        let file = variables.display().to_string();
        let env = ["--env-file", &file, "-e", "B=c d"];
        assert_eq!(seen(&engine, runtime, &env, "echo $FROM_FILE $B"), "yes c d");
        let run =
            ["run", "--rm", "--runtime", runtime, "--entrypoint", "echo", "busybox", "a", "b"];
        assert_eq!(engine.docker(&run).succeeded().text(), "a b");
        let ro = "touch /x 2>&1; touch /t/x && echo t; touch /dev/shm/x && echo shm";
        let flags = ["--read-only", "--tmpfs", "/t:size=1m,mode=700", "--shm-size", "2m"];
        let said = seen(&engine, runtime, &flags, ro);
        assert!(said.contains("Read-only file system") && said.ends_with("t\nshm"), "{said}");
        let sizes = "df -k /t /dev/shm | awk 'NR>1{print $2}'; stat -c %a /t";
        assert_eq!(seen(&engine, runtime, &flags, sizes), "1024\n2048\n700");
        let sysctl = ["--sysctl", "kernel.msgmax=4096"];
        assert_eq!(seen(&engine, runtime, &sysctl, "cat /proc/sys/kernel/msgmax"), "4096");
    }
    engine
        .docker(&["run", "--rm", "--group-add", "nosuch", "busybox", "true"])
        .exited(125)
        .says(&["unable to find group nosuch"]);
    let none = "test -e /dev/shm && grep ' /dev/shm ' /proc/mounts || echo without";
    assert_eq!(seen(&engine, "uml", &["--ipc", "none"], none), "without");
    let file = labels.display().to_string();
    engine.docker(&["create", "--name", "labelled", "--label-file", &file, "busybox"]).succeeded();
    assert_eq!(engine.inspect("labelled", "{{.Config.Labels.tier}}"), "front");
}

#[test]
fn init_reaps_and_forwards() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("init-{runtime}");
        // The first process starts one that loses its parent at once.
        let script = "trap 'echo got; exit 7' USR1; (sleep 0.2 & exit); \
                      echo up; while :; do sleep 0.1; done";
        let run = ["run", "-d", "--init", "--name", &name, "--runtime", runtime, "busybox"];
        engine.docker(&[&run[..], &["sh", "-c", script]].concat()).succeeded();
        eventually("it runs", SOON, || engine.docker(&["logs", &name]).text() == "up");
        let first = ["exec", &name, "sh", "-c", "cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline"];
        let said = engine.docker(&first).succeeded().text();
        assert!(said.contains("docker-init"), "{runtime}: {said}");
        eventually("no zombie stays", SOON, || {
            let states = ["exec", &name, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null"];
            !engine.docker(&states).text().contains(") Z ")
        });
        engine.docker(&["kill", "-s", "USR1", &name]).succeeded();
        assert_eq!(engine.docker(&["wait", &name]).succeeded().text(), "7", "{runtime}");
        assert_eq!(engine.docker(&["logs", &name]).text(), "up\ngot", "{runtime}");
        let code =
            ["run", "--rm", "--init", "--runtime", runtime, "busybox", "sh", "-c", "kill -9 $$"];
        engine.docker(&code).exited(137);
        let missing = ["run", "--rm", "--init", "--runtime", runtime, "busybox", "nosuch"];
        engine.docker(&missing).exited(127).says(&["nosuch"]);
    }
    // As any user, with a terminal, and stopped in time: without one, sh ignores the signal.
    let user = ["run", "-d", "--init", "--name", "nobody", "-t", "-u", "33", "--cap-drop", "ALL"];
    engine.docker(&[&user[..], &["busybox", "sleep", "600"]].concat()).succeeded();
    let begun = Instant::now();
    engine.docker(&["stop", "-t", "60", "nobody"]).succeeded();
    assert!(begun.elapsed() < Duration::from_secs(30), "the stop signal reaches it");
    assert_eq!(engine.inspect("nobody", "{{.State.ExitCode}}"), "143");
}

#[test]
fn stop_signal_and_grace() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("stops-{runtime}");
        let script = "trap 'exit 5' INT; trap '' TERM; echo up; while :; do sleep 0.1; done";
        let run = ["run", "-d", "--stop-signal", "SIGINT", "--stop-timeout", "60", "--name", &name];
        let rest = ["--runtime", runtime, "busybox", "sh", "-c", script];
        engine.docker(&[&run[..], &rest[..]].concat()).succeeded();
        eventually("it runs", SOON, || engine.docker(&["logs", &name]).text() == "up");
        engine.docker(&["stop", &name]).succeeded();
        assert_eq!(engine.inspect(&name, "{{.State.ExitCode}}"), "5", "{runtime}");
        engine.docker(&["start", &name]).succeeded();
        eventually("it runs again", SOON, || engine.docker(&["logs", &name]).text() == "up\nup");
        engine.docker(&["stop", "-s", "TERM", "-t", "1", &name]).succeeded();
        assert_eq!(engine.inspect(&name, "{{.State.ExitCode}}"), "137", "{runtime}");
    }
}

#[test]
fn what_a_guest_cannot_honour_is_refused_by_name() {
    let engine = Engine::with_busybox();
    for (flags, words) in [
        (&["--blkio-weight", "300"][..], ["BlkioWeight", "weighs"]),
        (&["--device", "/dev/fuse"], ["Devices", "/dev/fuse"]),
        (&["--pid", "host"], ["PidMode", "host"]),
        (&["--ipc", "host"], ["IpcMode", "host"]),
        (&["--uts", "host"], ["UTSMode", "host"]),
        (&["--cgroupns", "host"], ["CgroupnsMode", "host"]),
        (&["--cpuset-mems", "0"], ["CpusetMems", "the host's choice"]),
        (&["--cgroup-parent", "/x"], ["CgroupParent", "guest's own"]),
        (&["--security-opt", "apparmor=x"], ["SecurityOpt", "apparmor=x"]),
        (&["--device-read-bps", "/dev/nosuch:1mb"], ["/dev/nosuch", "No such file"]),
    ] {
        let begin = ["create"];
        engine.docker(&[&begin[..], flags, &["busybox"]].concat()).exited(1).says(&words);
    }
    engine.docker(&["run", "--rm", "--userns", "host", "busybox", "true"]).succeeded();
    for (flags, words) in [
        (&["--ulimit", "nofile=5:1"][..], ["nofile", "5"]),
        (&["--cap-add", "NOSUCH"], ["NOSUCH", "cap"]),
        (&["--memory", "1m"], ["Minimum memory", "6MB"]),
        (&["--sysctl", "kernel.nosuch=1"], ["kernel.nosuch", ""]),
    ] {
        let begin = ["run", "--rm"];
        let outcome = engine.docker(&[&begin[..], flags, &["busybox", "true"]].concat());
        assert_ne!(outcome.code, 0, "{flags:?}");
        outcome.says(&words);
    }
}
