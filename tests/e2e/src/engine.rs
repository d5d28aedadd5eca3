//! A hyperd of the test's own, and the two clients that talk to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::command::{Outcome, run, run_command};
use crate::turn::Turn;
use crate::{eventually, image, program};

/// Time for one client command; emulated guests on a busy machine are slow.
const DEADLINE: Duration = Duration::from_secs(180);

/// Configuration of an engine's supervisors, below its directory.
const SUPERVISORS: &str = "supervisor.toml";
/// Programs that hyperd finds before the machine's, below an engine's directory.
pub const TOOLS: &str = "tools";

/// A running hyperd. Dropped: its pods and containers are removed, it is stopped, its files go.
#[derive(Debug)]
pub struct Engine {
    dir: TempDir,
    daemon: Child,
    flags: Vec<String>,
    /// It runs in a network namespace of its own, of this name.
    namespace: Option<String>,
    /// Its exec-root, when that is in memory.
    memory: Option<TempDir>,
    _turn: Turn,
}

impl Engine {
    /// Starts a hyperd with nothing in it.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a hyperd with more flags.
    pub fn start_with(flags: &[&str]) -> Self {
        Self::start_in(None, flags)
    }

    /// Starts a hyperd that has the busybox image, and an exec-root in memory, as installed ones do.
    pub fn in_memory() -> Self {
        let memory = tempfile::Builder::new().prefix("he-").tempdir_in("/dev/shm");
        let memory = memory.expect("directory in memory");
        let root = memory.path().display().to_string();
        let mut engine = Self::start_with(&["--exec-root", &root]);
        engine.memory = Some(memory);
        engine.hyper(&["load", "-q", "-i", &image("busybox").display().to_string()]).succeeded();
        engine
    }

    /// Starts a hyperd with more flags whose data lies at `root`.
    pub fn start_at(root: &Path, flags: &[&str]) -> Self {
        Self::start_in(Some(root), flags)
    }

    /// Starts a hyperd that has the busybox image, in a network namespace of its own where nothing
    /// but loopback is.
    pub fn apart() -> Self {
        Self::apart_with("")
    }

    /// The same, with a configuration of its supervisors in which `DIR` is [`Self::dir`].
    pub fn apart_with(supervisors: &str) -> Self {
        let name = format!("hyper-e2e-{}", std::process::id());
        // A leftover of a test that was killed.
        drop(run("ip", &["netns", "del", &name], DEADLINE));
        run("ip", &["netns", "add", &name], DEADLINE).succeeded();
        run("ip", &["-n", &name, "link", "set", "lo", "up"], DEADLINE).succeeded();
        let engine = Self::start_with_namespace(None, &[], Some(name), supervisors);
        engine.hyper(&["load", "-q", "-i", &image("busybox").display().to_string()]).succeeded();
        engine
    }

    /// The network namespace that it runs in, when it is one of its own.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Runs a program where hyperd's network is.
    #[track_caller]
    pub fn beside(&self, words: &[&str]) -> Outcome {
        let mut command = entered(self.namespace.as_deref(), Path::new(words[0]));
        command.args(&words[1..]);
        run_command(command, Vec::new(), DEADLINE)
    }

    fn start_in(root: Option<&Path>, flags: &[&str]) -> Self {
        Self::start_with_namespace(root, flags, None, "")
    }

    fn start_with_namespace(
        root: Option<&Path>,
        flags: &[&str],
        namespace: Option<String>,
        supervisors: &str,
    ) -> Self {
        let turn = Turn::beside();
        let dir = tempfile::Builder::new().prefix("hyper-e2e-").tempdir().expect("directory");
        if !supervisors.is_empty() {
            let text = supervisors.replace("DIR", &dir.path().display().to_string());
            std::fs::write(dir.path().join(SUPERVISORS), text).expect("supervisors' configuration");
        }
        if let Some(root) = root {
            std::fs::create_dir_all(root).expect("data root");
            std::os::unix::fs::symlink(root, dir.path().join("data")).expect("link");
        }
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let daemon = spawn(dir.path(), &flags, namespace.as_deref());
        let engine = Self { dir, daemon, flags, namespace, memory: None, _turn: turn };
        engine.await_ready();
        engine
    }

    /// Starts a hyperd that has the busybox image.
    pub fn with_busybox() -> Self {
        let engine = Self::start();
        engine.hyper(&["load", "-q", "-i", &image("busybox").display().to_string()]).succeeded();
        engine
    }

    /// `unix://…` of its socket.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("hyper.sock")
    }

    /// Directory of this engine; all its files are below.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its exec-root.
    pub fn exec_root(&self) -> PathBuf {
        self.memory.as_ref().map_or_else(|| self.dir.path().join("exec"), |m| m.path().to_owned())
    }

    /// What hyperd has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("hyperd.log")).unwrap_or_default()
    }

    /// `kill -9`, and nothing else.
    pub fn kill_daemon(&mut self) {
        self.daemon.kill().expect("kill hyperd");
        self.daemon.wait().expect("reap hyperd");
    }

    /// Starts hyperd again on the same directories; one that runs is killed before.
    pub fn restart(&mut self) {
        if self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill_daemon();
        }
        self.daemon = spawn(self.dir.path(), &self.flags, self.namespace.as_deref());
        self.await_ready();
    }

    /// Runs our client.
    #[track_caller]
    pub fn hyper(&self, arguments: &[&str]) -> Outcome {
        run_command(self.hyper_command(arguments), Vec::new(), DEADLINE)
    }

    /// Runs our client with `input` on its standard input.
    #[track_caller]
    pub fn hyper_with_input(&self, arguments: &[&str], input: Vec<u8>) -> Outcome {
        run_command(self.hyper_command(arguments), input, DEADLINE)
    }

    /// Our client, not yet started.
    pub fn hyper_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("hyper"));
        command.args(["-H", &self.host()]).args(arguments);
        command
    }

    /// Runs Docker's own client.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> Outcome {
        run_command(self.docker_command(arguments), Vec::new(), DEADLINE)
    }

    /// Docker's own client, not yet started.
    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &self.host()]).args(arguments);
        command
    }

    /// One field of `inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.hyper(&["inspect", "--format", template, name]).succeeded().text()
    }

    /// One field of `volume inspect`.
    #[track_caller]
    pub fn inspect_volume(&self, name: &str, template: &str) -> String {
        self.docker(&["volume", "inspect", "-f", template, name]).succeeded().text()
    }

    /// The supervisor's report on a container's pod.
    #[track_caller]
    pub fn pod_report(&self, name: &str) -> serde_json::Value {
        let id = self.inspect(name, "{{.Id}}");
        let mut command = Command::new("curl");
        command.args(["-s", "--unix-socket"]).arg(self.socket());
        command.arg(format!("http://d/v1.47/hyper/v1/pods/{id}"));
        let answer = run_command(command, Vec::new(), Duration::from_secs(10)).text();
        serde_json::from_str(&answer).expect("a pod report")
    }

    fn await_ready(&self) {
        eventually("hyperd answers", Duration::from_secs(20), || {
            run_command(self.hyper_command(&["version"]), Vec::new(), DEADLINE).code == 0
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- last lines of hyperd's log");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        if self.daemon.try_wait().is_ok_and(|status| status.is_some()) {
            self.daemon = spawn(self.dir.path(), &self.flags, self.namespace.as_deref());
            std::thread::sleep(Duration::from_secs(1));
        }
        let command = self.hyper_command(&["pod", "ps", "-q"]);
        let pods = run_command(command, Vec::new(), DEADLINE).text();
        for id in pods.split_whitespace() {
            drop(run_command(self.hyper_command(&["pod", "rm", "-f", id]), Vec::new(), DEADLINE));
        }
        let command = self.hyper_command(&["ps", "-aq"]);
        let ids = run_command(command, Vec::new(), DEADLINE).text();
        for id in ids.split_whitespace() {
            drop(run_command(self.hyper_command(&["rm", "-f", id]), Vec::new(), DEADLINE));
        }
        let pid = rustix::process::Pid::from_child(&self.daemon);
        // Already gone is fine.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.daemon.wait();
        if let Some(name) = &self.namespace {
            drop(run("ip", &["netns", "del", name], DEADLINE));
        }
    }
}

/// A program, in a network namespace if one is named.
fn entered(namespace: Option<&str>, program: &Path) -> Command {
    match namespace {
        None => Command::new(program),
        Some(name) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{name}")).arg(program);
            command
        }
    }
}

fn spawn(dir: &Path, flags: &[String], namespace: Option<&str>) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("hyperd.log"))
        .expect("open hyperd's log");
    let own = ["--data-root".to_owned(), dir.join("data").display().to_string()];
    let data_root = (!flags.iter().any(|flag| flag == "--data-root")).then_some(own);
    let own = ["--exec-root".to_owned(), dir.join("exec").display().to_string()];
    let exec_root = (!flags.iter().any(|flag| flag == "--exec-root")).then_some(own);
    let mut command = entered(namespace, &program("hyperd"));
    if dir.join(SUPERVISORS).exists() {
        command.env("HYPER_SUPERVISOR_CONFIG", dir.join(SUPERVISORS));
    }
    if dir.join(TOOLS).exists() {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", dir.join(TOOLS).display()));
    }
    command
        .arg("-H")
        .arg(format!("unix://{}", dir.join("hyper.sock").display()))
        .arg("--pidfile")
        .arg(dir.join("hyperd.pid"))
        .args(data_root.iter().flatten())
        .args(exec_root.iter().flatten())
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("start hyperd")
}
