//! `kill -9` of hyperd while it commits, builds, pushes and imports: what is there verifies, what is not whole is not
//! there, and nothing is left of the attempt. (Pulls and loads: `images_kept`.)

use std::process::Stdio;
use std::time::Duration;

use hyper_e2e::{Engine, Registry, run};

const MINUTE: Duration = Duration::from_secs(60);

#[track_caller]
fn shell(script: &str) -> String {
    run("bash", &["-ec", script], MINUTE).succeeded().text()
}

/// Rounds: 12, or `$HYPER_KILL_CYCLES`.
#[test]
fn store_verifies_after_kills_of_commits_builds_pushes_and_imports() {
    let cycles: u64 =
        std::env::var("HYPER_KILL_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path().display();
    shell(&format!(
        "cd {at} && head -c 4M /dev/urandom > noise && tar -cf noise.tar noise && \
         printf 'FROM busybox\\nARG n\\nCOPY noise /noise-$n\\nRUN echo $n > /n\\nCOPY noise /again\\n' \
         > Dockerfile"
    ));
    let (context, archive) = (at.to_string(), format!("{at}/noise.tar"));
    let registry = Registry::start();
    let mut engine = Engine::with_busybox();
    engine.docker(&["import", &archive, "big:1"]).succeeded();
    let source = engine.docker(&["create", "busybox", "true"]).succeeded().text();
    let (mut killed, mut finished) = (0, 0);
    for cycle in 0..cycles {
        let tag = format!("made:{cycle}");
        let target = registry.reference(&format!("big{cycle}:1"));
        let argument = format!("n={cycle}");
        let (words, longest): (Vec<&str>, u64) = match cycle % 4 {
            0 => (vec!["build", "-q", "-t", &tag, "--build-arg", &argument, &context], 3000),
            1 => (vec!["push", "-q", &target], 300),
            2 => (vec!["commit", &source, &tag], 1500),
            _ => (vec!["import", &archive, &tag], 500),
        };
        if words[0] == "push" {
            engine.docker(&["tag", "big:1", &target]).succeeded();
        }
        let mut client = engine
            .docker_command(&words)
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the client");
        std::thread::sleep(Duration::from_millis(5 + (cycle * 7919) % longest));
        engine.kill_daemon();
        let done = client.wait().expect("client").success();
        *(if done { &mut finished } else { &mut killed }) += 1;
        engine.restart();
        let report = engine.hyper(&["image", "verify"]);
        assert_eq!(report.code, 0, "cycle {cycle}, {words:?}: {}", report.text());
        if done && words[0] != "push" {
            engine.docker(&["image", "inspect", &tag]).succeeded();
        }
        // The same again goes through, and what a push left half done in the registry is no obstacle.
        if cycle % 3 == 0 {
            let again = engine.docker_command(&words).env("DOCKER_BUILDKIT", "0").output();
            let again = again.expect("docker");
            assert!(
                again.status.success(),
                "{words:?}: {}",
                String::from_utf8_lossy(&again.stderr)
            );
        }
        let left = engine.docker(&["ps", "-aq", "--no-trunc"]).succeeded().text();
        assert_eq!(left, source, "cycle {cycle}, {words:?}: containers were left");
        let ingest = engine.dir().join("data/images/ingest");
        let left = std::fs::read_dir(ingest).expect("ingest").count();
        assert_eq!(left, 0, "cycle {cycle}, {words:?}: something is left in ingest");
        for name in engine.docker(&["images", "-q", "made"]).succeeded().text().lines() {
            engine.docker(&["rmi", "-f", name]).succeeded();
        }
        if words[0] == "push" {
            engine.docker(&["rmi", &target]).succeeded();
        }
    }
    println!("{killed} of {cycles} killed, {finished} finished");
    assert!(killed > 0, "no round was killed in time");
}
