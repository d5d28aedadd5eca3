//! A user of a host who is not root, and that host: namespaces in which the user and its subordinate ids are known,
//! everybody may open `/dev/net/tun`, and a link leads out.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::command::{Outcome, run_command};
use crate::turn::Turn;
use crate::{eventually, root};

const DEADLINE: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(20);
/// Of nobody on any host of the tests.
const UID: u32 = 42_424;
/// The host: `$1` is the user's directory, `$2` the checkout's `target`.
const HOST: &str = r#"
set -e
ip link set lo up
ip link add up0 type veth peer name up1
ip addr add 192.0.2.2/24 dev up0
ip link set up0 up
ip link set up1 up
ip route add default via 192.0.2.1
ip addr add 198.51.100.1/32 dev lo
mknod -m 666 "$1/tun" c 10 200
mount --bind "$1/tun" /dev/net/tun
for file in passwd subuid subgid; do cp "/etc/$file" "$1/$file" 2>/dev/null || : >"$1/$file"; done
echo "hyper-e2e:x:42424:42424::$1/home:/bin/sh" >>"$1/passwd"
for file in subuid subgid; do echo "hyper-e2e:2000000000:65536" >>"$1/$file"; done
for file in passwd subuid subgid; do [ -e "/etc/$file" ] || : >"/etc/$file"; mount --bind "$1/$file" "/etc/$file"; done
mkdir "$1/target"
mount --bind "$2" "$1/target"
echo ready
exec sleep infinity
"#;

/// Gone when dropped, with every process of the user.
#[derive(Debug)]
pub struct User {
    dir: TempDir,
    host: Child,
    /// A cgroup of its own.
    group: Option<PathBuf>,
    _turn: Turn,
}

impl User {
    /// A user who has nothing yet.
    pub fn new() -> Self {
        let turn = Turn::beside();
        let dir = tempfile::Builder::new().prefix("hyper-user-").tempdir().expect("directory");
        let path = dir.path();
        for name in ["home", "run"] {
            std::fs::create_dir(path.join(name)).expect("directory");
            std::os::unix::fs::chown(path.join(name), Some(UID), Some(UID)).expect("owner");
        }
        std::os::unix::fs::chown(path, Some(UID), Some(UID)).expect("owner");
        let mut host = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "slave", "sh", "-c", HOST, "host"])
            .arg(path)
            .arg(root().join("target").canonicalize().expect("target"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut said = String::new();
        let output = host.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut said).expect("the host's word");
        assert_eq!(said, "ready\n", "the user's host was not made");
        Self { dir, host, group: None, _turn: turn }
    }

    /// Gives the user a cgroup, as systemd delegates one, in which all its commands are from now on. `None`: the
    /// host's cgroups are not v2.
    pub fn delegated(&mut self) -> Option<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let on = std::fs::read_to_string(root.join("cgroup.subtree_control")).ok()?;
        if !["memory", "pids", "cpu", "io"]
            .iter()
            .all(|one| on.split(' ').any(|word| word.trim() == *one))
        {
            return None;
        }
        let group = root.join(self.dir().file_name()?);
        std::fs::create_dir(&group).expect("a cgroup");
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(group.join(name), Some(UID), Some(UID)).expect("owner");
        }
        self.group = Some(group.clone());
        Some(group)
    }

    /// The user's own directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `$XDG_RUNTIME_DIR`.
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// A command of the user's, with its arguments still to come; `hyper` and `hyperd` are those of `make build`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = match &self.group {
            None => self.host_command("setpriv"),
            Some(group) => {
                let mut command = self.host_command("sh");
                command.args(["-c", "echo 0 >\"$0\" && exec \"$@\""]);
                command.arg(entrance(group)).arg("setpriv");
                command
            }
        };
        let id = UID.to_string();
        let (home, run) = (self.dir().join("home"), self.run_dir());
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.dir().join("target/release").display()
        );
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "env", "-i"])
            .arg(format!("HOME={}", home.display()))
            .arg(format!("XDG_RUNTIME_DIR={}", run.display()))
            .arg(format!("PATH={path}"))
            .arg("USER=hyper-e2e")
            .arg(program);
        command
    }

    /// Runs a command of the user's.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Outcome {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        run_command(command, Vec::new(), DEADLINE)
    }

    /// The user's client, which starts a hyperd where there is none.
    #[track_caller]
    pub fn hyper(&self, arguments: &[&str]) -> Outcome {
        self.run(&[&["hyper"], arguments].concat())
    }

    /// A command of the host's root, with its arguments still to come.
    pub fn host_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.host.id())).args(["--mount", "--net", program]);
        command
    }

    /// All processes of the user and of its subordinate ids: pid and command line.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let ours = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let uid: u32 = status
                .lines()
                .find_map(|line| line.strip_prefix("Uid:"))?
                .split_whitespace()
                .next()?
                .parse()
                .ok()?;
            let zombie = status.contains("State:\tZ");
            let mapped = 2_000_000_000..2_000_000_000 + 65_536;
            (!zombie && (uid == UID || mapped.contains(&uid))).then_some(())
        };
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| ours(*pid).is_some())
            .map(|pid| {
                let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                (pid, String::from_utf8_lossy(&words).replace('\0', " "))
            })
            .collect()
    }

    /// The pid of the user's hyperd.
    pub fn hyperd(&self) -> Option<u32> {
        let is =
            |line: &str| line.split(' ').next().is_some_and(|program| program.ends_with("/hyperd"));
        self.processes().into_iter().find(|(_, line)| is(line)).map(|(pid, _)| pid)
    }

    /// Sends the user's hyperd a signal and waits for its end.
    #[track_caller]
    pub fn end_hyperd(&self, signal: &str) {
        let pid = self.hyperd().expect("a hyperd");
        self.run(&["kill", &format!("-{signal}"), &pid.to_string()]).succeeded();
        eventually("hyperd ends", SOON, || self.hyperd() != Some(pid));
    }
}

impl Default for User {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // All of them are this user's, who is nobody else's.
        for (pid, _) in self.processes() {
            drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
        }
        let _ = self.host.kill();
        let _ = self.host.wait();
        for group in self
            .group
            .iter()
            .flat_map(|group| [group.join("hyper"), group.join("hyperd"), group.clone()])
        {
            for _ in 0..100 {
                if std::fs::remove_dir(&group).is_ok() || !group.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Where processes can come into a cgroup: one that is divided has none itself.
fn entrance(group: &Path) -> PathBuf {
    let divided = std::fs::read_to_string(group.join("cgroup.subtree_control"));
    match divided.is_ok_and(|on| !on.trim().is_empty()) {
        true => group.join("hyperd/cgroup.procs"),
        false => group.join("cgroup.procs"),
    }
}
