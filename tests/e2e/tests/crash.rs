//! hyperd is killed at every moment of every verb: what it comes back to is whole, and goes.

use std::process::Stdio;
use std::time::Duration;

use hyper_e2e::{Engine, eventually};

const SOON: Duration = Duration::from_secs(60);
/// From the client's start to the kill, milliseconds. A whole `start` takes some 150.
const MOMENTS: [u64; 8] = [15, 30, 45, 60, 90, 130, 180, 300];

/// Runs `arguments` with Docker's client and kills hyperd in the middle; hyperd is back after.
fn interrupted(engine: &mut Engine, arguments: &[&str], moment: u64) {
    let mut command = engine.docker_command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = command.spawn().expect("client");
    std::thread::sleep(Duration::from_millis(moment));
    engine.kill_daemon();
    // It has nobody to talk to any more.
    let _ = client.kill();
    client.wait().expect("reap");
    engine.restart();
}

fn bundles(engine: &Engine) -> usize {
    std::fs::read_dir(engine.dir().join("exec/pods")).expect("pods").count()
}

/// Processes that name the engine's directory: supervisors, hypervisors, jails.
fn processes(engine: &Engine) -> Vec<String> {
    let dir = engine.dir().display().to_string();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let daemon = line.contains("--pidfile");
        if line.contains(&dir) && !daemon && pid != own {
            found.push(line);
        }
    }
    found
}

/// The container is in a state that its commands understand, and what is up really runs.
fn converged(engine: &Engine, name: &str, step: &str) -> String {
    let status = engine.docker(&["inspect", "-f", "{{.State.Status}}", name]);
    if status.code != 0 {
        assert_eq!(bundles(engine), 0, "{step}: gone, and so is its pod");
        return "gone".to_owned();
    }
    let status = status.text();
    match status.as_str() {
        "running" => _ = engine.docker(&["exec", name, "true"]).succeeded(),
        "created" | "exited" => {
            eventually(&format!("{step}: no pod of a container that is not up"), SOON, || {
                bundles(engine) == 0
            });
        }
        other => panic!("{step}: {other}"),
    }
    status
}

#[test]
fn hyperd_converges_wherever_it_is_killed() {
    let mut engine = Engine::with_busybox();
    let mut seen = std::collections::BTreeSet::new();
    for moment in MOMENTS {
        for verb in ["create", "start", "exec", "stop", "rm"] {
            let step = format!("{verb} killed after {moment} ms");
            let make = ["create", "--name", "it", "busybox", "sleep", "600"];
            if verb != "create" {
                engine.docker(&make).succeeded();
            }
            if ["exec", "stop", "rm"].contains(&verb) {
                engine.docker(&["start", "it"]).succeeded();
            }
            let arguments: &[&str] = match verb {
                "create" => &make,
                "start" => &["start", "it"],
                "exec" => &["exec", "it", "sh", "-c", "echo x > /x"],
                "stop" => &["stop", "-t", "0", "it"],
                _ => &["rm", "-f", "it"],
            };
            interrupted(&mut engine, arguments, moment);
            let status = converged(&engine, "it", &step);
            if verb == "exec" {
                assert_eq!(status, "running", "{step}: an exec does not end its container");
            }
            if status != "gone" {
                // It is as usable as any other.
                if status != "running" {
                    engine.docker(&["start", "it"]).succeeded();
                }
                engine.docker(&["exec", "it", "true"]).succeeded();
                engine.docker(&["rm", "-f", "it"]).succeeded();
            }
            seen.insert(format!("{verb} {status}"));
            eventually(&format!("{step}: nothing is left"), SOON, || {
                bundles(&engine) == 0 && processes(&engine).is_empty()
            });
            let containers = engine.dir().join("data/containers");
            let left = std::fs::read_dir(containers).expect("containers").count();
            assert_eq!(left, 0, "{step}: directories of containers");
        }
    }
    eprintln!("outcomes: {seen:?}");
    // Both sides of each moment were met: the kills did hit before and after.
    assert!(seen.contains("start created") && seen.contains("start running"), "{seen:?}");
}
