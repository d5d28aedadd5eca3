//! `--cpuset-cpus`: CPUs of the host, on which all of a pod's guest runs.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, runtimes};

const SOON: Duration = Duration::from_secs(30);

/// The last CPU that this process may run on, and all of them as the kernel lists them.
fn own() -> (String, String) {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let all = allowed(&status);
    let last = all.rsplit([',', '-']).next().expect("a CPU").to_owned();
    (last, all)
}

fn allowed(status: &str) -> String {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.expect("Linux says so").trim().to_owned()
}

/// Where the threads of a process may run.
fn places(pid: u64) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten();
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    status.map(|status| allowed(&status)).collect()
}

#[test]
fn a_guest_runs_on_the_cpus_it_was_given_and_on_others_when_told() {
    let engine = Engine::with_busybox();
    let (last, all) = own();
    for runtime in runtimes() {
        let run = ["run", "-d", "--name", runtime, "--runtime", runtime, "--cpuset-cpus", &last];
        engine.docker(&[&run[..], &["busybox", "sleep", "600"]].concat()).succeeded();
        assert_eq!(engine.inspect(runtime, "{{.HostConfig.CpusetCpus}}"), last);
        let pid = engine.pod_report(runtime)["hypervisor_pid"].as_u64().expect("a hypervisor");
        let on = |list: &str| places(pid) == BTreeSet::from([list.to_owned()]);
        eventually("all of it is there", SOON, || on(&last));
        // What it starts later is there as well.
        engine.docker(&["exec", runtime, "true"]).succeeded();
        assert!(on(&last), "{:?}", places(pid));
        engine.docker(&["update", "--cpuset-cpus", "0", runtime]).succeeded();
        eventually("it has moved", SOON, || on("0"));
        engine.hyper(&["update", "--cpuset-cpus", &all, runtime]).succeeded();
        // User-mode Linux stays on one of them.
        eventually("it may be anywhere", SOON, || runtime == "uml" || on(&all));
        engine.docker(&["rm", "-f", runtime]).succeeded();
    }
    let seen = ["run", "--rm", "--runtime", "runc", "--cpuset-cpus", &last, "busybox"];
    let seen = engine.docker(&[&seen[..], &["cat", "/proc/self/status"]].concat()).succeeded();
    assert_eq!(allowed(&seen.text()), last);
}

#[test]
fn cpus_that_the_host_has_not_are_refused_and_so_is_what_is_no_list() {
    let engine = Engine::with_busybox();
    let run = |list: &str| {
        engine.docker(&["run", "--rm", "--cpuset-cpus", list, "busybox", "true"]).exited(125)
    };
    run("0,4097").says(&["Requested CPUs are not available", "0,4097", &own().1]);
    run("2-1").says(&["Invalid value 2-1 for cpuset cpus"]);
    engine.docker(&["run", "-d", "--name", "one", "busybox", "sleep", "600"]).succeeded();
    let update = engine.docker(&["update", "--cpuset-cpus", "4097", "one"]);
    update.exited(1).says(&["Requested CPUs are not available"]);
    assert_eq!(engine.inspect("one", "{{.HostConfig.CpusetCpus}}"), "");
}
