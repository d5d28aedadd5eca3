//! The API over a real engine and a real socket, without images: what clients see first, and errors.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::path::Path;
use std::time::Duration;

use hyper_docker::{App, Listener, RegistryNames, serve};
use hyper_engine::{Config, Engine, Layout};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Server {
    dir: tempfile::TempDir,
    closing: CancellationToken,
    task: JoinHandle<()>,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn message(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).expect(&self.body);
        body["message"].as_str().expect("a message").to_owned()
    }
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            Layout { data_root: dir.path().join("data"), exec_root: dir.path().join("run") };
        let config = Config {
            layout,
            supervisor: "/no/supervisor".into(),
            runtimes: std::sync::Arc::new(hyper_engine::Runtimes {
                default: "auto".to_owned(),
                hypervisors: vec!["auto".to_owned()],
                ..hyper_engine::Runtimes::default()
            }),
            disk_bytes: 64 << 20,
            sockets: std::sync::Arc::new(hyper_engine::OwnSockets),
            rootless: false,
            images: hyper_image::Options::default(),
            debug: false,
        };
        let engine = Engine::open(config).await.unwrap();
        let closing = CancellationToken::new();
        let app = App::new(engine, closing.clone(), RegistryNames::default(), false);
        let socket = UnixListener::bind(dir.path().join("sock")).unwrap();
        let listeners = vec![Listener { socket, name: "test".to_owned() }];
        let task = tokio::spawn(serve(app, listeners, Duration::from_secs(5)));
        Self { dir, closing, task }
    }

    fn socket(&self) -> &Path {
        self.dir.path()
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = UnixStream::connect(self.socket().join("sock")).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head[9..12].parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_negotiate_by_ping() {
    let server = Server::start().await;
    for method in ["GET", "HEAD"] {
        let ping = server.ask(method, "/_ping", "").await;
        assert_eq!(ping.status, 200);
        for header in ["api-version: 1.47", "ostype: linux", "docker-experimental: false"] {
            assert!(ping.head.contains(header), "{}", ping.head);
        }
    }
    for path in ["/version", "/v1.24/version", "/v1.47/version"] {
        let version: Value = serde_json::from_str(&server.get(path).await.body).unwrap();
        assert_eq!(version["ApiVersion"], "1.47");
    }
    assert!(server.get("/v1.99/version").await.message().contains("too new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_empty_and_honest() {
    let server = Server::start().await;
    for (path, empty) in [
        ("/containers/json?all=1", "[]"),
        ("/images/json", "[]"),
        ("/plugins", "[]"),
        ("/hyper/v1/phases", "[]"),
        ("/volumes", r#"{"Volumes":[],"Warnings":null}"#),
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, empty), "{path}");
    }
    let networks: Value = serde_json::from_str(&server.get("/networks").await.body).unwrap();
    // Last, and the only one on a host that cannot have networks.
    let last = networks.as_array().and_then(|all| all.last()).unwrap();
    assert_eq!(last["Name"], "none");
    let info: Value = serde_json::from_str(&server.get("/info").await.body).unwrap();
    assert_eq!((&info["Containers"], &info["OSType"]), (&Value::from(0), &Value::from("linux")));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_what_is_wrong() {
    let server = Server::start().await;
    for (method, path, body, status, named) in [
        ("GET", "/nonsense", "", 404, "/nonsense"),
        ("POST", "/v1.47/build?t=x", "", 400, "Dockerfile"),
        ("POST", "/v1.47/build?version=2", "", 400, "DOCKER_BUILDKIT=0"),
        ("POST", "/session", "", 501, "BuildKit"),
        ("POST", "/v1.47/build?squash=1", "", 501, "squash"),
        ("POST", "/volumes/create", "{\"Driver\":\"nfs\"}", 400, "nfs"),
        ("POST", "/hyper/v1/pods", "{\"nmae\":\"x\"}", 400, "nmae"),
        ("GET", "/hyper/v1/pods/nosuch", "", 404, "nosuch"),
        ("GET", "/containers/nosuch/json", "", 404, "No such container: nosuch"),
        ("POST", "/containers/nosuch/wait", "", 404, "nosuch"),
        ("GET", "/images/a/b:1/json", "", 404, "No such image: a/b:1"),
        ("POST", "/containers/create", "{\"Image\": ", 400, "line 1 column"),
        ("POST", "/containers/create", "{\"Image\": 7}", 400, "column"),
        ("POST", "/containers/create", "", 400, "no body"),
        ("POST", "/containers/create", "{\"Image\":\"x\"}", 404, "No such image: x:latest"),
        ("POST", "/containers/create?name=-", "{\"Image\":\"x\"}", 400, "(-)"),
        ("GET", "/containers/json?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D", "", 400, "nope"),
        ("GET", "/containers/json?filters=%7B", "", 400, "line 1"),
        ("GET", "/exec/nosuch/json", "", 404, "nosuch"),
        ("GET", "/images/search?term=x", "", 501, "Docker Hub"),
        ("POST", "/images/create?fromImage=UPPER", "", 400, "UPPER"),
    ] {
        let answer = server.ask(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        let message = answer.message();
        assert!(message.contains(named), "{method} {path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_orderly_and_ends_streams() {
    let server = Server::start().await;
    let mut events = UnixStream::connect(server.socket().join("sock")).await.unwrap();
    events.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 64];
    // The header comes before any event.
    assert!(events.read(&mut head).await.unwrap() > 0);
    server.closing.cancel();
    tokio::time::timeout(Duration::from_secs(4), server.task).await.unwrap().unwrap();
    let mut rest = Vec::new();
    events.read_to_end(&mut rest).await.unwrap();
    UnixStream::connect(server.dir.path().join("sock")).await.unwrap_err();
}
