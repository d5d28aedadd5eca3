//! The document as the agent will read it.

use super::*;

fn spec() -> Spec {
    Spec {
        id: "0123456789abcdef".repeat(4),
        cmd: vec!["sh".into(), "-c".into(), "true".into()],
        env: vec!["A=1".into()],
        ..Spec::default()
    }
}

fn read(document: &Value) -> oci_spec::runtime::Spec {
    serde_json::from_value(document.clone()).expect("an OCI document")
}

#[test]
fn the_default_is_a_valid_oci_document() {
    let surroundings = Surroundings {
        hypervisor: "auto".into(),
        files: vec![("/x/hosts".into(), "/etc/hosts")],
        ..Surroundings::default()
    };
    let document = document(&spec(), &surroundings).unwrap();
    let parsed = read(&document);
    let process = parsed.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["sh", "-c", "true"]);
    assert_eq!(process.cwd().to_str(), Some("/"));
    let env = process.env().as_ref().unwrap();
    assert!(env.contains(&"HOSTNAME=0123456789ab".to_owned()), "{env:?}");
    assert!(env.contains(&"A=1".to_owned()) && !env.iter().any(|e| e.starts_with("TERM=")));
    assert_eq!(document["annotations"]["io.hyper.hypervisor"], "auto");
    assert_eq!(document["annotations"].get(USER), None);
    let linux = parsed.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_some());
    assert!(
        linux
            .namespaces()
            .as_ref()
            .unwrap()
            .iter()
            .all(|namespace| { namespace.typ() != oci_spec::runtime::LinuxNamespaceType::Network })
    );
}

#[test]
fn privileged_lifts_every_guest_wall() {
    let mut spec = spec();
    spec.host.security.privileged = true;
    let document = document(&spec, &Surroundings::default()).unwrap();
    read(&document);
    assert_eq!(document["linux"].get("seccomp"), None);
    assert_eq!(document["linux"]["maskedPaths"], json!([]));
    let caps = document["process"]["capabilities"]["bounding"].as_array().unwrap();
    assert_eq!(caps.len(), 41);
}

#[test]
fn limits_user_and_terminal() {
    let mut spec = spec();
    spec.user = "www-data:1000".into();
    spec.host.tty = true;
    spec.host.console_size = (40, 120);
    spec.host.limits =
        Limits { memory_bytes: 64 << 20, nano_cpus: 1_500_000_000, pids: 9, ..Limits::default() };
    spec.host.ulimits = vec![Ulimit { name: "nofile".into(), soft: 10, hard: -1 }];
    let document = document(&spec, &Surroundings::default()).unwrap();
    read(&document);
    assert_eq!(document["annotations"][USER], "www-data:1000");
    assert_eq!(document["linux"]["resources"]["memory"]["swap"], 128 << 20);
    assert_eq!(document["linux"]["resources"]["cpu"]["quota"], 150_000);
    assert_eq!(document["linux"]["resources"]["pids"]["limit"], 9);
    assert_eq!(document["process"]["consoleSize"]["height"], 40);
    assert_eq!(document["process"]["user"]["gid"], 1000);
    assert_eq!(document["process"]["rlimits"][0]["hard"], u64::MAX);
}

#[test]
fn an_exec_inherits_and_overrides() {
    let mut spec = spec();
    spec.user = "app".into();
    spec.working_dir = "/srv".into();
    let asked =
        ExecSpec { args: vec!["id".into()], env: vec!["A=2".into()], ..ExecSpec::default() };
    let process = exec_process(&spec, &asked).unwrap();
    assert_eq!((&process[USER_NAME], &process["cwd"]), (&json!("app"), &json!("/srv")));
    assert!(process["env"].as_array().unwrap().contains(&json!("A=2")));
    let asked = ExecSpec { user: "0".into(), working_dir: "/".into(), ..asked };
    let process = exec_process(&spec, &asked).unwrap();
    assert_eq!((&process[USER_NAME], &process["cwd"]), (&json!("0"), &json!("/")));
    serde_json::from_value::<oci_spec::runtime::Process>(process).unwrap();
}
