//! A container's `config.json`, made fit for a guest.
//!
//! What the host prepared is taken out or carried over: small files are injected, host paths of
//! namespaces dropped, host security profiles dropped (they name what a guest does not have).
//! What cannot be carried over is refused by name; nothing is left out in silence.

use std::path::{Path, PathBuf};

use hyper_hypervisor::Disk;
use hyper_link::message::FileInjection;
use hyper_task::annotation;
use serde_json::{Value, json};

use crate::PodError;
use crate::cpu;
use crate::mounts::{Carried, carry_mounts};
use crate::network::Found;
use crate::share::Shared;
use crate::sockets::HostSocket;
use crate::wishes::Wishes;

/// Longest `config.json` in bytes.
const MAX_SPEC: u64 = 3 << 20;

/// A parsed `config.json`.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// For the agent.
    pub value: Value,
    pub files: Vec<FileInjection>,
    /// Directories and files of the host that the guest sees live.
    pub shared: Vec<Shared>,
    /// Those of the host that the container may connect to.
    pub sockets: Vec<HostSocket>,
    /// Disks mounted in the container: place in `value`'s mounts, and the disk.
    pub disks: Vec<(usize, Disk)>,
    pub wishes: Wishes,
    pub read_only: bool,
    pub hostname: Option<String>,
    pub sysctls: Vec<(String, String)>,
    pub network: Found,
    /// `root.path`, resolved against the bundle.
    pub root: Option<PathBuf>,
    /// Cgroup above the pod's, when the caller made one for it.
    pub cgroup_parent: Option<String>,
    /// It stands for its pod: it holds the guest, and has no root and no process.
    pub sandbox: bool,
}

/// Reads `BUNDLE/config.json`. Blocking.
pub(crate) fn read_spec(id: &str, bundle: &Path, terminal: bool) -> Result<Spec, PodError> {
    let path = bundle.join("config.json");
    let length = std::fs::metadata(&path).map_err(PodError::file("open", &path))?.len();
    if length > MAX_SPEC {
        return Err(PodError::Invalid(format!("`{}` has {length} bytes", path.display())));
    }
    let bytes = std::fs::read(&path).map_err(PodError::file("read", &path))?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| PodError::Invalid(format!("`{}`: {error}", path.display())))?;
    fit(value, id, bundle, terminal)
}

fn fit(mut value: Value, id: &str, bundle: &Path, terminal: bool) -> Result<Spec, PodError> {
    let wishes = Wishes::from_spec(&value)?;
    let root = value["root"]["path"].as_str().map(|path| bundle.join(path));
    let read_only = value["root"]["readonly"].as_bool().unwrap_or(false);
    let hostname = value["hostname"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    let cgroup_parent = cgroup_parent(&value);
    let sandbox = value["annotations"][annotation::CRI_CONTAINER_TYPE] == "sandbox";
    refuse_hooks(&value)?;
    refuse_devices(&value)?;
    refuse_host_network(&value)?;
    cpu::check(&value["linux"]["resources"])?;
    let Carried { files, shared, sockets, disks } = carry_mounts(&mut value, id)?;
    let namespace = fit_namespaces(&mut value);
    show_own_cgroup(&mut value);
    let network = Found::new(namespace, &value);
    let sysctls = take_network_sysctls(&mut value);
    // Indexing a mutable value would put nulls where nothing is.
    if let Some(process) = value.get_mut("process") {
        fit_process(process, terminal);
    }
    if let Some(linux) = value.get_mut("linux").and_then(Value::as_object_mut) {
        linux.remove("mountLabel");
        linux.remove("rootfsPropagation");
        linux.remove("intelRdt");
        linux.remove("cgroupsPath");
    }
    Ok(Spec {
        value,
        files,
        shared,
        sockets,
        disks,
        wishes,
        read_only,
        hostname,
        sysctls,
        network,
        root,
        cgroup_parent,
        sandbox,
    })
}

/// Makes an OCI `process` object fit for a guest.
pub(crate) fn fit_process(process: &mut Value, terminal: bool) {
    if let Some(process) = process.as_object_mut() {
        process.insert("terminal".to_owned(), json!(terminal));
        // Profiles of the host's security modules, which a guest kernel does not have.
        process.remove("apparmorProfile");
        process.remove("selinuxLabel");
    }
}

/// The pod is the network's, and with CRI also the IPC and UTS, namespace: containers join the
/// guest's own. So do those that are to see the processes of others (`shareProcessNamespace`, `kubectl debug
/// --target`): which ones, a path of the host does not tell. Other paths name host objects and go; the
/// namespace becomes a new one. Returns the path of the network namespace.
fn fit_namespaces(value: &mut Value) -> Option<PathBuf> {
    let namespaces = value.pointer_mut("/linux/namespaces")?.as_array_mut()?;
    let network = namespaces
        .iter()
        .find(|namespace| namespace["type"] == "network")
        .and_then(|namespace| namespace["path"].as_str())
        .map(PathBuf::from);
    namespaces.retain_mut(|namespace| {
        let path = namespace.as_object_mut().and_then(|object| object.remove("path"));
        let kind = namespace["type"].as_str().unwrap_or_default();
        kind != "network" && !(path.is_some() && matches!(kind, "ipc" | "pid" | "uts"))
    });
    network
}

/// On hosts with cgroup v1 a mount of cgroups shows a container its own, and there is no namespace of
/// them; in a guest, which has v2, it takes one for that.
fn show_own_cgroup(value: &mut Value) {
    let mounts = value["mounts"].as_array();
    let shown = mounts.into_iter().flatten().any(|mount| mount["type"] == "cgroup");
    let namespaces = value.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
    let Some(namespaces) = namespaces.filter(|_| shown) else { return };
    if !namespaces.iter().any(|namespace| namespace["type"] == "cgroup") {
        namespaces.push(json!({ "type": "cgroup" }));
    }
}

/// `net.*` belongs to the network namespace, which is the guest's.
fn take_network_sysctls(value: &mut Value) -> Vec<(String, String)> {
    let sysctls = value.pointer_mut("/linux/sysctl").and_then(Value::as_object_mut);
    let Some(sysctls) = sysctls else { return Vec::new() };
    let keys: Vec<String> = sysctls.keys().filter(|key| key.starts_with("net.")).cloned().collect();
    keys.into_iter()
        .filter_map(|key| {
            let value = sysctls.remove(&key)?.as_str()?.to_owned();
            Some((key, value))
        })
        .collect()
}

fn refuse_hooks(value: &Value) -> Result<(), PodError> {
    let mut hooks = value["hooks"].as_object().into_iter().flatten();
    match hooks.find(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty())) {
        None => Ok(()),
        Some((name, list)) => Err(PodError::Unsupported(format!(
            "{name} hook `{}`: hooks run beside a container's host process, and a guest has none",
            list[0]["path"].as_str().unwrap_or_default()
        ))),
    }
}

/// A pod of Kubernetes without a network namespace is to have the node's: it would have none.
fn refuse_host_network(value: &Value) -> Result<(), PodError> {
    let mut namespaces = value["linux"]["namespaces"].as_array().into_iter().flatten();
    let annotations = &value["annotations"];
    if annotations.get(annotation::CRI_SANDBOX_NAMESPACE).is_none()
        || namespaces.any(|namespace| namespace["type"] == "network")
    {
        return Ok(());
    }
    Err(PodError::Unsupported(
        "the network of the node (`hostNetwork: true`) cannot be a guest's, which has a kernel and so a \
         network of its own: leave it out, or give the pod another runtime class"
            .to_owned(),
    ))
}

/// Devices every container has, by number: null, zero, full, random, urandom, tty, console, tun,
/// fuse. Others are the host's.
fn refuse_devices(value: &Value) -> Result<(), PodError> {
    for device in value["linux"]["devices"].as_array().into_iter().flatten() {
        let number = (device["major"].as_i64(), device["minor"].as_i64());
        let (Some(major), Some(minor)) = number else { continue };
        let common = device["type"] != "b"
            && (matches!(major, 1 | 5)
                || (major, minor) == (10, 200)
                || (major, minor) == (10, 229));
        if !common {
            return Err(PodError::Unsupported(format!(
                "host device `{}` cannot be given to a guest",
                device["path"].as_str().unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// Kubernetes makes a cgroup for each pod; docker and ctr do not.
fn cgroup_parent(value: &Value) -> Option<String> {
    value["annotations"].get(annotation::CRI_CONTAINER_TYPE)?;
    let path = value["linux"]["cgroupsPath"].as_str()?;
    // systemd's form `slice:prefix:name` names no directory.
    if path.contains(':') {
        return None;
    }
    let parent = Path::new(path).parent()?.to_str()?.trim_matches('/');
    (!parent.is_empty()).then(|| parent.to_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    fn fitted(value: Value) -> Result<Spec, PodError> {
        fit(value, "c", Path::new("/bundle"), true)
    }

    #[test]
    fn host_paths_of_namespaces_do_not_reach_the_guest() {
        let spec = fitted(json!({
            "root": {"path": "rootfs", "readonly": true},
            "process": {"terminal": false, "apparmorProfile": "docker-default"},
            "linux": {
                "sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "5"},
                "namespaces": [
                    {"type": "mount"}, {"type": "network", "path": "/run/netns/x"},
                    {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts"},
                    {"type": "pid", "path": "/proc/7/ns/pid"},
                    {"type": "cgroup", "path": "/proc/7/ns/cgroup"},
                ]
            }
        }))
        .unwrap();
        assert_eq!(spec.network.namespace, Some("/run/netns/x".into()));
        let kept = json!([{"type": "mount"}, {"type": "uts"}, {"type": "cgroup"}]);
        assert_eq!(spec.value["linux"]["namespaces"], kept);
        assert_eq!(spec.value["linux"]["sysctl"], json!({"kernel.msgmax": "5"}));
        assert_eq!(spec.sysctls, [("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
        assert_eq!(spec.value["process"], json!({"terminal": true}));
        assert!(spec.read_only);
        assert_eq!(spec.root, Some("/bundle/rootfs".into()));
    }

    #[test]
    fn nothing_is_added_where_nothing_was() {
        let spec = fitted(json!({"linux": {}, "process": {"args": ["x"]}})).unwrap();
        assert_eq!(spec.value, json!({"linux": {}, "process": {"args": ["x"], "terminal": true}}));
    }

    #[test]
    fn what_a_guest_cannot_have_is_refused_by_name() {
        let hook = json!({"hooks": {"prestart": [{"path": "/usr/bin/cni"}]}});
        assert!(fitted(hook).unwrap_err().to_string().contains("/usr/bin/cni"));
        let device = json!({"linux": {"devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]}});
        assert!(fitted(device).unwrap_err().to_string().contains("/dev/sda"));
        let common = json!({"linux": {"devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}]}});
        fitted(common).unwrap();
    }

    #[test]
    fn only_kubernetes_pods_have_a_cgroup_above() {
        let mut value = json!({"linux": {"cgroupsPath": "/kubepods/pod1/c"}});
        assert_eq!(cgroup_parent(&value), None);
        value["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
        assert_eq!(cgroup_parent(&value), Some("kubepods/pod1".to_owned()));
        value["linux"]["cgroupsPath"] = json!("kubepods.slice:cri:c");
        assert_eq!(cgroup_parent(&value), None);
    }
}
