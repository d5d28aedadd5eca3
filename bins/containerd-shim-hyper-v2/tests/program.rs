//! The program itself, as containerd runs it; no guest is needed for any of this.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, DeleteResponse,
};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::r#async::transport::Socket;
use containerd_shim_protos::ttrpc::context::with_duration;
use containerd_shim_protos::ttrpc::proto::Request;

struct Bundle {
    dir: tempfile::TempDir,
    id: String,
}

impl Bundle {
    fn new(id: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        std::fs::write(bundle.join("config.json"), r#"{"process": {"args": ["true"]}}"#).unwrap();
        let config = format!(
            "run-dir = {:?}\nstate-dir = {:?}\n",
            dir.path().join("run"),
            dir.path().join("state")
        );
        std::fs::write(dir.path().join("supervisor.toml"), config).unwrap();
        Self { dir, id: format!("{id}-{}", std::process::id()) }
    }

    fn run(&self, action: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_containerd-shim-hyper-v2"))
            .args([
                "-namespace",
                "test",
                "-id",
                &self.id,
                "-address",
                "/no/containerd.sock",
                action,
            ])
            .current_dir(self.dir.path().join("bundle"))
            .env("HYPER_SUPERVISOR_CONFIG", self.dir.path().join("supervisor.toml"))
            .output()
            .unwrap()
    }

    fn start(&self) -> String {
        let output = self.run("start");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "containerd 1.6 takes it for the address");
        String::from_utf8(output.stdout).unwrap()
    }

    fn pid(&self) -> PathBuf {
        let pods = std::fs::read_dir(self.dir.path().join("run/pods")).unwrap();
        pods.map(|pod| pod.unwrap().path().join("supervisor.pid")).next().unwrap()
    }
}

async fn connect(address: &str) -> Client {
    Client::new(Socket::connect(address).await.unwrap())
}

async fn gone(path: &Path) {
    let begun = Instant::now();
    while path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{} is still there", path.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn both_task_apis_are_served_and_shutdown_leaves_nothing() {
    let bundle = Bundle::new("apis");
    let address = bundle.start();
    assert_eq!(bundle.start(), address, "a second start finds the first");
    assert_eq!(std::fs::read_to_string(bundle.dir.path().join("bundle/address")).unwrap(), address);
    let client = connect(&address).await;
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let request = Request {
            service: service.to_owned(),
            method: "Connect".to_owned(),
            timeout_nano: 5_000_000_000,
            payload: ConnectRequest::new().write_to_bytes().unwrap(),
            ..Request::default()
        };
        let response = client.request(request).await.unwrap();
        let response = ConnectResponse::parse_from_bytes(&response.payload).unwrap();
        assert!(Path::new(&format!("/proc/{}", response.shim_pid)).exists());
    }
    let task = TaskClient::new(client);
    let context = || with_duration(Duration::from_secs(10));
    let mut create = CreateTaskRequest::new();
    create.id = "c".to_owned();
    create.bundle = bundle.dir.path().join("nothing").display().to_string();
    let error = task.create(context(), &create).await.unwrap_err().to_string();
    assert!(error.contains("nothing/config.json"), "{error}");
    task.shutdown(context(), &Default::default()).await.unwrap();
    drop(task);
    gone(Path::new(address.strip_prefix("unix://").unwrap())).await;
    assert_eq!(std::fs::read_dir(bundle.dir.path().join("run/pods")).unwrap().count(), 0);
}

#[tokio::test]
async fn delete_ends_a_supervisor_and_tells_the_exit() {
    let bundle = Bundle::new("delete");
    let address = bundle.start();
    connect(&address).await;
    let pid: u32 = std::fs::read_to_string(bundle.pid()).unwrap().parse().unwrap();
    let output = bundle.run("delete");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((response.pid, response.exit_status), (pid, 137));
    assert!(!Path::new(&format!("/proc/{pid}/exe")).exists());
    assert!(!Path::new(address.strip_prefix("unix://").unwrap()).exists());
    assert_eq!(std::fs::read_dir(bundle.dir.path().join("run/pods")).unwrap().count(), 0);
    let exit = std::fs::read_to_string(bundle.dir.path().join("bundle/exit.json")).unwrap();
    assert!(exit.contains("supervisor was killed"), "{exit}");
}

#[test]
fn what_is_wrong_is_told_at_start() {
    let bundle = Bundle::new("wrong");
    std::fs::write(bundle.dir.path().join("supervisor.toml"), "memroy = 1").unwrap();
    let output = bundle.run("start");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("memroy"));
    std::fs::write(
        bundle.dir.path().join("bundle/config.json"),
        r#"{"annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "no-such-pod"}}"#,
    )
    .unwrap();
    let output = bundle.run("start");
    assert!(String::from_utf8_lossy(&output.stderr).contains("`no-such-pod`"));
}
