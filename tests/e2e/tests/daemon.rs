//! hyperd may die at any time: pods live on and nothing is lost.

use std::time::Duration;

use hyper_e2e::{Alone, Engine, Host, eventually};

#[test]
fn kill_9_of_hyperd_loses_no_line_and_no_exit_code() {
    let mut engine = Engine::with_busybox();
    let script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.2; done; exit 9";
    engine.docker(&["run", "-d", "--name", "talk", "busybox", "sh", "-c", script]).succeeded();
    engine.docker(&["run", "-d", "--name", "stay", "busybox", "sleep", "600"]).succeeded();
    engine
        .docker(&["run", "-d", "--name", "short", "busybox", "sh", "-c", "sleep 1; exit 5"])
        .succeeded();
    eventually("output flows", Duration::from_secs(10), || {
        engine.docker(&["logs", "talk"]).text().lines().count() > 3
    });
    engine.kill_daemon();
    // `short` ends while nobody looks.
    std::thread::sleep(Duration::from_secs(2));
    engine.restart();
    let running = engine.docker(&["ps", "--format", "{{.Names}}"]).succeeded().text();
    assert!(running.contains("talk") && running.contains("stay"), "{running}");
    assert!(!running.contains("short"), "{running}");
    assert_eq!(engine.inspect("short", "{{.State.ExitCode}}"), "5");
    assert_eq!(engine.docker(&["wait", "talk"]).succeeded().text(), "9");
    let wanted: Vec<String> = (0..40).map(|i| format!("line {i}")).collect();
    assert_eq!(engine.docker(&["logs", "talk"]).succeeded().text(), wanted.join("\n"));
    assert_eq!(
        engine.docker(&["exec", "stay", "echo", "still here"]).succeeded().text(),
        "still here"
    );
    engine.docker(&["rm", "-f", "stay"]).succeeded();
}

#[test]
fn graceful_stop_leaves_pods_running() {
    let mut engine = Engine::with_busybox();
    engine.docker(&["run", "-d", "--name", "stay", "busybox", "sleep", "600"]).succeeded();
    let pid: i32 = std::fs::read_to_string(engine.dir().join("hyperd.pid"))
        .expect("pid file")
        .trim()
        .parse()
        .expect("a pid");
    hyper_e2e::run("kill", &["-TERM", &pid.to_string()], Duration::from_secs(5)).succeeded();
    eventually("hyperd is gone", Duration::from_secs(10), || {
        !engine.dir().join("hyperd.pid").exists()
    });
    engine.kill_daemon();
    engine.restart();
    assert_eq!(engine.inspect("stay", "{{.State.Running}}"), "true");
    engine.docker(&["exec", "stay", "true"]).succeeded();
}

#[test]
fn second_hyperd_on_the_same_data_is_refused() {
    let engine = Engine::start();
    let dir = engine.dir().display().to_string();
    let outcome = hyper_e2e::run(
        &hyper_e2e::program("hyperd").display().to_string(),
        &[
            "-H",
            &format!("unix://{dir}/second.sock"),
            "--data-root",
            &format!("{dir}/data"),
            "--exec-root",
            &format!("{dir}/exec2"),
            "--pidfile",
            &format!("{dir}/second.pid"),
        ],
        Duration::from_secs(20),
    );
    assert_ne!(outcome.code, 0);
    outcome.says(&[&format!("{dir}/data")]);
}

#[test]
fn a_hundred_runs_leave_nothing_behind() {
    let alone = Alone::wait();
    let engine = Engine::with_busybox();
    engine.hyper(&["run", "--rm", "busybox", "true"]).succeeded();
    let marker = engine.dir().display().to_string();
    let before = Host::at_rest(&alone, &marker);
    for run in 0..100 {
        let code = (run % 7).to_string();
        engine
            .hyper(&["run", "--rm", "busybox", "sh", "-c", &format!("exit {code}")])
            .exited(run % 7);
    }
    engine.hyper(&["run", "--rm", "--runtime", "qemu", "busybox", "true"]).succeeded();
    eventually("all is as before", Duration::from_secs(15), || Host::look(&marker) == before);
    for directory in ["data/containers", "exec"] {
        let left: Vec<_> = walk(&engine.dir().join(directory));
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
}

/// Directories of containers that are left: those named by a 64-digit id.
fn walk(directory: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            found.push(name);
        } else if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}
