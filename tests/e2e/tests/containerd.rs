//! The same supervisor under Debian's containerd.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_e2e::{Alone, Host, Outcome, Turn, eventually, image, program, run, runtimes};
use tempfile::TempDir;

/// A containerd of the test's own.
struct Containerd {
    dir: TempDir,
    process: Child,
    _turn: Turn,
}

impl Containerd {
    fn start() -> Self {
        let turn = Turn::beside();
        let dir = tempfile::Builder::new().prefix("hyper-ctr-").tempdir().expect("directory");
        let root = dir.path();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\
             \"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\"]\n\
             [grpc]\naddress = \"{0}/containerd.sock\"\n[ttrpc]\naddress = \"{0}/ttrpc.sock\"\n",
            root.display()
        );
        std::fs::write(root.join("config.toml"), config).expect("write the configuration");
        let log = File::create(root.join("log")).expect("log");
        let shims = program("containerd-shim-hyper-v2");
        let path = std::env::var("PATH").expect("PATH");
        let process = Command::new("containerd")
            .args(["--config", &root.join("config.toml").display().to_string()])
            .env("PATH", format!("{}:{path}", shims.parent().expect("directory").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start containerd");
        let containerd = Self { dir, process, _turn: turn };
        eventually("containerd answers", Duration::from_secs(30), || {
            containerd.ctr(&["version"]).code == 0
        });
        containerd
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    #[track_caller]
    fn ctr(&self, arguments: &[&str]) -> Outcome {
        let address = self.root().join("containerd.sock").display().to_string();
        let mut all = vec!["--address", address.as_str()];
        all.extend(arguments);
        run("ctr", &all, Duration::from_secs(120))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.root().join("log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        let pid = rustix::process::Pid::from_child(&self.process);
        // Already gone is fine.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

#[test]
fn ctr_run_prints_from_inside_the_guest_and_leaves_nothing() {
    let alone = Alone::wait();
    let containerd = Containerd::start();
    containerd.ctr(&["image", "import", &image("busybox").display().to_string()]).succeeded();
    let reference = "docker.io/library/busybox:latest";
    let marker = containerd.root().display().to_string();
    let before = Host::at_rest(&alone, &marker);
    let ctr_run = |id: &str, extra: &[&str], command: &[&str]| {
        let mut all = vec!["run", "--rm", "--runtime", "io.containerd.hyper.v2"];
        all.extend(extra);
        all.extend([reference, id]);
        all.extend(command);
        containerd.ctr(&all)
    };
    let host = run("uname", &["-r"], Duration::from_secs(5)).text();
    for runtime in runtimes() {
        let pick = format!("io.hyper.hypervisor={runtime}");
        let guest = ctr_run("a", &["--annotation", &pick], &["uname", "-r"]).succeeded().text();
        assert!(!guest.is_empty());
        assert_ne!(guest, host, "{runtime}");
        ctr_run("b", &["--annotation", &pick], &["sh", "-c", "exit 17"]).exited(17);
    }
    // Writes go to the guest's own disk.
    let text = ctr_run("c", &[], &["sh", "-c", "echo x > /y && cat /y"]).succeeded().text();
    assert_eq!(text, "x");
    eventually("all is as before", Duration::from_secs(15), || Host::look(&marker) == before);
}

#[test]
fn ctr_exec_and_kill_work() {
    let containerd = Containerd::start();
    containerd.ctr(&["image", "import", &image("busybox").display().to_string()]).succeeded();
    let files = tempfile::tempdir().expect("directory");
    let pid_file = files.path().join("pid");
    let reference = "docker.io/library/busybox:latest";
    containerd
        .ctr(&[
            "run",
            "-d",
            "--runtime",
            "io.containerd.hyper.v2",
            "--pid-file",
            &pid_file.display().to_string(),
            reference,
            "long",
            "sleep",
            "600",
        ])
        .succeeded();
    let pid = std::fs::read_to_string(&pid_file).expect("the pid file");
    let listed = containerd.ctr(&["task", "ls"]).succeeded().text();
    let long = listed.lines().find(|line| line.starts_with("long")).expect("the task");
    assert_eq!(long.split_whitespace().nth(1), Some(pid.trim()), "{listed}");
    let exec = containerd.ctr(&["task", "exec", "--exec-id", "e1", "long", "echo", "from exec"]);
    assert_eq!(exec.succeeded().text(), "from exec");
    containerd.ctr(&["task", "exec", "--exec-id", "e2", "long", "sh", "-c", "exit 3"]).exited(3);
    // A signal to the exec, and to nothing else.
    let exec = ["task", "exec", "--exec-id", "e3", "long", "sleep", "600"];
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| containerd.ctr(&exec));
        eventually("the exec is there and has its signal", Duration::from_secs(15), || {
            let kill = ["task", "kill", "-s", "15", "--exec-id", "e3", "long"];
            containerd.ctr(&kill).code == 0
        });
        ended.join().expect("the exec's client").exited(143);
    });
    assert!(containerd.ctr(&["task", "ls"]).text().contains("RUNNING"));
    containerd.ctr(&["task", "kill", "-s", "9", "long"]).succeeded();
    eventually("the task has stopped", Duration::from_secs(15), || {
        containerd.ctr(&["task", "ls"]).text().contains("STOPPED")
    });
    containerd.ctr(&["task", "rm", "long"]);
    containerd.ctr(&["container", "rm", "long"]).succeeded();
}

#[test]
fn bind_mounts_of_the_oci_spec_are_live() {
    let containerd = Containerd::start();
    containerd.ctr(&["image", "import", &image("busybox").display().to_string()]).succeeded();
    let shared = tempfile::tempdir().expect("directory");
    std::fs::write(shared.path().join("in"), "from the host").expect("write");
    let path = shared.path().display();
    let (data, hosts) = (
        format!("type=bind,src={path},dst=/data,options=rbind:rw"),
        format!("type=bind,src={path}/in,dst=/etc/hosts,options=rbind:ro"),
    );
    for runtime in runtimes() {
        let pick = format!("io.hyper.hypervisor={runtime}");
        let run = |mounts: &[&str], script: &str| {
            let mut all =
                vec!["run", "--rm", "--runtime", "io.containerd.hyper.v2", "--annotation", &pick];
            mounts.iter().for_each(|mount| all.extend(["--mount", mount]));
            all.extend(["docker.io/library/busybox:latest", "m1", "sh", "-c", script]);
            containerd.ctr(&all)
        };
        let script = "cat /data/in /etc/hosts; echo x > /etc/hosts; echo back > /data/out";
        let outcome = run(&[&data, &hosts], script).succeeded();
        assert_eq!(outcome.text(), "from the hostfrom the host", "{runtime}");
        outcome.says(&["Read-only file system"]);
        let out = shared.path().join("out");
        assert_eq!(std::fs::read_to_string(&out).expect("out"), "back\n");
        std::fs::remove_file(out).expect("remove");
        let slave = format!("type=bind,src={path},dst=/data,options=rbind:rslave");
        run(&[&slave], "true").exited(1).says(&["rslave"]);
    }
}
