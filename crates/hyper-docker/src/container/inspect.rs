//! `GET /containers/{id}/json`: the engine's words in Docker's.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use hyper_engine::spec::{HostSpec, Spec, Transfer};
use hyper_engine::{MASKED, READ_ONLY, Status, View};
use serde_json::{Map, Value, json};

use super::{given, mounts, network, policy};
use crate::app::App;
use crate::error::ApiResult;
use crate::request::Query;

/// Go's zero time: what Docker shows for what has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

pub(crate) async fn inspect(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult {
    let view = app.engine.container(&id)?;
    let mut document = document(&app, &view);
    if query.flag("size") {
        let bytes = app.engine.container_bytes(&view.spec.id).await?;
        let image = app.engine.image(&view.spec.image_id).map_or(0, |image| image.size);
        document["SizeRw"] = json!(bytes);
        document["SizeRootFs"] = json!(bytes + image);
    }
    Ok(Json(document).into_response())
}

fn document(app: &App, view: &View) -> Value {
    let spec = &view.spec;
    let args = spec.args();
    let directory = app.engine.config().layout.container(&spec.id);
    let log = app.engine.config().layout.log(&spec.id, &spec.host.log.driver);
    json!({
        "Id": spec.id,
        "Created": hyper_stdio::rfc3339_nano(spec.created_ns),
        "Path": args.first().cloned().unwrap_or_default(),
        "Args": args.get(1..).unwrap_or_default(),
        "State": state(view),
        "Image": spec.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": if spec.host.log.driver == "none" { String::new() } else { log.display().to_string() },
        "Name": format!("/{}", view.name),
        "RestartCount": view.state.restarts,
        "Driver": "erofs",
        "Platform": spec.platform.split('/').next().unwrap_or("linux"),
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": none_if_empty(&app.engine.execs(&spec.id)),
        "HostConfig": host_config(spec, &app.engine.config().runtimes.default),
        "GraphDriver": {
            "Name": "erofs",
            "Data": match app.engine.config().runtimes.foreign(&spec.host.runtime) {
                Some(_) => json!({ "UpperDir": directory.join("fs/upper").display().to_string() }),
                None => json!({ "UpperDisk": directory.join("upper.ext4").display().to_string() }),
            },
        },
        "Hyper": wall(app, spec),
        "Mounts": mounts::shown(app, &spec.host),
        "Config": config(spec),
        "NetworkSettings": network::settings(app, view),
    })
}

/// What it runs on and how strong that is, beside what Docker has.
pub(super) fn wall(app: &App, spec: &Spec) -> Value {
    let runtimes = &app.engine.config().runtimes;
    let name = if spec.host.runtime.is_empty() { &runtimes.default } else { &spec.host.runtime };
    json!({ "Runtime": name, "Wall": runtimes.wall(name) })
}

fn throttles(host: &HostSpec, what: Transfer) -> Value {
    let all = host.throttles.iter().filter(|one| one.what == what);
    all.map(|one| json!({ "Path": one.path, "Rate": one.rate })).collect()
}

fn none_if_empty(list: &[String]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

fn state(view: &View) -> Value {
    let state = &view.state;
    let time = |at: Option<i64>| at.map_or_else(|| NEVER.to_owned(), hyper_stdio::rfc3339_nano);
    let restarting = state.status == Status::Restarting;
    let mut document = json!({
        "Status": state.status.word(),
        // As Docker: who is restarted is running, as seen from far.
        "Running": state.status.is_up() || restarting,
        "Paused": state.status == Status::Paused,
        "Restarting": restarting,
        "OOMKilled": state.oom_killed,
        "Dead": false,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": time(state.started_ns),
        "FinishedAt": time(state.finished_ns),
    });
    if let Some(health) = &state.health {
        document["Health"] = policy::health_state(health);
    }
    document
}

fn config(spec: &Spec) -> Value {
    let host = &spec.host;
    let mut config = json!({
        "Hostname": hyper_engine::hostname(spec),
        "Domainname": host.domainname,
        "User": spec.user,
        "AttachStdin": host.attach_stdin,
        "AttachStdout": host.attach_stdout,
        "AttachStderr": host.attach_stderr,
        "Tty": host.tty,
        "OpenStdin": host.open_stdin,
        "StdinOnce": host.stdin_once,
        "Env": given::environment(&spec.env, host),
        "Cmd": none_if_empty(&spec.cmd),
        "Image": spec.image,
        "Volumes": if spec.volumes.is_empty() { Value::Null } else { set(&spec.volumes) },
        "WorkingDir": spec.working_dir,
        "Entrypoint": none_if_empty(&spec.entrypoint),
        "OnBuild": null,
        "Labels": spec.labels,
    });
    if !spec.exposed_ports.is_empty() {
        config["ExposedPorts"] = set(&spec.exposed_ports);
    }
    if !spec.stop_signal.is_empty() {
        config["StopSignal"] = json!(spec.stop_signal);
    }
    if let Some(check) = &spec.health {
        config["Healthcheck"] = policy::healthcheck(check);
    }
    if let Some(seconds) = host.stop_timeout {
        config["StopTimeout"] = json!(seconds);
    }
    config
}

fn set(names: &[String]) -> Value {
    Value::Object(names.iter().map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>())
}

fn host_config(spec: &Spec, default_runtime: &str) -> Value {
    let HostSpec { limits, security, log, .. } = &spec.host;
    let host = &spec.host;
    let paths = |given: &Option<Vec<String>>, default: &[&str]| match given {
        Some(paths) => json!(paths),
        None if security.privileged => Value::Null,
        None => json!(default),
    };
    let runtime = if host.runtime.is_empty() { default_runtime } else { &host.runtime };
    let ulimits: Vec<Value> = host
        .ulimits
        .iter()
        .map(|limit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard }))
        .collect();
    let mut document = json!({
        "Binds": none_if_empty(&host.binds),
        "ContainerIDFile": "",
        "LogConfig": { "Type": log.driver, "Config": log.options },
        "NetworkMode": host.network,
        "PortBindings": network::bindings(&host.ports),
        "RestartPolicy": policy::restart_policy(host.restart),
        "AutoRemove": host.auto_remove,
        "VolumeDriver": host.volume_driver,
        "VolumesFrom": none_if_empty(&host.volumes_from),
        "ConsoleSize": [host.console_size.0, host.console_size.1],
        "Annotations": host.annotations,
        "CapAdd": none_if_empty(&security.cap_add),
        "CapDrop": none_if_empty(&security.cap_drop),
        "CgroupnsMode": "private",
        "Dns": host.dns,
        "DnsOptions": host.dns_options,
        "DnsSearch": host.dns_search,
        "ExtraHosts": none_if_empty(&host.extra_hosts),
        "GroupAdd": none_if_empty(
            &security
                .groups
                .iter()
                .map(u32::to_string)
                .chain(security.group_names.iter().cloned())
                .collect::<Vec<_>>(),
        ),
        "IpcMode": if host.ipc.is_empty() { "private" } else { &host.ipc },
        "Init": host.init,
        "Cgroup": "",
        "Links": null,
        "OomScoreAdj": host.oom_score_adj,
        "PidMode": "",
        "Privileged": security.privileged,
        "PublishAllPorts": host.publish_all,
        "ReadonlyRootfs": security.read_only_root,
        "SecurityOpt": none_if_empty(&security.options),
        "StorageOpt": if host.disk_bytes > 0 { json!({ "size": host.disk_bytes.to_string() }) } else { Value::Null },
        "Tmpfs": host.tmpfs,
        "UTSMode": "",
        "UsernsMode": host.userns,
        "ShmSize": if host.shm_bytes == 0 { 64 << 20 } else { host.shm_bytes },
        "Sysctls": host.sysctls,
        "Runtime": runtime,
        "Isolation": "",
        "CpuShares": limits.cpu_shares,
        "Memory": limits.memory_bytes,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": "",
        "BlkioWeight": 0,
        "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": throttles(host, Transfer::ReadBytes),
        "BlkioDeviceWriteBps": throttles(host, Transfer::WriteBytes),
        "BlkioDeviceReadIOps": throttles(host, Transfer::ReadOperations),
        "BlkioDeviceWriteIOps": throttles(host, Transfer::WriteOperations),
        "CpuPeriod": limits.cpu_period_us,
        "CpuQuota": limits.cpu_quota_us,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": "",
        "Devices": [],
        "DeviceCgroupRules": null,
        "DeviceRequests": null,
        "MemoryReservation": limits.memory_reservation_bytes,
        "MemorySwap": limits.memory_swap_bytes,
        "MemorySwappiness": null,
        "OomKillDisable": false,
        "PidsLimit": if limits.pids > 0 { json!(limits.pids) } else { Value::Null },
        "Ulimits": ulimits,
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "MaskedPaths": paths(&security.masked_paths, &MASKED),
        "ReadonlyPaths": paths(&security.readonly_paths, &READ_ONLY),
    });
    given::inspect(host, &mut document);
    document
}
