//! `_ping`, `version`, `info`, `auth`, `system/df`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use hyper_engine::VolumeDriver;
use hyper_engine::spec::Log;
use hyper_image::Credentials;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::ApiResult;
use crate::request::Version;
use crate::{API_VERSION, MIN_API_VERSION, image, request, volume};

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) async fn ping() -> Response {
    (
        [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
            (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
            (header::PRAGMA, "no-cache"),
        ],
        [("builder-version", "1"), ("swarm", "inactive")],
        "OK",
    )
        .into_response()
}

pub(crate) async fn version() -> Response {
    let kernel = read("/proc/sys/kernel/osrelease").await;
    let component = json!({
        "Name": "Engine",
        "Version": VERSION,
        "Details": {
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "Arch": architecture(),
            "Os": "linux",
            "KernelVersion": kernel,
            "Experimental": "false",
        },
    });
    let answer = json!({
        "Platform": { "Name": "Hyper" },
        "Components": [component],
        "Version": VERSION,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": kernel,
    });
    Json(answer).into_response()
}

/// Docker's object, its wall among the things that it says of itself.
fn runtime(config: &hyper_engine::Config, name: &str) -> Value {
    let mut told = match config.runtimes.foreign(name) {
        None => json!({ "path": config.supervisor.display().to_string() }),
        Some(foreign) if foreign.program.as_os_str().is_empty() => {
            json!({ "runtimeType": foreign.kind, "path": foreign.shim.display().to_string() })
        }
        Some(foreign) => json!({ "path": foreign.program.display().to_string() }),
    };
    if let Some(wall) = config.runtimes.wall(name) {
        told["status"] = json!({ "io.hyper.wall": wall });
    }
    told
}

pub(crate) async fn info(State(app): State<App>) -> Response {
    let config = app.engine.config();
    let counts = app.engine.counts();
    let release = read("/etc/os-release").await;
    let field = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let runtimes: Map<String, Value> = config
        .runtimes
        .names()
        .into_iter()
        .map(|name| (name.to_owned(), runtime(config, name)))
        .collect();
    let index = json!({
        "docker.io": { "Name": "docker.io", "Mirrors": app.registries.mirrors, "Secure": true, "Official": true },
    });
    let empty = json!({ "ID": "", "Expected": "" });
    Json(json!({
        "ID": app.engine.id(),
        "Containers": counts.running + counts.paused + counts.stopped,
        "ContainersRunning": counts.running,
        "ContainersPaused": counts.paused,
        "ContainersStopped": counts.stopped,
        "Images": app.engine.images().len(),
        "Driver": "erofs",
        "DriverStatus": [["Image format", "EROFS"], ["Writable layer", "ext4 disk, overlayfs in the guest"]],
        "SystemStatus": null,
        "Plugins": { "Volume": VolumeDriver::WORDS, "Network": ["bridge", "ipvlan", "macvlan", "null"], "Authorization": null, "Log": Log::DRIVERS },
        "MemoryLimit": true,
        // Guests have none.
        "SwapLimit": false,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": true,
        "CPUSet": true,
        "PidsLimit": true,
        "OomKillDisable": false,
        "IPv4Forwarding": true,
        "Debug": app.debug,
        "NFd": 0,
        "NGoroutines": 0,
        "SystemTime": hyper_stdio::rfc3339_nano(hyper_stdio::now_ns()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "none",
        "CgroupVersion": "2",
        "NEventsListener": 0,
        "KernelVersion": read("/proc/sys/kernel/osrelease").await,
        "OperatingSystem": field("PRETTY_NAME"),
        "OSVersion": field("VERSION_ID"),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": index,
            "Mirrors": app.registries.mirrors,
            "InsecureRegistries": app.registries.insecure,
        },
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": host_memory().await,
        "GenericResources": null,
        "DockerRootDir": config.layout.data_root.display().to_string(),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": read("/proc/sys/kernel/hostname").await,
        "Labels": [],
        "ExperimentalBuild": false,
        "ServerVersion": VERSION,
        "Runtimes": runtimes,
        "DefaultRuntime": config.runtimes.default,
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false,
            "Error": "", "RemoteManagers": null,
        },
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": empty,
        "RuncCommit": empty,
        "InitCommit": empty,
        "SecurityOptions": security_options(app.engine.config().rootless),
        "CDISpecDirs": [],
        "Warnings": app.engine.network_trouble().map(|why| vec![format!("no networks but `none`: {why}")]).unwrap_or_default(),
    }))
    .into_response()
}

/// What stands between containers and the host, in dockerd's form.
fn security_options(rootless: bool) -> Vec<&'static str> {
    let mut options = vec!["name=seccomp,profile=builtin", "name=kernel-per-container"];
    if rootless {
        options.push("name=rootless");
    }
    options
}

/// `POST /auth`: shows credentials to their registry.
pub(crate) async fn auth(State(app): State<App>, body: Body) -> ApiResult {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Login {
        username: String,
        password: String,
        serveraddress: String,
        identitytoken: String,
    }
    let login: Login = request::json(body).await?;
    let credentials = if login.identitytoken.is_empty() {
        Credentials::Basic { username: login.username, password: login.password }
    } else {
        Credentials::IdentityToken(login.identitytoken)
    };
    let token = app.engine.login(&login.serveraddress, &credentials).await?;
    let token = token.unwrap_or_default();
    Ok(Json(json!({ "Status": "Login Succeeded", "IdentityToken": token })).into_response())
}

pub(crate) async fn df(State(app): State<App>, version: Version) -> ApiResult {
    let views = app.engine.containers();
    let shared = image::Shared::of(&app).await?;
    let images: Vec<Value> = app
        .engine
        .images()
        .iter()
        .map(|image| image::summary(image, &views, Some(&shared), version))
        .collect();
    let mut containers = Vec::with_capacity(views.len());
    for view in &views {
        let bytes = app.engine.container_bytes(&view.spec.id).await.unwrap_or(0);
        containers.push(json!({
            "Id": view.spec.id, "Names": [format!("/{}", view.name)], "Image": view.spec.image,
            "ImageID": view.spec.image_id, "Command": view.spec.args().join(" "),
            "Created": view.spec.created_ns / 1_000_000_000, "SizeRw": bytes,
            "Labels": view.spec.labels, "State": view.state.status.word(),
            "Status": view.state.status.word(), "Mounts": [], "Ports": [],
        }));
    }
    Ok(Json(json!({
        "LayersSize": shared.total(),
        "Images": images,
        "Containers": containers,
        "Volumes": volume::usage(&app).await,
        "BuildCache": [],
    }))
    .into_response())
}

async fn read(path: &str) -> String {
    tokio::fs::read_to_string(path).await.unwrap_or_default().trim().to_owned()
}

/// Bytes.
pub(crate) async fn host_memory() -> u64 {
    let text = read("/proc/meminfo").await;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Go's word.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
