//! The log driver `journald`, against Debian's journald in a namespace of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_e2e::{Engine, eventually, runtimes, tool};

const SOON: Duration = Duration::from_secs(30);

/// A journald that serves one namespace, and is gone with all of its files.
struct Journal {
    name: String,
    daemon: Child,
}

impl Journal {
    fn start() -> Self {
        let name = format!("hyper-e2e-{}", std::process::id());
        let journal = Self { daemon: spawn(&name), name };
        journal.ready();
        journal
    }

    fn socket(&self) -> PathBuf {
        format!("/run/systemd/journal.{}/socket", self.name).into()
    }

    fn ready(&self) {
        eventually("journald serves its namespace", SOON, || self.socket().exists());
    }

    fn end(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }

    /// `FIELD|MESSAGE` of all entries with `matching`.
    fn read(&self, matching: &str, field: &str) -> Vec<String> {
        let namespace = format!("--namespace={}", self.name);
        tool("journalctl", &["--sync", &namespace]);
        let json = tool("journalctl", &[&namespace, "-o", "json", "-q", matching]);
        let entries = json.lines().map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).expect("an entry");
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            format!("{}|{}", text(field), text("MESSAGE"))
        });
        entries.collect()
    }
}

fn spawn(name: &str) -> Child {
    let mut command = Command::new("/lib/systemd/systemd-journald");
    command.arg(name).stderr(Stdio::null()).spawn().expect("journald")
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end();
        let directory = self.socket().parent().map(Path::to_owned).unwrap_or_default();
        let _ = std::fs::remove_dir_all(directory);
        for parent in ["/run/log/journal", "/var/log/journal"] {
            for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().ends_with(&format!(".{}", self.name)) {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
        }
    }
}

#[test]
fn every_line_is_in_the_journal_with_its_container_and_is_read_by_docker_logs() {
    let mut journal = Journal::start();
    let engine = Engine::with_busybox();
    let namespace = format!("namespace={}", journal.name);
    let driver = ["--log-driver", "journald", "--log-opt", &namespace];
    for runtime in runtimes().into_iter().chain(["runc"]) {
        let name = format!("told-{runtime}");
        let run = ["run", "--name", &name, "--runtime", runtime, "--label", "team=blue"];
        let options = ["--log-opt", "tag={{.Name}}/{{.ImageName}}", "--log-opt", "labels=team"];
        let script = "echo one; echo two >&2; echo three; printf foobar";
        let command = ["busybox", "sh", "-c", script];
        engine.docker(&[&run[..], &driver, &options, &command].concat()).succeeded();
        let mut said = journal.read(&format!("CONTAINER_NAME={name}"), "PRIORITY");
        // Two streams have no common order.
        said.sort();
        assert_eq!(said, ["3|two", "6|foobar", "6|one", "6|three"], "{runtime}");
        let tag = format!("SYSLOG_IDENTIFIER={name}/busybox");
        assert!(journal.read(&tag, "TEAM").contains(&"blue|one".to_owned()), "{runtime}");
        assert!(
            journal.read(&tag, "CONTAINER_PARTIAL_MESSAGE").contains(&"true|foobar".to_owned())
        );
        let logs = engine.docker(&["logs", &name]).succeeded();
        assert_eq!((logs.text().as_str(), logs.stderr.as_str()), ("one\nthree\nfoobar", "two\n"));
        assert_eq!(engine.inspect(&name, "{{.HostConfig.LogConfig.Type}}"), "journald");
    }
    // A journald that is not there for a moment is no reason to stop; what it misses is told.
    let script =
        "echo early; while [ ! -e /go ]; do sleep 0.1; done; echo missed; sleep 3; echo late";
    let run = ["run", "-d", "--name", "goes-on"];
    engine.docker(&[&run[..], &driver, &["busybox", "sh", "-c", script]].concat()).succeeded();
    let lines = |journal: &Journal| journal.read("CONTAINER_NAME=goes-on", "PRIORITY");
    eventually("the first line is there", SOON, || lines(&journal) == ["6|early"]);
    journal.end();
    std::fs::remove_file(journal.socket()).expect("the socket of a dead journald");
    engine.docker(&["exec", "goes-on", "touch", "/go"]).succeeded();
    let logged = || engine.docker(&["logs", "goes-on"]).succeeded().text();
    eventually("the line is logged", SOON, || logged() == "early\nmissed");
    journal.daemon = spawn(&journal.name);
    journal.ready();
    engine.docker(&["wait", "goes-on"]).succeeded();
    assert_eq!(lines(&journal), ["6|early", "6|late"]);
    assert_eq!(logged(), "early\nmissed\nlate");
    let told = engine.inspect("goes-on", "{{.State.ExitCode}} {{.State.Error}}");
    assert!(told.starts_with("0 1 log lines") && told.contains("journal"), "{told}");
}

#[test]
fn what_the_journal_cannot_take_is_refused_by_name() {
    let engine = Engine::with_busybox();
    for (option, words) in [
        ("namespace=hyper-nobody", "journal.hyper-nobody/socket"),
        ("namespace=../x", "`../x`"),
        ("tag={{.Nope}}", "{{.Nope}}"),
        ("color=red", "'color'"),
    ] {
        let create = ["create", "--log-driver", "journald", "--log-opt", option, "busybox"];
        let outcome = engine.docker(&create);
        assert_ne!(outcome.code, 0, "{option}");
        assert!(outcome.stderr.contains(words), "{option}: {}", outcome.stderr);
    }
    let info = engine.docker(&["info", "--format", "{{.Plugins.Log}}"]).succeeded().text();
    assert_eq!(info, "[journald json-file local none]");
}
