//! `POST /containers/create`: from Docker's words to the engine's.

use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use bollard_stubs::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, ResourcesUlimits,
};
use hyper_engine::spec::{
    CreateRequest, HostSpec, Limits, Log, Seccomp, Security, Throttle, Transfer, Ulimit,
};
use serde_json::json;

use super::given::Extension;
use super::{mounts, network, policy, refuse};
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request::{self, Query};

pub(crate) async fn create(State(app): State<App>, query: Query, body: Body) -> ApiResult {
    let (body, own): (ContainerCreateBody, Extension) = request::both(body).await?;
    let (mut request, mut warnings) = translate(&body, &query)?;
    own.apply(&mut request.host);
    let created = app.engine.create(request).await?;
    warnings.extend(created.warnings);
    let answer = json!({ "Id": created.id, "Warnings": warnings });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

pub(crate) fn translate(
    body: &ContainerCreateBody,
    query: &Query,
) -> ApiResult<(CreateRequest, Vec<String>)> {
    let host = body.host_config.clone().unwrap_or_default();
    refuse::check(&host)?;
    let mut warnings = Vec::new();
    if host.oom_kill_disable == Some(true) {
        warnings.push("OomKillDisable is discarded: the guest's kernel has no such switch".into());
    }
    if host.memory_swappiness.is_some_and(|value| !matches!(value, -1 | 0)) {
        warnings.push("MemorySwappiness is discarded: guests have no swap".into());
    }
    if host.memory_swap.is_some_and(|swap| swap < 0 || swap > host.memory.unwrap_or_default()) {
        warnings.push("guests have no swap: the memory limit is all the memory there is".into());
    }
    let request = CreateRequest {
        name: query.text("name").map(|name| name.strip_prefix('/').unwrap_or(name).to_owned()),
        platform: query.text("platform").map(str::to_owned),
        image: body.image.clone().unwrap_or_default(),
        entrypoint: body.entrypoint.clone(),
        cmd: body.cmd.clone(),
        env: body.env.clone().unwrap_or_default(),
        working_dir: body.working_dir.clone(),
        user: body.user.clone(),
        stop_signal: body.stop_signal.clone(),
        labels: sorted(body.labels.clone()),
        exposed_ports: body.exposed_ports.clone().unwrap_or_default(),
        volumes: body.volumes.clone().unwrap_or_default(),
        health: body.healthcheck.as_ref().map(policy::health),
        host: host_spec(body, &host)?,
    };
    Ok((request, warnings))
}

/// Annotation with the name or id of the pod to join: Docker's request has no word for it.
const POD: &str = "io.hyper.pod";
/// `true`: the pod's other containers wait for this one to end well.
const POD_INIT: &str = "io.hyper.pod-init";

fn host_spec(body: &ContainerCreateBody, host: &HostConfig) -> ApiResult<HostSpec> {
    let flag = |value: Option<bool>| value.unwrap_or_default();
    let mut annotations = sorted(host.annotations.clone());
    Ok(HostSpec {
        pod: annotations.remove(POD).unwrap_or_default(),
        pod_init: annotations.remove(POD_INIT).is_some_and(|value| value == "true"),
        hostname: body.hostname.clone().unwrap_or_default(),
        domainname: body.domainname.clone().unwrap_or_default(),
        tty: flag(body.tty),
        open_stdin: flag(body.open_stdin),
        stdin_once: flag(body.stdin_once),
        attach_stdin: flag(body.attach_stdin),
        attach_stdout: flag(body.attach_stdout),
        attach_stderr: flag(body.attach_stderr),
        console_size: console_size(host.console_size.as_deref()),
        stop_timeout: body.stop_timeout,
        auto_remove: flag(host.auto_remove),
        runtime: host.runtime.clone().unwrap_or_default(),
        network: match (body.network_disabled, host.network_mode.as_deref()) {
            (Some(true), _) => "none".to_owned(),
            (_, None | Some("")) => "default".to_owned(),
            (_, Some(mode)) => mode.to_owned(),
        },
        endpoints: network::wishes(body.networking_config.as_ref(), host)?,
        ports: network::ports(host)?,
        publish_all: flag(host.publish_all_ports),
        annotations,
        limits: limits(host),
        throttles: throttles(host)?,
        security: security(host)?,
        log: log(host.log_config.as_ref())?,
        mounts: mounts::mounts(host)?,
        files: Vec::new(),
        secret_env: Vec::new(),
        binds: host.binds.clone().unwrap_or_default(),
        volumes_from: host.volumes_from.clone().unwrap_or_default(),
        plain_volumes: false,
        volume_driver: host.volume_driver.clone().unwrap_or_default(),
        tmpfs: mounts::tmpfs(host),
        shm_bytes: match host.shm_size.unwrap_or_default() {
            size if size < 0 => {
                return Err(ApiError::invalid(format!("SHM size can not be less than 0: {size}")));
            }
            size => size.unsigned_abs(),
        },
        sysctls: sorted(host.sysctls.clone()),
        ulimits: host.ulimits.iter().flatten().map(ulimit).collect(),
        extra_hosts: host.extra_hosts.clone().unwrap_or_default(),
        dns: host.dns.clone().unwrap_or_default(),
        dns_search: host.dns_search.clone().unwrap_or_default(),
        dns_options: host.dns_options.clone().unwrap_or_default(),
        oom_score_adj: i32::try_from(host.oom_score_adj.unwrap_or_default())
            .map_err(|_| ApiError::invalid("OomScoreAdj is out of range"))?,
        disk_bytes: match host.storage_opt.as_ref().and_then(|options| options.get("size")) {
            None => 0,
            Some(text) => hyper_engine::bytes(text)
                .ok_or_else(|| ApiError::invalid(format!("StorageOpt size `{text}` is no size")))?
                .next_multiple_of(4096),
        },
        init: flag(host.init),
        ipc: host.ipc_mode.clone().unwrap_or_default(),
        userns: host.userns_mode.clone().unwrap_or_default(),
        restart: policy::restart(host.restart_policy.as_ref())?.unwrap_or_default(),
    })
}

/// Rows and columns, as Docker sends them.
pub(crate) fn console_size(size: Option<&[usize]>) -> (u16, u16) {
    match size {
        Some([rows, columns]) => {
            (u16::try_from(*rows).unwrap_or(0), u16::try_from(*columns).unwrap_or(0))
        }
        _ => (0, 0),
    }
}

fn limits(host: &HostConfig) -> Limits {
    let number = |value: Option<i64>| value.unwrap_or_default();
    Limits {
        memory_bytes: number(host.memory),
        memory_reservation_bytes: number(host.memory_reservation),
        memory_swap_bytes: number(host.memory_swap),
        nano_cpus: number(host.nano_cpus),
        cpu_shares: number(host.cpu_shares),
        cpu_period_us: number(host.cpu_period),
        cpu_quota_us: number(host.cpu_quota),
        pids: number(host.pids_limit),
        cpuset_cpus: host.cpuset_cpus.clone().unwrap_or_default(),
    }
}

fn throttles(host: &HostConfig) -> ApiResult<Vec<Throttle>> {
    let mut all = Vec::new();
    for (what, list) in [
        (Transfer::ReadBytes, &host.blkio_device_read_bps),
        (Transfer::WriteBytes, &host.blkio_device_write_bps),
        (Transfer::ReadOperations, &host.blkio_device_read_iops),
        (Transfer::WriteOperations, &host.blkio_device_write_iops),
    ] {
        for one in list.iter().flatten() {
            let path = one.path.clone().unwrap_or_default();
            let rate = one.rate.unwrap_or_default();
            let rate = u64::try_from(rate).ok().filter(|rate| *rate > 0).ok_or_else(|| {
                ApiError::invalid(format!("invalid rate {rate} for device `{path}`: 1 or more"))
            })?;
            all.push(Throttle { what, path, rate, ..Throttle::default() });
        }
    }
    Ok(all)
}

fn security(host: &HostConfig) -> ApiResult<Security> {
    let mut security = Security {
        privileged: host.privileged.unwrap_or_default(),
        read_only_root: host.readonly_rootfs.unwrap_or_default(),
        cap_add: host.cap_add.clone().unwrap_or_default(),
        cap_drop: host.cap_drop.clone().unwrap_or_default(),
        masked_paths: host.masked_paths.clone(),
        readonly_paths: host.readonly_paths.clone(),
        options: host.security_opt.clone().unwrap_or_default(),
        ..Security::default()
    };
    for group in host.group_add.iter().flatten() {
        match group.parse() {
            Ok(number) => security.groups.push(number),
            Err(_) if group.is_empty() || group.contains([':', '\n', '\0']) => {
                return Err(ApiError::invalid(format!("invalid group \"{group}\"")));
            }
            Err(_) => security.group_names.push(group.clone()),
        }
    }
    for option in host.security_opt.iter().flatten() {
        let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false")
            | ("label", "disable")
            | ("apparmor", "unconfined")
            | ("seccomp", "builtin") => {}
            ("seccomp", "unconfined") => security.seccomp = Seccomp::Unconfined,
            ("seccomp", profile) => security.seccomp = Seccomp::Profile(profile.to_owned()),
            _ => {
                return Err(ApiError::unsupported(format!(
                    "HostConfig.SecurityOpt \"{option}\" is not supported: seccomp and \
                     no-new-privileges are"
                )));
            }
        }
    }
    Ok(security)
}

fn log(config: Option<&HostConfigLogConfig>) -> ApiResult<Log> {
    let mut log = Log::default();
    let Some(config) = config else { return Ok(log) };
    if let Some(driver) = config.typ.as_ref().filter(|driver| !driver.is_empty()) {
        log.driver.clone_from(driver);
    }
    log.options = sorted(config.config.clone());
    if log.driver == Log::LOCAL || log.driver == Log::JOURNALD {
        (log.max_bytes, log.max_files) = (Some(20 << 20), 5);
    }
    for (key, value) in &log.options {
        let bad = || ApiError::invalid(format!("invalid value for log option {key}: `{value}`"));
        match key.as_str() {
            "max-size" if value == "-1" => log.max_bytes = None,
            "max-size" => {
                log.max_bytes =
                    Some(hyper_engine::bytes(value).filter(|size| *size > 0).ok_or_else(bad)?);
            }
            _ if log.driver == Log::NONE => {
                return Err(ApiError::invalid(format!(
                    "unknown log opt '{key}' for none log driver: it writes nothing"
                )));
            }
            _ if log.driver == Log::JOURNALD && Log::JOURNALD_OPTIONS.contains(&key.as_str()) => {}
            // What is not compressed is not compressed.
            "compress" if value == "false" => {}
            "max-file" => log.max_files = value.parse().map_err(|_| bad())?,
            _ => {
                return Err(ApiError::invalid(format!(
                    "unknown log opt '{key}' for {} log driver: max-size and max-file are known",
                    log.driver
                )));
            }
        }
    }
    if log.max_files == 0 {
        return Err(ApiError::invalid("'max-file' cannot be less than 1"));
    }
    Ok(log)
}

fn ulimit(limit: &ResourcesUlimits) -> Ulimit {
    Ulimit {
        name: limit.name.clone().unwrap_or_default().to_ascii_lowercase(),
        soft: limit.soft.unwrap_or_default(),
        hard: limit.hard.unwrap_or_default(),
    }
}

pub(super) fn sorted(map: Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().collect()
}

#[cfg(test)]
mod test {
    use super::*;

    fn translated(body: &str) -> ApiResult<CreateRequest> {
        let body: ContainerCreateBody = serde_json::from_str(body).unwrap();
        translate(&body, &Query::default()).map(|(request, _)| request)
    }

    #[test]
    fn what_docker_run_sends() {
        let request = translated(
            r#"{"Hostname":"hh","User":"","Tty":true,"OpenStdin":true,"StdinOnce":true,
            "ExposedPorts":{"80/tcp":{}},"Env":["A=b"],"Cmd":["sh"],"Image":"busybox","Volumes":{},
            "Entrypoint":null,"Labels":{"k":"v"},"HostConfig":{"LogConfig":{"Type":"","Config":{}},
            "NetworkMode":"default","AutoRemove":true,"ConsoleSize":[40,120],"Tmpfs":{"/t":""},
            "SecurityOpt":["seccomp=unconfined"],"Memory":67108864,"NanoCpus":500000000,
            "ShmSize":0,"Ulimits":[{"Name":"nofile","Hard":1000,"Soft":1000}],"Runtime":"uml"},
            "NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":null,"Links":null,
            "Aliases":null,"MacAddress":"","DriverOpts":null,"GwPriority":0,"DNSNames":null}}}}"#,
        )
        .unwrap();
        assert_eq!((request.image.as_str(), request.entrypoint), ("busybox", None));
        assert_eq!(request.exposed_ports, ["80/tcp"]);
        let host = request.host;
        assert!(host.tty && host.stdin_once && host.auto_remove);
        assert_eq!((host.console_size, host.runtime.as_str()), ((40, 120), "uml"));
        assert_eq!(host.security.seccomp, Seccomp::Unconfined);
        assert_eq!(host.log, Log::default());
        assert_eq!(host.limits.nano_cpus, 500_000_000);
        assert_eq!(host.ulimits[0].name, "nofile");
    }

    #[test]
    fn log_options() {
        let host = r#"{"HostConfig":{"LogConfig":{"Type":"json-file",
            "Config":{"max-size":"10m","max-file":"3"}}}}"#;
        let log = translated(host).unwrap().host.log;
        assert_eq!((log.max_bytes, log.max_files), (Some(10 << 20), 3));
        let host = r#"{"HostConfig":{"LogConfig":{"Type":"json-file","Config":{"tag":"x"}}}}"#;
        assert!(translated(host).unwrap_err().message.contains("tag"));
    }

    #[test]
    fn mounts_of_tmpfs() {
        let host = r#"{"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/t",
            "TmpfsOptions":{"SizeBytes":4096,"Mode":511}}]}}"#;
        let tmpfs = translated(host).unwrap().host.tmpfs;
        assert_eq!(tmpfs["/t"], "size=4096,mode=777");
    }
}
