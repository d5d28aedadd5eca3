//! The namespaces of a hyperd whose user is not root, and their way out.
//!
//! ```text
//!   host ◀─ sockets of the user ─ pasta ─ tap `host0` ─▶ network namespace: bridges, veths, rules as everywhere
//!                                                        user, mount, IPC namespace: hyperd is root there
//! ```
//! A sleeping process holds them, so that they outlive hyperd as pods do; [`Namespaces::end_if_idle`] is for when
//! nothing runs in them any more. Made by the host's own programs, whose set-uid ones alone may map a user's subordinate ids
//! (`newuidmap(1)`, `subuid(5)`, `unshare(1)`, `pasta(1)`).

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, Read as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::error::{NetworkError, Result, file};

/// Whoever it is that pasta asks for names when the host's own resolver is on its loopback. Nothing else has it.
const RESOLVER: &str = "169.254.1.1";
/// The name of the way out, in the namespace.
const INTERFACE: &str = "host0";
/// How often it is looked whether somebody is still there.
const LOOK: Duration = Duration::from_millis(20);
const RECORD: &str = "rootless.json";
/// A program, the package that has it.
const PROGRAMS: [(&str, &str); 5] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("newuidmap", "uidmap"),
    ("newgidmap", "uidmap"),
    ("pasta", "passt"),
];
/// Holds the namespaces; the first argument is mounted over the host's list of resolvers, unless it is empty.
const HOLD: &str = r#"[ -z "$1" ] || mount --bind "$1" /etc/resolv.conf || exit 1; echo ready; exec sleep infinity"#;

/// What a hyperd without root wants and this host does not have, a sentence each with what to do.
#[must_use]
pub fn missing() -> Vec<String> {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| {
        std::env::split_paths(&places)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(name).is_file())
    };
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| !there(program))
        .map(|(program, package)| {
            format!("there is no program `{program}`: install the package {package}")
        })
        .collect();
    if let Some(why) = no_namespaces() {
        missing.push(why);
    }
    if rustix::fs::access("/dev/net/tun", rustix::fs::Access::WRITE_OK).is_err() {
        let why = "/dev/net/tun is not there or not yours to open: load the kernel's module `tun`, mode 666";
        missing.push(why.to_owned());
    }
    missing
}

fn no_namespaces() -> Option<String> {
    let is =
        |name: &str, value: &str| fs::read_to_string(name).is_ok_and(|text| text.trim() == value);
    let off = [
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    let (.., set) = off.into_iter().find(|(name, value, _)| is(name, value))?;
    Some(format!("users may not make namespaces: sysctl -w {set}"))
}

/// Namespaces that are there.
#[derive(Debug)]
pub struct Namespaces {
    record: PathBuf,
    held: Held,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    holder: Process,
    pasta: Process,
}

/// A process, and when it was started (`proc(5)`, ticks since the boot): a pid alone may be another's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    pid: u32,
    started: u64,
}

impl Namespaces {
    /// Those that `directory` tells of, if their holder lives.
    #[must_use]
    pub fn find(directory: &Path) -> Option<Self> {
        let record = directory.join(RECORD);
        let held: Held = serde_json::from_slice(&fs::read(&record).ok()?).ok()?;
        held.holder.lives().then_some(Self { record, held })
    }

    /// Those that `directory` tells of, or new ones; with a way out in either case. Blocking, some hundred milliseconds.
    ///
    /// # Errors
    /// A program that failed, in its words, with what to do.
    pub fn find_or_make(directory: &Path) -> Result<Self> {
        let mut namespaces = match Self::find(directory) {
            Some(found) if found.held.pasta.lives() => return Ok(found),
            Some(found) => found,
            None => {
                let holder = hold(directory)?;
                let record = directory.join(RECORD);
                // Until there is one it is the holder's own, which is as good as any that does not live.
                Self { record, held: Held { holder, pasta: Process { pid: 0, started: 0 } } }
            }
        };
        match way_out(directory, namespaces.held.holder) {
            Ok(pasta) => namespaces.held.pasta = pasta,
            Err(error) => {
                if Self::find(directory).is_none() {
                    namespaces.held.holder.end();
                }
                return Err(error);
            }
        }
        let text = serde_json::to_vec(&namespaces.held).unwrap_or_default();
        fs::write(&namespaces.record, text).map_err(file("write", &namespaces.record))?;
        Ok(namespaces)
    }

    /// The command that runs `program` as their root, in this process's working directory.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let mut wd = OsString::from("--wd=");
        wd.push(here);
        command
            .arg(format!("--target={}", self.held.holder.pid))
            .args(["--user", "--mount", "--net", "--ipc"])
            .arg(wd)
            .arg("--")
            .arg(program);
        command
    }

    /// Ends them, unless something runs in them that is not the calling process and does not end within `patience`. To be
    /// called inside. Blocking.
    pub fn end_if_idle(self, patience: Duration) {
        let known = [std::process::id(), self.held.holder.pid, self.held.pasta.pid];
        let deadline = Instant::now() + patience;
        while !inhabitants().iter().all(|pid| known.contains(pid)) {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(LOOK);
        }
        self.held.pasta.end();
        self.held.holder.end();
        let _ = fs::remove_file(&self.record);
    }
}

/// All processes of this process's user namespace.
fn inhabitants() -> Vec<u32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let own = namespace("self");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| own.is_some() && namespace(pid) == own)
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

impl Process {
    fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = started(&stat).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, started })
    }

    fn lives(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }

    fn end(self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let (true, Some(pid)) = (self.lives(), pid) {
            // It may be gone by now, and is nobody else's.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// When the process of a line of `/proc/PID/stat` was started; `None`: it has ended.
fn started(stat: &str) -> Option<u64> {
    // The name before may have brackets and blanks itself.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

/// Makes namespaces and the process that holds them.
fn hold(directory: &Path) -> Result<Process> {
    let failed = |why: String| {
        NetworkError::Unavailable(format!(
            "cannot make namespaces without root: {why}: whoever is not root needs 65536 subordinate ids \
             (`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}`, if nobody else has those)",
            user()
        ))
    };
    let resolvers = resolvers(directory)?;
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--map-auto", "--mount", "--net", "--ipc"])
        .args(["--propagation", "slave", "--", "sh", "-c", HOLD, "hyper-holder"])
        .arg(resolvers.unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for hyperd.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("`unshare`: {error}")))?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        // A line, or the end of a process that failed.
        let _ = io::BufReader::new(output).read_line(&mut said);
    }
    if said.trim() == "ready" {
        return Process::of(child.id()).map_err(|error| failed(error.to_string()));
    }
    let mut words = String::new();
    if let Some(mut errors) = child.stderr.take() {
        let _ = errors.read_to_string(&mut words);
    }
    let _ = child.wait();
    Err(failed(words.trim().to_owned()))
}

/// A list of resolvers for the namespaces, if the host's are all on its loopback, where nobody is in the namespaces.
fn resolvers(directory: &Path) -> Result<Option<PathBuf>> {
    let list = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let Some(text) = reachable(&list) else { return Ok(None) };
    let path = directory.join("resolv.conf");
    fs::write(&path, text).map_err(file("write", &path))?;
    Ok(Some(path))
}

fn reachable(list: &str) -> Option<String> {
    let server = |line: &str| line.strip_prefix("nameserver").map(|rest| rest.trim().to_owned());
    let local =
        |address: String| address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let servers: Vec<String> = list.lines().filter_map(server).collect();
    if servers.is_empty() || !servers.into_iter().all(local) {
        return None;
    }
    let others = list.lines().filter(|line| server(line).is_none()).map(|line| format!("{line}\n"));
    Some(others.chain([format!("nameserver {RESOLVER}\n")]).collect())
}

/// Starts pasta; it goes on by itself when all is set up. Ports of the host are not its matter, and the host's
/// loopback is nobody's but hyperd's: pods cannot send from the namespace's own.
fn way_out(directory: &Path, holder: Process) -> Result<Process> {
    let failed = |why: String| {
        NetworkError::Unavailable(format!(
            "cannot connect namespaces with the host by pasta: {why}"
        ))
    };
    let pid = directory.join("pasta.pid");
    let output = Command::new("pasta")
        .args(["--config-net", "--quiet", "--no-map-gw", "--ns-ifname", INTERFACE])
        .args(["-t", "none", "-u", "none", "-T", "auto", "-U", "none"])
        .args(["--dns-forward", RESOLVER])
        .arg("--pid")
        .arg(&pid)
        .arg(holder.pid.to_string())
        .stdin(Stdio::null())
        .process_group(0)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, words.trim())));
    }
    let text = fs::read_to_string(&pid).map_err(file("read", &pid))?;
    let number =
        text.trim().parse().map_err(|_| failed(format!("its pid is `{}`", text.trim())))?;
    Process::of(number).map_err(|error| failed(format!("it ended at once: {error}")))
}

fn user() -> String {
    std::env::var("USER").unwrap_or_else(|_| "USER".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.lives());
        assert!(!Process { started: own.started + 1, ..own }.lives());
        assert!(!Process { pid: 0, started: 0 }.lives());
        let tail = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(started(&format!("7 (a) b) S {tail}")), Some(4711));
        assert_eq!(started(&format!("7 (a) Z {tail}")), None, "it has ended");
        assert_eq!(started("7 (a) S 1"), None);
    }

    #[test]
    fn resolvers_on_the_loopback_are_asked_by_pasta() {
        let stub = "# a comment\nnameserver 127.0.0.53\noptions edns0\nsearch lan\n";
        let want = "# a comment\noptions edns0\nsearch lan\nnameserver 169.254.1.1\n";
        assert_eq!(reachable(stub).as_deref(), Some(want));
        assert_eq!(reachable("nameserver ::1\n").as_deref(), Some("nameserver 169.254.1.1\n"));
        assert_eq!(reachable("nameserver 127.0.0.1\nnameserver 10.0.0.1\n"), None);
        assert_eq!(reachable(""), None);
    }
}
