//! Benchmarks are commands: here they only have to run, whatever their figures.

use std::time::Duration;

use hyper_e2e::{Alone, Engine, program, run, runtimes};

#[test]
fn bare_guests_of_every_hypervisor_are_measured_or_missing_with_a_reason() {
    let hyper = program("hyper").display().to_string();
    let minutes = Duration::from_secs(300);
    let report = run(&hyper, &["bench", "vmm", "--runs", "1", "--json"], minutes).succeeded();
    let report: serde_json::Value = serde_json::from_str(&report.text()).expect("JSON");
    let all = report.as_array().expect("a list");
    for name in ["kvm", "uml", "qemu"] {
        let one = all.iter().find(|one| one["name"] == name).expect(name);
        let list = |key: &str| one[key].as_array().expect(key).len();
        // A hypervisor that does not work here says why, and has no figures.
        assert_eq!(list("launch_to_agent") == 1, list("failures") == 0, "{one}");
        if runtimes().contains(&name) {
            assert_eq!(list("shutdown_to_gone"), 1, "{one}");
        }
    }
    let left = std::fs::read_dir("/var/tmp").expect("/var/tmp").flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("hyper-bench"));
    assert_eq!(left.count(), 0);
}

#[test]
fn starts_are_measured_phase_by_phase() {
    let engine = Engine::with_busybox();
    let words = ["bench", "start", "--runs", "1", "--network", "none", "--json"];
    let elsewhere = ["--runtime", runtimes()[0], "--docker", "unix:///nowhere.sock"];
    let report = engine.hyper(&[&words[..], &elsewhere].concat()).succeeded();
    assert!(report.text().contains("agent ready"), "{}", report.text());
    engine.hyper(&["bench", "start", "--runtime", "nothing", "--runs", "1"]).exited(1);
}

#[test]
fn many_pods_come_run_and_go_without_a_trace() {
    let _alone = Alone::wait();
    let engine = Engine::with_busybox();
    let words = ["bench", "many", "--pods", "11", "--at-once", "4", "--runtime", runtimes()[0]];
    let report = engine.hyper(&[&words[..], &["--json"]].concat()).succeeded().text();
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let pods = |row: usize| report["rows"][row]["pods"].as_u64();
    assert_eq!([pods(0), pods(1), pods(2), pods(3)], [Some(1), Some(10), Some(11), None]);
    assert!(report["rows"][2]["pss_mib_per_pod"].as_f64() > Some(1.0), "{report}");
    assert_eq!(engine.hyper(&["ps", "-aq"]).succeeded().text(), "");
    let fails = ["bench", "many", "--pods", "3", "--runtime", "nothing"];
    engine.hyper(&fails).exited(1).says(&["nothing"]);
}
