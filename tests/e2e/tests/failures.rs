//! Whatever ends a pod is told as what it is: in `inspect`, `ps` and events, soon, and it goes.

use std::time::{Duration, Instant};

use hyper_e2e::{Engine, eventually, run, runtimes};

const SOON: Duration = Duration::from_secs(60);

struct Told {
    code: String,
    oom: bool,
    error: String,
}

/// Waits for the end of `name`; checks that everybody tells the same of it.
fn told(engine: &Engine, name: &str, within: Duration) -> Told {
    eventually(&format!("{name} has ended"), within, || {
        engine.inspect(name, "{{.State.Running}}") == "false"
    });
    let code = engine.inspect(name, "{{.State.ExitCode}}");
    let listed = engine
        .docker(&["ps", "-a", "--filter", &format!("name={name}"), "--format", "{{.Status}}"])
        .succeeded()
        .text();
    assert!(listed.starts_with(&format!("Exited ({code})")), "{name}: {listed}");
    eventually("the end is an event", Duration::from_secs(5), || {
        let filter = format!("container={name}");
        let ask = ["events", "--since", "10m", "--until", "0s", "--filter", "event=die"];
        let rest = ["--filter", &filter, "--format", "{{.Actor.Attributes.exitCode}}"];
        engine.docker(&[&ask[..], &rest[..]].concat()).succeeded().text() == code
    });
    assert_eq!(engine.docker(&["wait", name]).succeeded().text(), code, "{name}");
    Told {
        code,
        oom: engine.inspect(name, "{{.State.OOMKilled}}") == "true",
        error: engine.inspect(name, "{{.State.Error}}"),
    }
}

fn start(engine: &Engine, name: &str, runtime: &str, flags: &[&str], command: &[&str]) {
    let run = ["run", "-d", "--name", name, "--runtime", runtime];
    engine.docker(&[&run[..], flags, &["busybox"], command].concat()).succeeded();
}

fn pid(engine: &Engine, name: &str, of: &str) -> String {
    engine.pod_report(name)[of].as_u64().expect("a pid").to_string()
}

#[test]
fn a_killed_hypervisor_and_a_killed_supervisor_are_told_apart() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        for (of, words) in [("hypervisor_pid", "hypervisor"), ("supervisor_pid", "supervisor")] {
            let name = format!("{of}-{runtime}").replace('_', "-");
            start(&engine, &name, runtime, &[], &["sleep", "600"]);
            let victim = pid(&engine, &name, of);
            let hypervisor = pid(&engine, &name, "hypervisor_pid");
            run("kill", &["-9", &victim], SOON).succeeded();
            let end = told(&engine, &name, SOON);
            assert_ne!(end.code, "0", "{name}");
            assert!(!end.oom, "{name}");
            assert!(end.error.contains(words), "{name}: {}", end.error);
            eventually("nothing of the pod is left", SOON, || {
                !std::path::Path::new(&format!("/proc/{hypervisor}")).exists()
            });
            // It is as it was: it starts again and goes.
            engine.docker(&["start", &name]).succeeded();
            engine.docker(&["exec", &name, "true"]).succeeded();
            engine.docker(&["rm", "-f", &name]).succeeded();
        }
    }
    let pods = std::fs::read_dir(engine.dir().join("exec/pods")).expect("pods").count();
    assert_eq!(pods, 0, "bundles are gone");
}

#[test]
fn memory_that_runs_out_is_told_wherever_it_does() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        // The container's own limit, then all memory of its guest.
        for (name, flags) in [("own", &["-m", "32m"][..]), ("guest", &[])] {
            let name = format!("{name}-{runtime}");
            start(&engine, &name, runtime, flags, &["tail", "/dev/zero"]);
            let end = told(&engine, &name, SOON * 2);
            assert_eq!((end.code.as_str(), end.oom), ("137", true), "{name}: {}", end.error);
            let filter = format!("container={name}");
            eventually("oom is an event", SOON, || {
                let ask = ["events", "--since", "10m", "--until", "0s", "--filter", "event=oom"];
                let rest = ["--filter", &filter, "--format", "{{.Action}}"];
                engine.docker(&[&ask[..], &rest[..]].concat()).succeeded().text() == "oom"
            });
            engine.docker(&["rm", &name]).succeeded();
        }
    }
}

#[test]
fn a_panic_is_told() {
    let engine = Engine::with_busybox();
    let crash = ["sh", "-c", "sleep 2; echo c > /proc/sysrq-trigger; sleep 60"];
    start(&engine, "panic", "uml", &["--privileged"], &crash);
    let end = told(&engine, "panic", SOON);
    assert_ne!(end.code, "0");
    assert!(end.error.contains("panic"), "{}", end.error);
}

#[test]
fn a_guest_that_stops_answering_is_told_within_ten_seconds() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let name = format!("mute-{runtime}");
        start(&engine, &name, runtime, &[], &["sleep", "600"]);
        run("kill", &["-STOP", &pid(&engine, &name, "hypervisor_pid")], SOON).succeeded();
        let begun = Instant::now();
        let end = told(&engine, &name, SOON);
        eprintln!("{runtime}: told after {:?}", begun.elapsed());
        // What `told` asks takes a second or two itself.
        assert!(begun.elapsed() < Duration::from_secs(13), "{runtime}: {:?}", begun.elapsed());
        assert!(end.error.contains("does not answer"), "{runtime}: {}", end.error);
        engine.docker(&["rm", &name]).succeeded();
        // Nor has anybody to wait for that.
        start(&engine, &name, runtime, &[], &["sleep", "600"]);
        run("kill", &["-STOP", &pid(&engine, &name, "hypervisor_pid")], SOON).succeeded();
        engine.docker(&["rm", "-f", &name]).succeeded();
    }
}
