//! Kubernetes' way: containerd's CRI plugin drives our shim with what kubelet says of every pod.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_e2e::{Turn, eventually, image, processes, program, run, runtimes, text};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

const SOON: Duration = Duration::from_secs(60);
const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// containerd where no other network is: `$1` is its configuration.
const HOST: &str = "mkdir -p /run/netns && mount -t tmpfs netns /run/netns && ip link set lo up && \
                    exec containerd --config \"$1\"";
const NETWORK: &str = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipam": {"type": "host-local",
     "dataDir": "DIR/ipam", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;
const CONFIG: &str = r#"version = 2
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "DIR/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/busybox:latest"
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "DIR/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "hyper"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.hyper]
      runtime_type = "io.containerd.hyper.v2"
      pod_annotations = ["io.hyper.*"]
"#;

/// What `kubectl port-forward` is to the node, as `v4.channel.k8s.io`: asks for a page through the URL, whose answer is
/// channel 0 and whose errors are channel 1.
const FORWARD: &str = r#"
import socket, sys, urllib.parse
url = urllib.parse.urlparse(sys.argv[1])
ends = socket.create_connection((url.hostname, url.port), 20)
ends.sendall((f"GET {url.path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
  "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n").encode())
said = b"\0GET / HTTP/1.0\r\n\r\n"
ends.sendall(bytes([0x82, 0x80 | len(said)]) + bytes(4) + said)
ends.settimeout(20)
while piece := ends.recv(4096):
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()
    if b"served" in piece or b"reset" in piece: break
"#;

/// A containerd with CRI, and a client of it.
struct Node {
    dir: TempDir,
    process: Child,
    runtime: RuntimeServiceClient<Channel>,
    _turn: Turn,
}

impl Node {
    async fn start() -> Self {
        let turn = Turn::beside();
        let dir = tempfile::Builder::new().prefix("hyper-cri-").tempdir().expect("directory");
        let root = text(dir.path());
        let put = |name: &str, content: &str| {
            std::fs::write(dir.path().join(name), content.replace("DIR", &root)).expect("write");
        };
        std::fs::create_dir(dir.path().join("net.d")).expect("directory");
        put("net.d/10-pods.conflist", NETWORK);
        put("config.toml", CONFIG);
        let shims = program("containerd-shim-hyper-v2");
        let path = std::env::var("PATH").expect("PATH");
        let process = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", HOST, "node"])
            .arg(dir.path().join("config.toml"))
            .env("PATH", format!("{}:{path}", shims.parent().expect("directory").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).expect("log"))
            .spawn()
            .expect("start containerd");
        let address = format!("{root}/containerd.sock");
        let ctr = |words: &[&str]| {
            run("ctr", &[&["--address", &address, "-n", "k8s.io"], words].concat(), SOON)
        };
        eventually("containerd answers", SOON, || ctr(&["version"]).code == 0);
        ctr(&["image", "import", &text(&image("busybox"))]).succeeded();
        let channel = Endpoint::try_from(format!("unix://{address}")).expect("an address");
        let channel = channel.timeout(Duration::from_secs(180)).connect().await.expect("connect");
        let images = ImageServiceClient::new(channel.clone())
            .list_images(ListImagesRequest::default())
            .await
            .expect("images");
        assert_eq!(images.into_inner().images.len(), 1);
        Self { dir, process, runtime: RuntimeServiceClient::new(channel), _turn: turn }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fetches a page where the pods are.
    fn fetch(&self, url: &str) -> String {
        let target = self.process.id().to_string();
        let words = ["--target", &target, "--net", "curl", "-s", "-m", "5", url];
        run("nsenter", &words, SOON).text()
    }

    /// What a port of the pod's localhost says through the node.
    async fn forward(&mut self, pod: &str, port: i32) -> String {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![port] };
        let answer = self.runtime.port_forward(request).await.expect("port forward").into_inner();
        let target = self.process.id().to_string();
        let words = ["--target", &target, "--net", "python3", "-c", FORWARD, &answer.url];
        let said = run("nsenter", &words, SOON);
        String::from_utf8_lossy(&said.stdout).into_owned() + &said.stderr
    }

    async fn exec(&mut self, container: &str, script: &str) -> (i32, String) {
        let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
        let answer = self.runtime.exec_sync(request).await.expect("exec").into_inner();
        (answer.exit_code, String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    async fn status(&mut self, container: &str) -> ContainerStatus {
        let request =
            ContainerStatusRequest { container_id: container.to_owned(), ..Default::default() };
        let answer = self.runtime.container_status(request).await.expect("status");
        answer.into_inner().status.expect("a status")
    }

    /// A container as kubelet makes it; its id.
    async fn container(
        &mut self,
        pod: &str,
        of: &PodSandboxConfig,
        name: &str,
        cmd: &str,
        namespaces: NamespaceOption,
    ) -> String {
        std::fs::create_dir_all(Path::new(&of.log_directory).join(name)).expect("logs");
        let mount = |to: &str, from: &str| Mount {
            container_path: to.to_owned(),
            host_path: text(&self.path(from)),
            ..Mount::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: BUSYBOX.to_owned(), ..ImageSpec::default() }),
            command: ["sh", "-c", cmd].map(str::to_owned).to_vec(),
            log_path: format!("{name}/0.log"),
            mounts: vec![mount("/etc/hosts", "hosts"), mount("/dev/termination-log", name)],
            linux: Some(LinuxContainerConfig {
                resources: Some(resources(128)),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    run_as_user: Some(Int64Value { value: 0 }),
                    no_new_privs: true,
                    seccomp: Some(SecurityProfile::default()),
                    masked_paths: vec!["/proc/kcore".to_owned(), "/proc/keys".to_owned()],
                    readonly_paths: vec!["/proc/sys".to_owned()],
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(of.clone()),
        };
        let made = self.runtime.create_container(request).await.expect("create the container");
        let id = made.into_inner().container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        self.runtime.start_container(request).await.expect("start the container");
        id
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        let pid = rustix::process::Pid::from_child(&self.process);
        // Already gone is fine.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
        // Kubelet's part, in each hierarchy.
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for root in roots.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let _ = std::fs::remove_dir(root.join(cgroup().trim_start_matches('/')));
        }
    }
}

/// Of the pods, as kubelet would make it.
fn cgroup() -> String {
    format!("/hyper-e2e-{}", std::process::id())
}

fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

/// What kubelet says of a container on a host with cgroup v2, the static CPU manager and no swap for pods.
fn resources(mebibytes: i64) -> LinuxContainerResources {
    let pages = |size: &str| HugepageLimit { page_size: size.to_owned(), limit: 0 };
    let unified = [("memory.swap.max", "0"), ("memory.oom.group", "1")];
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 256,
        memory_limit_in_bytes: mebibytes << 20,
        oom_score_adj: 985,
        cpuset_cpus: "0".to_owned(),
        hugepage_limits: vec![pages("2MB"), pages("1GB")],
        unified: unified.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..LinuxContainerResources::default()
    }
}

#[tokio::test]
async fn a_pod_of_kubelet_runs_as_kubelet_asks() {
    let mut node = Node::start().await;
    std::fs::write(node.path("hosts"), "127.0.0.1 localhost\n10.9.9.9 other\n").expect("write");
    for hypervisor in runtimes() {
        for name in ["web", "job"] {
            std::fs::write(node.path(name), "").expect("write");
        }
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: hypervisor.to_owned(),
                uid: hypervisor.to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: format!("pod-{hypervisor}"),
            log_directory: text(&node.path(&format!("logs-{hypervisor}"))),
            dns_config: Some(DnsConfig {
                servers: vec!["10.0.0.10".to_owned()],
                ..DnsConfig::default()
            }),
            annotations: [("io.hyper.hypervisor".to_owned(), hypervisor.to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    seccomp: Some(SecurityProfile::default()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                sysctls: [("net.core.somaxconn".to_owned(), "512".to_owned())].into(),
                resources: Some(resources(256)),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: "hyper".to_owned(),
        };
        let pod = node.runtime.run_pod_sandbox(request).await.expect("run the pod");
        let pod = pod.into_inner().pod_sandbox_id;
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
        let status = node.runtime.pod_sandbox_status(request).await.expect("status").into_inner();
        let ip = status.status.and_then(|status| status.network).expect("a network").ip;

        let serve = "hostname; cat /etc/hosts /proc/sys/net/core/somaxconn; echo x >/dev/shm/x; \
                     echo served >/tmp/index.html; echo ready; exec httpd -f -p 80 -h /tmp";
        let web = node.container(&pod, &config, "web", serve, namespaces()).await;
        let logs = PathBuf::from(&config.log_directory);
        let log = |name: &str| std::fs::read_to_string(logs.join(name).join("0.log")).expect("log");
        eventually("it serves", SOON, || log("web").contains("stdout F ready"));
        let seen = log("web");
        for line in [&config.hostname, "10.9.9.9 other", "512"] {
            assert!(seen.lines().any(|seen| seen.ends_with(&format!("stdout F {line}"))), "{seen}");
        }
        eventually("the pod is reached", SOON, || node.fetch(&format!("http://{ip}/")) == "served");
        for _ in 0..3 {
            let forwarded = node.forward(&pod, 80).await;
            assert!(forwarded.contains("200 OK") && forwarded.contains("served"), "{forwarded}");
        }
        let refused = node.forward(&pod, 81).await;
        assert!(refused.contains("reset by peer"), "{refused}");
        // Containers of a pod share its network and its memory.
        let ask = "wget -q -O - http://127.0.0.1/; cat /dev/shm/x; echo over >/dev/termination-log; exit 3";
        let job = node.container(&pod, &config, "job", ask, namespaces()).await;
        let mut ended = node.status(&job).await;
        for _ in 0..300 {
            if ended.state() == ContainerState::ContainerExited {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            ended = node.status(&job).await;
        }
        assert_eq!((ended.exit_code, log("job").matches("stdout F").count()), (3, 2), "{ended:?}");
        assert!(log("job").contains("stdout F x\n"), "{}", log("job"));
        // `kubectl debug --target`: the others' processes are seen.
        std::fs::write(node.path("debug"), "").expect("write");
        let target = NamespaceOption {
            pid: NamespaceMode::Target.into(),
            target_id: web.clone(),
            ..NamespaceOption::default()
        };
        let look = "ps | grep '[h]ttpd -f'; [ $$ -gt 1 ] && echo looked; exec sleep 600";
        let debug = node.container(&pod, &config, "debug", look, target).await;
        eventually("it looks", SOON, || log("debug").contains("stdout F looked"));
        assert!(log("debug").contains("httpd -f -p 80"), "{}", log("debug"));
        let (_, own) = node.exec(&web, "ps").await;
        assert!(own.contains("httpd") && !own.contains("sleep 600"), "{own}");
        let request = StopContainerRequest { container_id: debug.clone(), timeout: 10 };
        node.runtime.stop_container(request).await.expect("stop");
        assert_eq!(node.status(&debug).await.exit_code, 143, "no PID 1, which would not hear it");
        assert_eq!(std::fs::read_to_string(node.path("job")).expect("its last words"), "over\n");

        let limits = "cd /sys/fs/cgroup; cat memory.max cpu.max memory.oom.group; grep Seccomp: /proc/self/status";
        // The guest is as large as all that its containers may use.
        let (_, total) = node.exec(&web, "awk '/MemTotal/ { print $2 }' /proc/meminfo").await;
        assert!(total.trim().parse().is_ok_and(|kib: u64| kib > 270 << 10), "{total}");
        let (code, limited) = node.exec(&web, limits).await;
        assert_eq!((code, limited.as_str()), (0, "134217728\n50000 100000\n1\nSeccomp:\t2\n"));
        assert_eq!(node.exec(&web, "exit 7").await.0, 7);
        let request = UpdateContainerResourcesRequest {
            container_id: web.clone(),
            linux: Some(resources(100)),
            ..Default::default()
        };
        node.runtime.update_container_resources(request).await.expect("update");
        let (_, limited) = node.exec(&web, "cat /sys/fs/cgroup/memory.max").await;
        assert_eq!(limited, "104857600\n");
        let request = ContainerStatsRequest { container_id: web.clone() };
        let stats = node.runtime.container_stats(request).await.expect("stats").into_inner();
        let memory = stats.stats.and_then(|stats| stats.memory).and_then(|m| m.working_set_bytes);
        assert!(memory.is_some_and(|bytes| bytes.value > 100_000), "{memory:?}");

        let request = StopContainerRequest { container_id: web.clone(), timeout: 1 };
        node.runtime.stop_container(request).await.expect("stop");
        assert_eq!(node.status(&web).await.exit_code, 137);
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        node.runtime.stop_pod_sandbox(request).await.expect("stop the pod");
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod };
        node.runtime.remove_pod_sandbox(request).await.expect("remove the pod");
        let marker = text(&node.path("state"));
        eventually("nothing of the pod runs", SOON, || {
            !processes(&marker).iter().any(|name| name.starts_with("containerd-shim"))
        });
    }
}
