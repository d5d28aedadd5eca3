//! The OCI `config.json` of a container, after Docker's defaults, for a guest of its own.
//!
//! The document is built as JSON from fixed parts and the container's [`Spec`]; a test reads it
//! back with `oci-spec`, the types that the agent uses. There is no network namespace: the guest's
//! is the pod's. Users are names, and names are in the image: `io.hyper.user` carries what was
//! asked for, and the agent looks it up inside.

mod capabilities;
mod environment;
mod mounts;
mod seccomp;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::container::spec::{Limits, Seccomp, Security, Spec, Ulimit};
use crate::container::throttle;
use crate::volume::Backing;
use crate::{Result, id};

pub(crate) use environment::{check as check_environment, merge as merge_environment};
pub(crate) use mounts::check as check_tmpfs;

/// Annotation with the user as asked for: `name`, `uid`, `name:group`, …
pub(crate) const USER: &str = "io.hyper.user";
/// Key in an exec's `process` object with the same.
pub(crate) const USER_NAME: &str = "user_name";

/// Key in a `process` object with further groups by name.
pub(crate) const GROUP_NAMES: &str = "group_names";
/// Ours, of an exec's `process`: it is to be outside of the container.
const IN_GUEST: &str = "in_guest";
/// Annotation: the agent's own program is the first process and runs the container's.
pub(crate) const INIT: &str = "io.hyper.init";

/// What the document needs beside the container's spec.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// Hypervisor or `auto`.
    pub hypervisor: String,
    /// It joins a pod that was made as such: as Kubernetes, hostname and IPC are the pod's.
    pub shares_pod: bool,
    /// Files of the host that appear in the container: host path, container path.
    pub files: Vec<(PathBuf, &'static str)>,
    /// Files and directories that were made for the container.
    pub given: Vec<crate::container::secrets::Placed>,
    /// What the volumes that the container mounts are.
    pub volumes: BTreeMap<String, Backing>,
    /// The container has never run: empty volumes take what the image has.
    pub first: bool,
    /// The pod's network namespace on the host.
    pub namespace: Option<PathBuf>,
    /// What the pod's resolver knows.
    pub names: Option<PathBuf>,
    /// The weakest wall that is allowed.
    pub least: Option<String>,
}

/// What an exec asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Empty: the container's.
    pub user: String,
    /// Empty: the container's.
    pub working_dir: String,
    pub tty: bool,
    pub privileged: bool,
    /// Outside of the container, in the guest itself, with the container's programs.
    pub in_guest: bool,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    /// Rows, columns; 0: unknown.
    pub console_size: (u16, u16),
}

/// The hostname of a container.
#[must_use]
pub fn hostname(spec: &Spec) -> &str {
    if spec.host.hostname.is_empty() { id::short(&spec.id) } else { &spec.host.hostname }
}

/// The whole document.
pub(crate) fn document(spec: &Spec, surroundings: &Surroundings) -> Result<Value> {
    let security = &spec.host.security;
    let caps = capabilities::resolve(security.privileged, &security.cap_add, &security.cap_drop)?;
    let mut resources = resources(&spec.host.limits, security.privileged);
    let block_io = throttle::block_io(&spec.host.throttles);
    if !block_io.is_null() {
        resources["blockIO"] = block_io;
    }
    let mut linux = json!({
        "namespaces": (["mount", "uts", "ipc", "pid", "cgroup"])
            .map(|kind| json!({ "type": kind })),
        "cgroupsPath": format!("/hyper/{}", spec.id),
        "resources": resources,
        "maskedPaths": masked(security),
        "readonlyPaths": read_only(security),
        "sysctl": spec.host.sysctls,
    });
    if let (Some(path), Some(namespaces)) =
        (&surroundings.namespace, linux["namespaces"].as_array_mut())
    {
        namespaces.push(json!({ "type": "network", "path": path }));
    }
    if surroundings.shares_pod {
        share_with_pod(&mut linux);
    }
    if let Some(filter) = filter(security, &caps)? {
        linux["seccomp"] = filter;
    }
    let mut document = json!({
        "ociVersion": "1.0.2",
        "process": process(spec, &caps),
        "root": { "path": "rootfs", "readonly": security.read_only_root },
        "hostname": hostname(spec),
        "mounts": mounts::list(spec, surroundings)?,
        "annotations": annotations(spec, surroundings),
        "linux": linux,
    });
    if !spec.host.domainname.is_empty() {
        document["domainname"] = json!(spec.host.domainname);
    }
    Ok(document)
}

/// A path says "not a new one"; which one is the supervisor's to know: the guest's own.
fn share_with_pod(linux: &mut Value) {
    for namespace in linux["namespaces"].as_array_mut().into_iter().flatten() {
        if namespace["type"] == "ipc" || namespace["type"] == "uts" {
            namespace["path"] = json!("/proc/1/ns/pod");
        }
    }
}

/// The OCI `process` object of an exec.
pub(crate) fn exec_process(spec: &Spec, exec: &ExecSpec) -> Result<Value> {
    if exec.in_guest {
        return guest_process(spec, exec);
    }
    let security = &spec.host.security;
    let privileged = exec.privileged || security.privileged;
    let caps = capabilities::resolve(privileged, &security.cap_add, &security.cap_drop)?;
    let env = environment::process(spec, exec.tty, &exec.env);
    let cwd = if exec.working_dir.is_empty() { cwd(spec) } else { &exec.working_dir };
    let mut process = skeleton(&exec.args, &env, cwd, &caps);
    process["terminal"] = json!(exec.tty);
    process["noNewPrivileges"] = json!(security.no_new_privileges);
    limited(&mut process, spec);
    console_size(&mut process, exec.tty, exec.console_size);
    let user = if exec.user.is_empty() { &spec.user } else { &exec.user };
    if !user.is_empty() {
        process[USER_NAME] = json!(user);
    }
    process["user"] = user_object(user, &security.groups);
    if !security.group_names.is_empty() {
        process[GROUP_NAMES] = json!(security.group_names);
    }
    Ok(process)
}

/// The `process` object of an exec outside of the container: root of the guest, if it does not say
/// otherwise, with all that root may do there.
fn guest_process(spec: &Spec, exec: &ExecSpec) -> Result<Value> {
    let caps = capabilities::resolve(true, &[], &[])?;
    let env = environment::process(spec, exec.tty, &exec.env);
    let cwd = if exec.working_dir.is_empty() { "/" } else { &exec.working_dir };
    let mut process = skeleton(&exec.args, &env, cwd, &caps);
    process["terminal"] = json!(exec.tty);
    process[IN_GUEST] = json!(true);
    console_size(&mut process, exec.tty, exec.console_size);
    if !exec.user.is_empty() {
        process[USER_NAME] = json!(exec.user);
    }
    process["user"] = user_object(&exec.user, &[]);
    Ok(process)
}

/// The OCI `linux.resources` object.
pub(crate) fn resources(limits: &Limits, privileged: bool) -> Value {
    let mut memory = json!({});
    let mut set = |key: &str, bytes: i64| {
        if bytes != 0 {
            memory[key] = json!(bytes);
        }
    };
    set("limit", limits.memory_bytes);
    set("reservation", limits.memory_reservation_bytes);
    // As Docker: as much swap as memory when only the memory is limited.
    let swap = match (limits.memory_swap_bytes, limits.memory_bytes) {
        (0, memory) if memory > 0 => memory.saturating_mul(2),
        (swap, _) => swap,
    };
    set("swap", swap);
    let mut cpu = json!({});
    if limits.cpu_shares > 0 {
        cpu["shares"] = json!(limits.cpu_shares);
    }
    let (period, quota) = cpu_bandwidth(limits);
    if period > 0 {
        cpu["period"] = json!(period);
    }
    if quota != 0 {
        cpu["quota"] = json!(quota);
    }
    if !limits.cpuset_cpus.is_empty() {
        cpu["cpus"] = json!(limits.cpuset_cpus);
    }
    let mut resources = json!({ "devices": devices(privileged) });
    for (key, value) in [("memory", memory), ("cpu", cpu)] {
        if value.as_object().is_some_and(|fields| !fields.is_empty()) {
            resources[key] = value;
        }
    }
    if limits.pids > 0 {
        resources["pids"] = json!({ "limit": limits.pids });
    }
    resources
}

const CPU_PERIOD_US: i64 = 100_000;

fn cpu_bandwidth(limits: &Limits) -> (i64, i64) {
    if limits.nano_cpus > 0 {
        let quota = i128::from(limits.nano_cpus) * i128::from(CPU_PERIOD_US) / 1_000_000_000;
        return (CPU_PERIOD_US, i64::try_from(quota).unwrap_or(i64::MAX));
    }
    (limits.cpu_period_us, limits.cpu_quota_us)
}

fn process(spec: &Spec, caps: &BTreeSet<&'static str>) -> Value {
    let env = environment::process(spec, spec.host.tty, &[]);
    let mut process = skeleton(&spec.args(), &env, cwd(spec), caps);
    process["terminal"] = json!(spec.host.tty);
    process["noNewPrivileges"] = json!(spec.host.security.no_new_privileges);
    process["user"] = user_object(&spec.user, &spec.host.security.groups);
    if !spec.host.security.group_names.is_empty() {
        process[GROUP_NAMES] = json!(spec.host.security.group_names);
    }
    console_size(&mut process, spec.host.tty, spec.host.console_size);
    limited(&mut process, spec);
    process
}

/// Limits that every process of the container has, those of an exec, too.
fn limited(process: &mut Value, spec: &Spec) {
    if spec.host.oom_score_adj != 0 {
        process["oomScoreAdj"] = json!(spec.host.oom_score_adj);
    }
    let limit = |limit: &Ulimit| {
        json!({
            "type": format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
            "soft": unlimited(limit.soft),
            "hard": unlimited(limit.hard),
        })
    };
    let limits: Vec<Value> = spec.host.ulimits.iter().map(limit).collect();
    if !limits.is_empty() {
        process["rlimits"] = Value::Array(limits);
    }
}

/// `RLIM_INFINITY` for what is negative.
fn unlimited(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(u64::MAX)
}

fn skeleton(args: &[String], env: &[String], cwd: &str, caps: &BTreeSet<&'static str>) -> Value {
    json!({
        "args": args,
        "env": env,
        "cwd": cwd,
        // For other users than root, execve(2) empties all but the bounding set.
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
    })
}

fn user_object(user: &str, groups: &[u32]) -> Value {
    // Numeric users are complete here, but for their groups in /etc/group.
    let mut parts = user.splitn(2, ':');
    let number = |part: Option<&str>| part.and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let (uid, gid) = (number(parts.next()), number(parts.next()));
    json!({ "uid": uid, "gid": gid, "additionalGids": groups })
}

fn console_size(process: &mut Value, tty: bool, (height, width): (u16, u16)) {
    if tty && height > 0 && width > 0 {
        process["consoleSize"] = json!({ "height": height, "width": width });
    }
}

fn cwd(spec: &Spec) -> &str {
    if spec.working_dir.is_empty() { "/" } else { &spec.working_dir }
}

fn annotations(spec: &Spec, surroundings: &Surroundings) -> Value {
    use hyper_task::annotation;
    let mut all = json!(spec.host.annotations);
    // Which pod it is in is not said by an annotation of the user's.
    if let Some(all) = all.as_object_mut() {
        all.remove(annotation::CRI_CONTAINER_TYPE);
        all.remove(annotation::CRI_SANDBOX_ID);
    }
    if let (Some(least), Some(all)) = (&surroundings.least, all.as_object_mut()) {
        all.insert(annotation::MIN_ISOLATION.to_owned(), json!(least));
    }
    let mut set = |key: &str, value: String| {
        if all.get(key).is_none() {
            all[key] = json!(value);
        }
    };
    if !spec.host.pod.is_empty() {
        set(annotation::CRI_CONTAINER_TYPE, "container".to_owned());
        set(annotation::CRI_SANDBOX_ID, spec.host.pod.clone());
    }
    set(annotation::HYPERVISOR, surroundings.hypervisor.clone());
    if surroundings.namespace.is_some() {
        set(annotation::NETWORK_STRICT, "true".to_owned());
        set(annotation::NETWORK_REMOVED, "true".to_owned());
    }
    if let Some(path) = &surroundings.names {
        set(annotation::NAMES, path.display().to_string());
    }
    if !spec.user.is_empty() {
        set(USER, spec.user.clone());
    }
    if spec.host.init {
        set(INIT, "true".to_owned());
    }
    all
}

fn filter(security: &Security, caps: &BTreeSet<&'static str>) -> Result<Option<Value>> {
    if security.privileged {
        return Ok(None);
    }
    match &security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default => seccomp::default_filter(caps).map(Some),
        Seccomp::Profile(text) => seccomp::resolve(text, caps).map(Some),
    }
}

/// Paths that Docker hides.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that Docker makes read-only.
pub const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn masked(security: &Security) -> Vec<String> {
    listed(security, security.masked_paths.as_ref(), &MASKED)
}

fn read_only(security: &Security) -> Vec<String> {
    listed(security, security.readonly_paths.as_ref(), &READ_ONLY)
}

fn listed(security: &Security, given: Option<&Vec<String>>, default: &[&str]) -> Vec<String> {
    match given {
        Some(paths) => paths.clone(),
        None if security.privileged => Vec::new(),
        None => default.iter().map(|path| (*path).to_owned()).collect(),
    }
}

/// Docker's device rules: the disks of the guest are none of the container's business.
fn devices(privileged: bool) -> Value {
    if privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let node = |major: i64, minor: Option<i64>| {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "access": "m" },
        { "allow": true, "type": "b", "access": "m" },
        node(1, Some(3)),
        node(1, Some(5)),
        node(1, Some(7)),
        node(1, Some(8)),
        node(1, Some(9)),
        node(5, Some(0)),
        node(5, Some(1)),
        node(5, Some(2)),
        node(136, None),
    ])
}

/// Checks what [`document`] could fail on, so that `create` and not `start` reports it.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    document(spec, &Surroundings::default()).map(drop)
}

#[cfg(test)]
#[path = "oci/tests.rs"]
mod test;
