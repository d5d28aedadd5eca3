//! What the first Hyper did, as checks on every hypervisor: its end-to-end suite (`hack/test-cmd.sh`,
//! `integration/hyper_test.go`). `docs/original-hyper.md` says which check is where; many were here
//! before.
//!
//! Its runv was an OCI runtime too, with runc's suite (61 cases in bats). What of that is about a
//! runtime's own command line has no place here, because there is none: `runv create|start|delete
//! --force`, `--pid-file` and the directory it is relative to, `--root`, `ps`, `list -f json`, `state`,
//! `spec`, `events`, help of invalid commands. Our end of that is containerd's shim API, which says
//! the same by calls: `containerd.rs` runs, execs in, kills and removes by `ctr`. What the suite says of
//! containers (exit codes, users, working directories, environment, terminals, states, masked and
//! read-only paths, pause) is checked below, in `run.rs` and in the agent's own tests.

use std::time::{Duration, Instant};

use hyper_e2e::{Engine, Registry, Terminal, build, context, eventually, image, runtimes};

const SOON: Duration = Duration::from_secs(30);

/// A pod of one runtime with a container `NAME-web` in it, for all checks that need no other.
struct Stage<'a> {
    engine: &'a Engine,
    runtime: &'static str,
    pod: String,
    web: String,
}

impl Stage<'_> {
    /// A name of this runtime's.
    fn name(&self, name: &str) -> String {
        format!("{name}-{}", self.runtime)
    }

    /// `hyper run …` in a pod to itself.
    fn run(&self, words: &[&str]) -> hyper_e2e::Outcome {
        self.engine.hyper(&[&["run", "--runtime", self.runtime][..], words].concat())
    }

    fn exec(&self, script: &str) -> hyper_e2e::Outcome {
        self.engine.hyper(&["exec", &self.web, "sh", "-c", script])
    }
}

/// Number in the first Hyper's list of behaviours, and the check.
type Check = (&'static str, fn(&Stage<'_>));

const CHECKS: [Check; 12] = [
    ("2: exit codes of run and exec", |stage| {
        stage.run(&["--rm", "busybox", "sh", "-c", "exit 17"]).exited(17);
        stage.exec("exit 37").exited(37);
        let missing = stage.engine.hyper(&["exec", &stage.web, "no-such-program"]).exited(127);
        missing.says(&["no-such-program"]);
    }),
    ("3: the pod's hostname is seen inside", |stage| {
        assert_eq!(stage.exec("hostname").succeeded().text(), "host.of.the-pod");
    }),
    ("5: directories, single files, what is read-only", |stage| {
        let host = tempfile::tempdir().expect("directory");
        let (directory, file) = (host.path().join("d"), host.path().join("f"));
        std::fs::create_dir(&directory).expect("directory");
        std::fs::write(&file, "from the host").expect("file");
        let binds = [
            format!("{}:/d", directory.display()),
            format!("{}:/f:ro", file.display()),
            format!("{}:/locked:ro", directory.display()),
        ];
        let script = "cat /f; echo inside >/d/made; echo x >/f; echo x >/locked/x; echo x >/x";
        let mut words = vec!["run", "--rm", "--runtime", stage.runtime, "--read-only"];
        words.extend(binds.iter().flat_map(|bind| ["-v", bind.as_str()]));
        words.extend(["busybox", "sh", "-c", script]);
        let said = stage.engine.hyper(&words);
        assert_eq!(said.text(), "from the host");
        assert_eq!(said.stderr.matches("Read-only file system").count(), 3, "{}", said.stderr);
        let made = std::fs::read_to_string(directory.join("made")).expect("made in the pod");
        assert_eq!(made, "inside\n");
    }),
    ("10: user of the image and of the command, VOLUME, /etc/hosts", |stage| {
        let show = "id -un; id -gn; stat -c %U /kept; grep -c ' /kept ' /proc/mounts; \
                    grep -c some.host /etc/hosts";
        let said =
            stage.run(&["--rm", "-h", "some.host", "users", "sh", "-c", show]).succeeded().text();
        assert_eq!(said, "www-data\nstaff\nroot\n1\n1");
        for (user, expected) in [("nobody", "nobody\nnogroup"), ("0:5", "root\ntty")] {
            let script = "id -un; id -gn";
            let words = ["--rm", "--user", user, "users", "sh", "-c", script];
            assert_eq!(stage.run(&words).succeeded().text(), expected, "{user}");
        }
    }),
    ("11: a terminal whose program ignores TERM is killed", |stage| {
        let name = stage.name("deaf");
        let deaf = "trap '' TERM; echo ready; while :; do sleep 1; done";
        stage.run(&["-dt", "--name", &name, "busybox", "sh", "-c", deaf]).succeeded();
        eventually("it ignores TERM", SOON, || {
            stage.engine.hyper(&["logs", &name]).text().contains("ready")
        });
        let started = Instant::now();
        stage.engine.hyper(&["stop", "-t", "1", &name]).succeeded();
        assert!(started.elapsed() > Duration::from_millis(900), "it had its second");
        assert_eq!(stage.engine.inspect(&name, "{{.State.ExitCode}}"), "137");
    }),
    ("12: a last line without its end is in the log", |stage| {
        let name = stage.name("unended");
        stage.run(&["--name", &name, "busybox", "printf", "one\nfoobar"]).succeeded();
        let log = stage.engine.hyper(&["logs", &name]).succeeded();
        assert_eq!(log.stdout, b"one\nfoobar");
    }),
    ("14: create, list, inspect", |stage| {
        let name = stage.name("made");
        let words = ["create", "--pod", &stage.pod, "--name", &name, "-l", "a=1", "busybox"];
        stage.engine.hyper(&[&words[..], &["sleep", "600"]].concat()).succeeded();
        assert_eq!(stage.engine.inspect(&name, "{{.State.Status}}"), "created");
        stage.engine.hyper(&["start", &name]).succeeded();
        let filter = format!("name=^/{name}$");
        let listed =
            stage.engine.docker(&["ps", "-f", &filter, "--format", "{{.Names}} {{.State}}"]);
        assert_eq!(listed.succeeded().text(), format!("{name} running"));
        let shown = stage.engine.hyper(&["pod", "inspect", &stage.pod]).succeeded().text();
        assert!(shown.contains(&format!("\"{name}\"")), "{shown}");
    }),
    ("14: rename; signals to containers and execs", |stage| {
        let (old, new) = (stage.name("made"), stage.name("renamed"));
        stage.engine.hyper(&["rename", &old, &new]).succeeded();
        assert_ne!(stage.engine.hyper(&["inspect", &old]).code, 0);
        let trap = "trap 'exit 9' USR1; echo $$ >/tmp/pid; while :; do sleep 0.1; done";
        let exec = stage.engine.hyper_command(&["exec", &stage.web, "sh", "-c", trap]);
        let mut exec = { exec }.spawn().expect("exec");
        eventually("the exec is there", SOON, || stage.exec("test -s /tmp/pid").code == 0);
        stage.exec("kill -USR1 $(cat /tmp/pid)").succeeded();
        let mut code = None;
        eventually("the exec's end is told", SOON, || {
            code = exec.try_wait().expect("wait");
            code.is_some()
        });
        assert_eq!(code.and_then(|code| code.code()), Some(9));
        stage.engine.hyper(&["kill", "-s", "KILL", &new]).succeeded();
        eventually("its end", SOON, || {
            stage.engine.inspect(&new, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
        });
        stage.engine.hyper(&["rm", &new]).succeeded();
    }),
    ("14: labels of a pod are added and overridden", |stage| {
        let field = || {
            let template = "{{json .labels}}";
            let words = ["pod", "inspect", "--format", template, &stage.pod];
            stage.engine.hyper(&words).succeeded().text()
        };
        stage.engine.hyper(&["pod", "update", "--label", "a=1", &stage.pod]).succeeded();
        stage.engine.hyper(&["pod", "update", "--label", "a=2", "--label", "b=3", &stage.pod]);
        assert_eq!(field(), r#"{"a":"2","b":"3"}"#);
    }),
    ("14: pause and unpause; statistics", |stage| {
        let status = || {
            let words = ["pod", "inspect", "--format", "{{.status}}", &stage.pod];
            stage.engine.hyper(&words).succeeded().text()
        };
        stage.engine.hyper(&["pod", "pause", &stage.pod]).succeeded();
        assert_eq!(status(), "paused");
        stage.engine.hyper(&["pod", "unpause", &stage.pod]).succeeded();
        assert_eq!(status(), "running");
        let words = ["pod", "stats", "--format", "{{.Name}} {{.Hypervisor}}", &stage.pod];
        let shown = stage.engine.hyper(&words).succeeded().text();
        assert_eq!(shown, format!("{} {}", stage.pod, stage.runtime));
        let words = ["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", &stage.web];
        let shown = stage.engine.docker(&words).succeeded().text();
        let (name, processes) = shown.split_once(' ').expect("two fields");
        assert!(name == stage.web && processes.parse::<u32>().is_ok_and(|n| n > 0), "{shown}");
    }),
    ("13: ports, both directions", |stage| {
        let name = stage.name("ported");
        let serve = "nc -l -p 1300 -e sh -c 'read x; echo got $x'; sleep 600";
        let words = ["run", "-d", "--runtime", stage.runtime, "--name", &name, "-p", "1300"];
        stage.engine.hyper(&[&words[..], &["busybox", "sh", "-c", serve]].concat()).succeeded();
        let port = stage.engine.hyper(&["port", &name, "1300/tcp"]).succeeded().text();
        let port = port.lines().next().and_then(|line| line.rsplit_once(':')).expect("a port").1;
        let mut said = String::new();
        eventually("it listens", SOON, || {
            let ask = format!("(echo ping; sleep 1) | busybox nc -w 5 127.0.0.1 {port}");
            said = stage.engine.beside(&["sh", "-c", &ask]).text();
            !said.is_empty()
        });
        assert_eq!(said, "got ping");
        stage.engine.hyper(&["rm", "-f", &name]).succeeded();
    }),
    (
        "16: masked and read-only paths, user, directory, environment, terminal of an exec",
        |stage| {
            let masked = "cat /proc/kcore | wc -c; echo x >/proc/sys/kernel/hostname";
            let said = stage.exec(masked);
            assert!(said.text() == "0" && said.stderr.contains("Read-only"), "{said:?}");
            let words =
                ["exec", "-u", "www-data", "-w", "/tmp", "-e", "A=b", &stage.web, "sh", "-c"];
            let words = [&words[..], &["id -un; pwd; echo $A"]].concat();
            assert_eq!(stage.engine.hyper(&words).succeeded().text(), "www-data\n/tmp\nb");
            let script = "stat -c %U $(tty); stty size; exit 4";
            let words = ["exec", "-it", "-u", "www-data", &stage.web, "sh", "-c", script];
            let mut terminal = Terminal::start(stage.engine.hyper_command(&words));
            assert_eq!(terminal.ended(), Some(4));
            assert!(terminal.screen().contains("www-data"), "{}", terminal.screen());
        },
    ),
];

#[test]
fn pods_do_what_those_of_the_first_hyper_did() {
    let mut engine = Engine::apart();
    let recipe = "FROM busybox\nUSER www-data:staff\nVOLUME /kept\n";
    build(&engine, &context(&[("Dockerfile", recipe)]), &["-t", "users"]).succeeded();
    for runtime in runtimes() {
        let (pod, web) = (format!("pod-{runtime}"), format!("web-{runtime}"));
        let words = ["pod", "create", "--runtime", runtime, "--hostname", "host.of.the-pod", &pod];
        engine.hyper(&words).succeeded();
        engine.hyper(&["pod", "start", &pod]).succeeded();
        let kept = format!("kept-{runtime}:/kept");
        let words = ["run", "-dit", "--pod", &pod, "--name", &web, "-v", &kept, "busybox", "cat"];
        engine.hyper(&words).succeeded();
        let stage = Stage { engine: &engine, runtime, pod, web };
        for (what, check) in CHECKS {
            println!("{runtime}: {what}");
            check(&stage);
        }
    }
    // 17: pods go on without hyperd, and are attached to again.
    engine.kill_daemon();
    engine.restart();
    for runtime in runtimes() {
        let (pod, web) = (format!("pod-{runtime}"), format!("web-{runtime}"));
        assert_eq!(engine.inspect(&web, "{{.State.Status}}"), "running");
        let words = ["attach", "--detach-keys", "ctrl-x", &web];
        let mut terminal = Terminal::start(engine.hyper_command(&words));
        terminal.answer("", "again\n");
        terminal.answer("again", "\u{18}");
        assert_eq!(terminal.ended(), Some(0), "{}", terminal.screen());
        // 9: a member with volumes goes after the pod was stopped.
        engine.hyper(&["pod", "stop", "-t", "0", &pod]).succeeded();
        engine.hyper(&["rm", &web]).succeeded();
        engine.hyper(&["volume", "rm", &format!("kept-{runtime}")]).succeeded();
        engine.hyper(&["pod", "rm", &pod]).succeeded();
    }
}

#[test]
fn images_come_and_go_and_what_is_wrong_is_told() {
    let engine = Engine::with_busybox();
    // 1
    assert_ne!(engine.hyper(&["create"]).code, 0);
    assert!(engine.hyper(&["info"]).succeeded().text().contains("Containers"));
    assert!(engine.hyper(&["version"]).succeeded().text().contains("Version"));
    let registry = Registry::start();
    registry.push(&image("busybox"), "small:1");
    let name = registry.reference("small:1");
    let listed = || engine.hyper(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).text();
    for _ in 0..2 {
        engine.hyper(&["pull", "-q", &name]).succeeded();
        assert!(listed().contains(&name), "{}", listed());
        engine.hyper(&["rmi", &name]).succeeded();
        assert!(!listed().contains(&name), "{}", listed());
    }
    // 3: hostnames that are none, wherever they are given.
    let (long, longer) = ("h".repeat(64), ["a".repeat(40).as_str(); 2].join("."));
    for bad in [long.as_str(), &longer, "under_score", "two..dots", "-", "sp ace", "ümlaut"] {
        let pod = engine.hyper(&["pod", "create", &format!("--hostname={bad}"), "never"]);
        let alone = engine.hyper(&["create", &format!("--hostname={bad}"), "busybox"]);
        let user_pod = format!(
            r#"{{"id": "never", "hostname": "{bad}", "containers": [{{"image": "busybox"}}]}}"#
        );
        let applied = engine.hyper_with_input(&["apply", "-f", "-"], user_pod.into());
        // Docker's has taken `_` and `-` anywhere from the beginning.
        let alone = ["under_score", "-"].iter().all(|fine| *fine != bad).then_some(alone);
        for refused in [pod, applied].into_iter().chain(alone) {
            assert!(refused.code != 0 && refused.stderr.contains("hostname"), "{bad}: {refused:?}");
        }
    }
    assert_eq!(engine.hyper(&["pod", "ps", "-q"]).succeeded().text(), "");
    // 16: an unknown command is told.
    let unknown = engine.hyper(&["no-such-command"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("no-such-command"), "{unknown:?}");
}

#[test]
fn exec_in_the_guest_is_outside_of_all_containers() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (pod, one, two) =
            (format!("g-{runtime}"), format!("one-{runtime}"), format!("two-{runtime}"));
        engine.hyper(&["pod", "create", "--runtime", runtime, &pod]).succeeded();
        engine.hyper(&["pod", "start", &pod]).succeeded();
        let early = engine.hyper(&["pod", "exec", "--guest", &pod, "true"]);
        assert!(early.code == 1 && early.stderr.contains("no programs"), "{}", early.stderr);
        for (name, seconds) in [(&one, "6001"), (&two, "6002")] {
            let args = ["run", "-d", "--pod", &pod, "--name", name, "--memory", "24m", "--user"];
            let args = [&args[..], &["nobody", "busybox", "sleep", seconds]].concat();
            engine.hyper(&args).succeeded();
        }
        engine.hyper(&["exec", "-u", "0", &two, "sh", "-c", "echo two >/which"]).succeeded();
        let guest = |words: &[&str]| {
            let all = [&["pod", "exec", "--guest", &pod][..], words].concat();
            engine.hyper(&all)
        };
        // All processes, by the guest's numbers: the agent is the first.
        let seen = guest(&["ps", "-o", "pid,args"]).succeeded().text();
        for wanted in ["sleep 6001", "sleep 6002"] {
            assert!(seen.contains(wanted), "{runtime}: {seen}");
        }
        let agent = guest(&["readlink", "/proc/1/exe"]).succeeded().text();
        let own = engine.hyper(&["exec", &one, "readlink", "/proc/1/exe"]).text();
        assert_ne!(agent, own, "{runtime}: process 1 is the agent, not a container's");
        // Kernel, mounts, network, and root's rights.
        assert!(guest(&["dmesg"]).succeeded().text().contains("Linux version"));
        let mounts = guest(&["cat", "/proc/1/mounts"]).succeeded().text();
        assert!(mounts.contains(" /run/hyper "), "{runtime}: {mounts}");
        assert!(guest(&["mount"]).succeeded().text().contains("on /sys/fs/cgroup type cgroup2"));
        let addresses = guest(&["ip", "-o", "addr"]).succeeded().text();
        assert!(addresses.contains("eth0"), "{runtime}: {addresses}");
        assert_eq!(guest(&["id", "-u"]).succeeded().text(), "0");
        assert_eq!(guest(&["-u", "nobody", "id", "-un"]).succeeded().text(), "nobody");
        assert_eq!(guest(&["hostname"]).succeeded().text(), pod);
        let place = guest(&["cat", "/proc/self/cgroup"]).succeeded().text();
        assert!(place.starts_with("0::/guest,"), "{runtime}: {place}");
        let limit = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max";
        assert_eq!(guest(&["sh", "-c", limit]).succeeded().text(), "max", "no container's limit");
        // Streams and codes as those of any exec.
        let args = ["pod", "exec", "-i", "--guest", &pod, "wc", "-c"];
        let counted = engine.hyper_with_input(&args, vec![b'x'; 300_000]).succeeded();
        assert_eq!(counted.text().trim(), "300000");
        assert_eq!(guest(&["sh", "-c", "exit 37"]).code, 37);
        assert_eq!(guest(&["no-such-program"]).code, 127);
        assert_eq!(guest(&["/etc"]).code, 126);
        let words =
            ["pod", "exec", "-it", "--guest", &pod, "sh", "-c", "tty; read x; echo=$x; exit 5"];
        let mut terminal = Terminal::start(engine.hyper_command(&words));
        terminal.answer("/dev/pts/", "yes\n");
        assert_eq!(terminal.ended(), Some(5));
        // The programs of another container; and one that is not of this pod.
        let chosen = guest(&["--container", &two, "cat", "/which"]).succeeded().text();
        assert_eq!(chosen, "two");
        let none = guest(&["--container", "nobody-here", "true"]);
        assert!(none.code == 1 && none.stderr.contains("no such container"), "{}", none.stderr);
        // It ends with the container whose root it is in, and leaves nothing.
        guest(&["-d", "--container", &one, "sleep", "6003"]).succeeded();
        engine.hyper(&["rm", "-f", &one]).succeeded();
        let left = guest(&["sh", "-c", "ps -o args; ls /sys/fs/cgroup"]).succeeded().text();
        assert!(!left.contains("sleep 6003") && !left.contains("sleep 6001"), "{left}");
        assert_eq!(left.matches("guest,").count(), 1, "{runtime}: {left}");
        engine.hyper(&["pod", "rm", "-f", &pod]).succeeded();
    }
    // A container that has a pod to itself.
    engine.hyper(&["run", "-d", "--name", "alone", "busybox", "sleep", "600"]).succeeded();
    let seen = engine.hyper(&["pod", "exec", "--guest", "alone", "ps", "-o", "args"]).succeeded();
    assert!(seen.text().contains("sleep 600"), "{}", seen.text());
    let missing = engine.hyper(&["pod", "exec", "--guest", "nowhere", "true"]);
    assert!(missing.code == 1 && missing.stderr.contains("nowhere"), "{}", missing.stderr);
}
