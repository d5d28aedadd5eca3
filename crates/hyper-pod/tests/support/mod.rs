//! A pod on the in-memory hypervisor whose guest runs a small agent that speaks the real link.
//!
//! Programs the agent knows (`process.args`): `echo WORDS…` (stdout, then `done` on stderr),
//! `cat` (stdin to stdout), `sleep` (until a signal), `flood BYTES`, `exit CODE`, `missing`; as an
//! exec `deaf`: the agent hears nothing any more. `clings`: the agent does not let go of a disk when
//! it is asked to for the first time.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::DiskModel;
use hyper_hypervisor::fake::{Fake, Guest, Guests, KERNEL, Power};
use hyper_link::message::{
    AgentHello, Event, Failure, FailureKind, ProcessId, ProcessInfo, Reply, Request, Stats, Streams,
};
use hyper_link::{AgentLink, RequestReceiver, accept};
use hyper_pod::{CreateRequest, ExecRequest, Flavour, Pod, PodEvent, RootfsMount, Settings, Uris};
use hyper_task::pod::ExitRecord;
use hyper_task::rootfs::{DiskFile, MOUNT_TYPE, RootfsImage};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Mutex, mpsc, oneshot};

pub struct Host {
    pub dir: tempfile::TempDir,
    pub pod: Pod,
    pub events: mpsc::UnboundedReceiver<PodEvent>,
    pub guests: Guests,
    pub fake: Arc<Fake>,
}

impl Host {
    pub fn new(model: DiskModel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in
            [("kernel", KERNEL), ("initramfs", b"x"), ("meta", &[0; 4096]), ("blob", &[0; 8192])]
        {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let image = RootfsImage {
            metadata: DiskFile { path: dir.path().join("meta"), bytes: 4096 },
            layers: vec![DiskFile { path: dir.path().join("blob"), bytes: 8192 }],
        };
        std::fs::write(dir.path().join("image.json"), serde_json::to_vec(&image).unwrap()).unwrap();
        let (fake, guests) = Fake::new(model);
        let fake = Arc::new(fake);
        let flavour = Flavour {
            kernel: dir.path().join("kernel"),
            initramfs: dir.path().join("initramfs"),
            extra_cmdline: vec![],
            boot_timeout: Duration::from_secs(5),
        };
        let path = |name: &str| dir.path().join(name);
        let (pod, events) = Pod::new(Settings {
            id: "p".into(),
            vm_id: "p-1".into(),
            hypervisors: vec![fake.clone()],
            flavours: BTreeMap::from([("fake".to_owned(), flavour)]),
            default_hypervisor: "auto".into(),
            min_isolation: hyper_hypervisor::Wall::SharedKernel,
            default_memory_bytes: 64 << 20,
            memory_overhead_bytes: 32 << 20,
            default_vcpus: 1,
            run_dir: path("run"),
            disk_dir: path("disks"),
            converted_dir: path("converted"),
            template_dir: path("templates"),
            templates: hyper_pod::Templates {
                directory: "/none".into(),
                maker: "/none".into(),
                on: false,
            },
            upper_bytes: 64 << 20,
            started_ns: 1,
        });
        Self { dir, pod, events, guests, fake }
    }

    pub fn bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.dir.path().join("bundles").join(id);
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        bundle
    }

    pub fn request(&self, id: &str, args: &[&str], stdio: Uris) -> CreateRequest {
        let bundle =
            self.bundle(id, &json!({"process": {"args": args}, "root": {"path": "rootfs"}}));
        let rootfs = vec![RootfsMount {
            kind: MOUNT_TYPE.into(),
            source: self.dir.path().join("image.json").display().to_string(),
            options: vec![],
        }];
        CreateRequest { id: id.into(), bundle, rootfs, stdio }
    }

    pub fn sandbox_request(&self, id: &str) -> CreateRequest {
        let spec = json!({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}});
        CreateRequest { id: id.into(), bundle: self.bundle(id, &spec), ..CreateRequest::default() }
    }

    /// Creates a container while its guest boots with [`agent`].
    pub async fn create(&mut self, id: &str, args: &[&str], stdio: Uris) -> Power {
        let request = self.request(id, args, stdio);
        let (created, power) =
            tokio::join!(self.pod.create(request), start_agent(&mut self.guests));
        created.unwrap();
        power
    }

    pub fn hub(&self, id: &str) -> Uris {
        let log = format!("hub:?driver=json-file&path={}", self.log(id).display());
        Uris { stdin: "hub:".into(), stdout: log.clone(), stderr: log, terminal: false }
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    pub fn socket(&self, id: &str) -> PathBuf {
        self.dir.path().join("bundles").join(id).join("pod.sock")
    }

    /// Runs a created container to its end.
    pub async fn run(&self, id: &str) -> ExitRecord {
        self.pod.start(init(id)).await.unwrap();
        self.pod.wait(init(id)).await.unwrap()
    }

    /// Until the next exit.
    pub async fn exited(&mut self) -> (ProcessId, ExitRecord) {
        loop {
            match self.events.recv().await.unwrap() {
                PodEvent::Exited { process, exit, .. } => return (process, exit),
                _ => continue,
            }
        }
    }
}

pub fn init(id: &str) -> ProcessId {
    ProcessId { container: id.into(), exec: None }
}

pub fn exec(id: &str, exec: &str) -> ProcessId {
    ProcessId { container: id.into(), exec: Some(exec.into()) }
}

pub fn exec_request(id: &str, exec: &str, args: &[&str], stdio: Uris) -> ExecRequest {
    ExecRequest { container: id.into(), id: exec.into(), spec: json!({"args": args}), stdio }
}

/// Text of a json-file log.
pub async fn logged(path: &Path) -> String {
    let log = hyper_task::stdio::LogConfig {
        driver: "json-file".into(),
        path: path.into(),
        max_file: 1,
        ..Default::default()
    };
    let mut reader = hyper_stdio::LogReader::open(&log, Default::default()).await.unwrap();
    let mut text = Vec::new();
    while let Some(entry) = reader.next().await.unwrap() {
        text.extend(entry.data);
    }
    String::from_utf8(text).unwrap()
}

pub async fn start_agent(guests: &mut Guests) -> Power {
    let Guest { link, power, .. } = guests.next().await.unwrap();
    let hello = AgentHello {
        min_version: 1,
        max_version: 1,
        agent: "test".into(),
        kernel: "7.3-fake".into(),
        capabilities: vec![],
        ready_us: 1,
    };
    let off = power.clone();
    tokio::spawn(async move {
        if let Ok((link, requests)) = accept(link, hello).await {
            agent(link, requests, off).await;
        }
    });
    power
}

type Kill = Arc<Mutex<HashMap<ProcessId, oneshot::Sender<i32>>>>;

async fn agent(link: AgentLink, mut requests: RequestReceiver, power: Power) {
    let kill: Kill = Arc::default();
    let mut clings = false;
    let mut created: HashMap<String, (Vec<String>, Streams)> = HashMap::new();
    let args = |spec: &Value| {
        let args = spec["args"].as_array().unwrap().iter();
        args.map(|arg| arg.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    while let Some((request, reply)) = requests.recv().await {
        let refuse = |kind, message: &str| Reply::Error(Failure { kind, message: message.into() });
        match request {
            Request::CreateContainer(create) => {
                let args = args(&create.spec["process"]);
                if args[0] == "uncreatable" {
                    reply.send(refuse(FailureKind::UnknownUser, "no user `nobody`"));
                    continue;
                }
                clings |= args[0] == "clings";
                created.insert(create.container, (args, create.streams));
                reply.send(Reply::Started { pid: 7 });
            }
            Request::StartContainer { container } => {
                let (args, streams) = created[&container].clone();
                if args[0] == "missing" {
                    reply.send(refuse(FailureKind::CommandNotFound, "exec `missing`"));
                    continue;
                }
                reply.send(Reply::Done);
                run(&link, ProcessId { container, exec: None }, args, streams, &kill).await;
            }
            Request::Exec(exec) => {
                reply.send(Reply::Started { pid: 8 });
                if args(&exec.spec) == ["deaf"] {
                    std::future::pending::<()>().await;
                }
                run(&link, exec.process, args(&exec.spec), exec.streams, &kill).await;
            }
            Request::Signal { process, signal, .. } => match kill.lock().await.remove(&process) {
                Some(kill) => {
                    _ = kill.send(128 + signal);
                    reply.send(Reply::Done);
                }
                None if created.contains_key(&process.container) => {
                    let streams = created[&process.container].1;
                    for id in [streams.stdin, streams.stdout, streams.stderr].into_iter().flatten()
                    {
                        drop(link.open(id));
                    }
                    reply.send(Reply::Done);
                    link.event(Event::Exited {
                        process,
                        code: 128 + signal,
                        unix_ns: 0,
                        oom_killed: false,
                    });
                }
                None => reply.send(refuse(FailureKind::NotFound, "no such process")),
            },
            Request::ReleaseDisks { .. } if std::mem::take(&mut clings) => {
                reply.send(refuse(FailureKind::Conflict, "disk is still in use"));
            }
            Request::Freeze { .. } => reply.send(refuse(FailureKind::Unsupported, "no freezer")),
            Request::Processes { .. } => {
                let processes = [1, 2].map(|pid| ProcessInfo { pid, ..ProcessInfo::default() });
                reply.send(Reply::Processes { processes: processes.to_vec() });
            }
            Request::Stats { .. } => reply.send(Reply::Stats(Box::new(Stats {
                memory_bytes: 77,
                guest_memory_total_bytes: 100,
                guest_memory_available_bytes: 60,
                ..Stats::default()
            }))),
            Request::Shutdown => {
                reply.send(Reply::Done);
                _ = link.flushed().await;
                power.end(hyper_hypervisor::VmExit::PoweredOff);
            }
            _ => reply.send(Reply::Done),
        }
    }
}

async fn run(
    link: &AgentLink,
    process: ProcessId,
    args: Vec<String>,
    streams: Streams,
    kill: &Kill,
) {
    let open = |id: Option<u32>| id.map(|id| link.open(id).unwrap());
    let (stdin, mut stdout, stderr) =
        (open(streams.stdin), open(streams.stdout), open(streams.stderr));
    let (killed, mut kills) = oneshot::channel();
    kill.lock().await.insert(process.clone(), killed);
    let link = link.clone();
    tokio::spawn(async move {
        let out = &mut stdout.as_mut().unwrap().1;
        let mut code = 0;
        match args[0].as_str() {
            "echo" => {
                out.write_all(format!("{}\n", args[1..].join(" ")).as_bytes()).await.unwrap();
                if let Some((_, mut err)) = stderr {
                    err.write_all(b"done\n").await.unwrap();
                }
            }
            "cat" => {
                let (mut input, _) = stdin.unwrap();
                tokio::io::copy(&mut input, out).await.unwrap();
            }
            "flood" => {
                let chunk = vec![b'x'; 65536];
                let mut left: usize = args[1].parse().unwrap();
                while left > 0 {
                    let now = left.min(chunk.len());
                    if out.write_all(&chunk[..now]).await.is_err() {
                        return;
                    }
                    left -= now;
                }
            }
            "exit" => code = args[1].parse().unwrap(),
            _ => code = (&mut kills).await.unwrap_or(0),
        }
        drop(stdout);
        link.event(Event::Exited { process, code, unix_ns: 0, oom_killed: false });
    });
}
