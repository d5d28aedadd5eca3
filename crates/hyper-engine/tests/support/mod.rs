//! A supervisor in the test's own process: a real ttrpc Task server and real `pod.sock`s, whose
//! "programs" are words.
//!
//! | `args` | does |
//! | --- | --- |
//! | `exit N` | ends at once with N |
//! | `echo TEXT` | writes TEXT, ends with 0 |
//! | `sleep` | runs until a signal: 128 + its number |
//! | `missing` | cannot be found |
//! | `hang` | its guest never boots |

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::api::{self, Empty};
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};
use containerd_shim_protos::ttrpc::{self, Code};
use futures_util::StreamExt as _;
use hyper_engine::spec::CreateRequest;
use hyper_engine::{Config, Engine, Layout};
use hyper_stdio::{Hub, Stream, Wanted};
use hyper_task::pod::{Answer, Call, Phases};
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

type Answered<T> = ttrpc::Result<T>;

#[derive(Clone)]
struct Container {
    args: Vec<String>,
    hub: Arc<Hub>,
    status: watch::Sender<(api::Status, u32)>,
}

/// One connection's view of all containers.
#[derive(Clone, Default)]
struct Fake {
    containers: Arc<Mutex<HashMap<String, Container>>>,
    shut_down: Arc<Notify>,
}

/// Serves connections until `dying`; one ends with its `Shutdown` request.
async fn accept(listener: UnixListener, fake: Fake, dying: CancellationToken) {
    while let Some(Ok((stream, _))) = dying.run_until_cancelled(listener.accept()).await {
        let fake = Fake { shut_down: Arc::default(), ..fake.clone() };
        let dying = dying.clone();
        tokio::spawn(async move {
            let shut_down = fake.shut_down.clone();
            let one = futures_util::stream::once(async { Ok::<_, std::io::Error>(stream) });
            let incoming = Box::pin(one.chain(futures_util::stream::pending()));
            let mut server = Server::new()
                .add_listener(Listener::new(incoming))
                .register_service(create_task(Arc::new(fake)));
            server.start().await.unwrap();
            dying.run_until_cancelled(shut_down.notified()).await;
            server.shutdown().await.unwrap();
        });
    }
}

fn refused(code: Code, text: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text.to_owned()))
}

impl Fake {
    fn get(&self, id: &str) -> Answered<Container> {
        let containers = self.containers.lock().unwrap();
        containers.get(id).cloned().ok_or_else(|| refused(Code::NOT_FOUND, id))
    }
}

async fn serve_pod_socket(path: PathBuf, hub: Arc<Hub>) {
    let listener = hyper_stdio::socket::bind(&path).unwrap();
    while let Ok((mut stream, _)) = listener.accept().await {
        let hub = hub.clone();
        tokio::spawn(async move {
            match hyper_stdio::attach::read_call(&mut stream).await {
                Ok(Call::Attach { stdin, stdout, stderr, .. }) => {
                    let attachment = hub.attach(Wanted { stdin, stdout, stderr });
                    hyper_stdio::attach::write_answer(&mut stream, &Answer::Attached).await?;
                    let (read, write) = stream.into_split();
                    hyper_stdio::attach::serve(attachment, read, write).await
                }
                _ => {
                    let answer = Answer::Phases(Phases::default());
                    hyper_stdio::attach::write_answer(&mut stream, &answer).await
                }
            }
        });
    }
}

#[async_trait]
impl Task for Fake {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> Answered<api::CreateTaskResponse> {
        let bundle = Path::new(&request.bundle);
        let config = std::fs::read(bundle.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let args: Vec<String> = serde_json::from_value(config["process"]["args"].clone()).unwrap();
        match args[0].as_str() {
            "missing" => {
                let text = "container `x`: exec: \"missing\": executable file not found in $PATH";
                return Err(refused(Code::INVALID_ARGUMENT, text));
            }
            "hang" => std::future::pending().await,
            _ => {}
        }
        let hub = Arc::new(Hub::new(None).unwrap());
        tokio::spawn(serve_pod_socket(bundle.join("pod.sock"), hub.clone()));
        let status = watch::Sender::new((api::Status::CREATED, 0));
        self.containers.lock().unwrap().insert(request.id, Container { args, hub, status });
        // The socket is there before the answer.
        while !bundle.join("pod.sock").exists() {
            tokio::task::yield_now().await;
        }
        Ok(api::CreateTaskResponse::new())
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> Answered<api::StartResponse> {
        let container = self.get(&request.id)?;
        container.status.send_replace((api::Status::RUNNING, 0));
        let code = match container.args[0].as_str() {
            "exit" => container.args[1].parse().unwrap(),
            "echo" => {
                let text = container.args[1].clone();
                container.hub.pump(Stream::Stdout, text.as_bytes()).await.unwrap();
                0
            }
            _ => return Ok(api::StartResponse { pid: 7, ..Default::default() }),
        };
        container.hub.finish().await;
        container.status.send_replace((api::Status::STOPPED, code));
        Ok(api::StartResponse { pid: 7, ..Default::default() })
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Answered<Empty> {
        let container = self.get(&request.id)?;
        container.hub.finish().await;
        container.status.send_replace((api::Status::STOPPED, 128 + request.signal));
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> Answered<api::WaitResponse> {
        let mut status = self.get(&request.id)?.status.subscribe();
        let ended = status.wait_for(|(status, _)| *status == api::Status::STOPPED).await.unwrap();
        Ok(api::WaitResponse { exit_status: ended.1, ..Default::default() })
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> Answered<api::StateResponse> {
        let (status, exit_status) = *self.get(&request.id)?.status.borrow();
        let status = EnumOrUnknown::new(status);
        Ok(api::StateResponse { pid: 7, status, exit_status, ..Default::default() })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> Answered<api::DeleteResponse> {
        self.containers.lock().unwrap().remove(&request.id);
        Ok(api::DeleteResponse { exited_at: MessageField::none(), ..Default::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        _: api::ConnectRequest,
    ) -> Answered<api::ConnectResponse> {
        // No process of its own: the engine looks at the connection then.
        Ok(api::ConnectResponse::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Answered<Empty> {
        // The engine waits for the end of the connection.
        self.shut_down.notify_one();
        Ok(Empty::new())
    }
}

/// A world to test in.
pub struct World {
    pub dir: tempfile::TempDir,
    dying: CancellationToken,
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        image(dir.path());
        let world = Self { dir, dying: CancellationToken::new() };
        let socket = world.socket();
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(accept(listener, Fake::default(), world.dying.clone()));
        let program = format!(
            "#!/bin/sh\necho '{{\"version\":3,\"address\":\"unix://{}\",\"protocol\":\"ttrpc\"}}'\n",
            socket.display()
        );
        let path = world.dir.path().join("supervisor");
        std::fs::write(&path, program).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        world
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("task.sock")
    }

    /// All supervisors are gone, as after `kill -9`.
    pub fn kill_supervisors(&self) {
        std::fs::remove_file(self.socket()).unwrap();
        self.dying.cancel();
    }

    pub fn config(&self) -> Config {
        Config {
            layout: Layout {
                data_root: self.dir.path().join("data"),
                exec_root: self.dir.path().join("run"),
            },
            supervisor: self.dir.path().join("supervisor"),
            runtimes: Arc::new(hyper_engine::Runtimes {
                default: "auto".to_owned(),
                hypervisors: vec!["auto".to_owned()],
                ..hyper_engine::Runtimes::default()
            }),
            disk_bytes: 64 << 20,
            sockets: Arc::new(hyper_engine::OwnSockets),
            rootless: false,
            images: hyper_image::Options::default(),
            debug: false,
        }
    }

    pub async fn open(&self) -> Engine {
        Engine::open(self.config()).await.unwrap()
    }

    /// An engine with the image `tiny`.
    pub async fn engine(&self) -> Engine {
        let engine = self.open().await;
        let archive = tokio::fs::File::open(self.dir.path().join("tiny.tar")).await.unwrap();
        engine.load(archive, hyper_image::Progress::none()).await.unwrap();
        engine
    }

    /// Bundles on the host.
    pub fn bundles(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("run/pods")).unwrap().count()
    }
}

pub fn request(name: &str, args: &[&str]) -> CreateRequest {
    CreateRequest {
        name: Some(name.to_owned()),
        image: "tiny".to_owned(),
        cmd: Some(args.iter().map(|arg| (*arg).to_owned()).collect()),
        ..CreateRequest::default()
    }
}

/// A docker-archive with one layer of one file.
fn image(dir: &Path) {
    let tar = |archive: &str, names: &[&str]| {
        let mut command = std::process::Command::new("tar");
        command.current_dir(dir).args(["--owner=0", "--group=0", "-cf", archive]).args(names);
        assert!(command.status().unwrap().success());
    };
    std::fs::write(dir.join("hello"), "hello\n").unwrap();
    tar("layer.tar", &["hello"]);
    let output = std::process::Command::new("sha256sum").arg(dir.join("layer.tar")).output();
    let diff_id = String::from_utf8(output.unwrap().stdout).unwrap()[..64].to_owned();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["FROM=image"], "Cmd": ["sleep"], "Labels": { "a": "image" } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": ["tiny:latest"], "Layers": ["layer.tar"] },
    ]);
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    tar("tiny.tar", &["manifest.json", "config.json", "layer.tar"]);
}
