//! From a manifest to requests.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::environment::Variable;
use super::{
    Container, Pod, Port, Quantity, Resources, SeccompProfile, Security, Volume, VolumeMount,
    environment, expand, files, probe,
};
use crate::document::Documents;
use crate::plan::{ContainerPlan, Plan, Pull, VolumePlan};
use crate::{FieldResult, ManifestError, quantity, wrong};

/// Annotation of a pod that chooses its hypervisor.
const RUNTIME: &str = "io.hyper.runtime";
/// Kubernetes' default grace in seconds.
const GRACE: i64 = 30;

pub(crate) fn plan(place: &str, pod: &Pod, beside: &Documents) -> Result<Plan, ManifestError> {
    translate(pod, beside).map_err(|(field, why)| ManifestError::Field {
        place: format!("{place}: pod `{}`", pod.metadata.name),
        field,
        why,
    })
}

fn translate(pod: &Pod, beside: &Documents) -> FieldResult<Plan> {
    refuse(pod)?;
    let (name, spec) = (&pod.metadata.name, &pod.spec);
    let volumes = volumes(name, &spec.volumes, beside)?;
    let shared = Shared { pod, beside, volumes: &volumes };
    let mut containers = Vec::new();
    for (list, word, init) in
        [(&spec.init_containers, "initContainers", true), (&spec.containers, "containers", false)]
    {
        for (at, container) in list.iter().enumerate() {
            let made = shared.container(container, init);
            containers.push(made.map_err(|(field, why)| {
                (format!("spec.{word}[{at}] `{}`: {field}", container.name), why)
            })?);
        }
    }
    let mut names: Vec<_> = containers.iter().map(|container| &container.name).collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return wrong("spec.containers", format!("two containers are called `{}`", twice[0]));
    }
    let labels = labels(pod);
    let security = spec.security_context.as_ref();
    let sysctls: BTreeMap<_, _> = security
        .into_iter()
        .flat_map(|security| &security.sysctls)
        .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
        .collect();
    let runtime = pod.metadata.annotations.get(RUNTIME).or(spec.runtime_class_name.as_ref());
    let body = json!({
        "name": name,
        "hostname": spec.hostname,
        "labels": labels,
        "runtime": runtime,
        "sysctls": sysctls,
        "vcpus": vcpus(&spec.containers)?,
        "memory_bytes": memory(&spec.containers)?,
        "network_rate": bandwidth(&pod.metadata.annotations)?,
    });
    let own = volumes.values().filter_map(|source| match source {
        Source::Own(volume) => Some(volume.clone()),
        _ => None,
    });
    let own = own.collect();
    Ok(Plan { name: name.clone(), pod: body, containers, volumes: own })
}

fn refuse(pod: &Pod) -> FieldResult<()> {
    let spec = &pod.spec;
    if pod.api_version != "v1" {
        return wrong("apiVersion", format!("`{}` is not v1", pod.api_version));
    }
    for (field, asked) in
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
    {
        if asked {
            return wrong(format!("spec.{field}"), "a pod has a kernel of its own, not the host's");
        }
    }
    if spec.automount_service_account_token == Some(true) {
        return wrong("spec.automountServiceAccountToken", "there is no service account here");
    }
    if spec.enable_service_links == Some(true) {
        return wrong("spec.enableServiceLinks", "there are no services here");
    }
    match spec.dns_policy.as_deref() {
        None | Some("Default" | "ClusterFirst") => {}
        Some("None") if spec.dns_config.as_ref().is_some_and(|dns| !dns.nameservers.is_empty()) => {
        }
        Some("None") => return wrong("spec.dnsPolicy", "`None` wants dnsConfig.nameservers"),
        Some(other) => return wrong("spec.dnsPolicy", format!("`{other}` is not known")),
    }
    match spec.containers.is_empty() {
        true => wrong("spec.containers", "a pod has one container or more"),
        false => Ok(()),
    }
}

fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone();
    labels.extend(pod.metadata.annotations.clone());
    if let Some(namespace) = &pod.metadata.namespace {
        labels.insert("io.kubernetes.pod.namespace".to_owned(), namespace.clone());
    }
    labels
}

/// Kubernetes' annotations for what a pod may receive and send, in bits per second.
fn bandwidth(annotations: &BTreeMap<String, String>) -> FieldResult<Option<String>> {
    let mut ways = Vec::new();
    for (key, way) in
        [("kubernetes.io/ingress-bandwidth", "in"), ("kubernetes.io/egress-bandwidth", "out")]
    {
        let Some(text) = annotations.get(key) else { continue };
        match quantity::bytes(text).filter(|bits| *bits > 0) {
            Some(bits) => ways.push(format!("{way}={bits}")),
            None => {
                return wrong(
                    format!("metadata.annotations.{key}"),
                    format!("`{text}` is no rate"),
                );
            }
        }
    }
    Ok((!ways.is_empty()).then(|| ways.join(",")))
}

/// What the guest needs when every container has a limit; else the daemon's default decides.
fn memory(containers: &[Container]) -> FieldResult<Option<i64>> {
    /// Guest kernel and agent, with room for the page cache.
    const OVERHEAD: i64 = 48 << 20;
    let mut sum = OVERHEAD;
    for container in containers {
        match size(&container.resources, "limits", "memory")? {
            Some(bytes) => sum = sum.saturating_add(bytes),
            None => return Ok(None),
        }
    }
    Ok(Some(sum))
}

fn vcpus(containers: &[Container]) -> FieldResult<Option<i64>> {
    let mut sum: i64 = 0;
    for container in containers {
        match size(&container.resources, "limits", "cpu")? {
            Some(nanos) => sum = sum.saturating_add(nanos),
            None => return Ok(None),
        }
    }
    Ok((sum > 0).then(|| (sum - 1) / 1_000_000_000 + 1))
}

fn size(resources: &Resources, list: &str, what: &str) -> FieldResult<Option<i64>> {
    let map = if list == "limits" { &resources.limits } else { &resources.requests };
    if let Some(key) = map.keys().find(|key| !matches!(key.as_str(), "cpu" | "memory")) {
        return wrong(format!("resources.{list}.{key}"), "only cpu and memory can be had");
    }
    let Some(quantity) = map.get(what) else { return Ok(None) };
    let text = quantity.text();
    let parsed = if what == "cpu" { quantity::nano_cpus(&text) } else { quantity::bytes(&text) };
    match parsed {
        Some(value) => Ok(Some(value)),
        None => wrong(format!("resources.{list}.{what}"), format!("`{text}` is no quantity")),
    }
}

/// What a volume is made of.
enum Source {
    /// A host path, and whether it is made where it is missing.
    Bind(String, bool),
    /// It goes with the pod.
    Own(VolumePlan),
    Files(Vec<files::VolumeFile>),
}

/// As Kubernetes: programs may be run from it, half of the memory where there is no limit.
fn memory_options(limit: Option<&Quantity>) -> Result<BTreeMap<String, String>, String> {
    let mut options = "exec,mode=1777".to_owned();
    if let Some(text) = limit.map(Quantity::text) {
        let bytes = quantity::bytes(&text).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| format!("`{text}` is no size"))?;
        options.push_str(&format!(",size={bytes}"));
    }
    let all = [("type", "tmpfs"), ("device", "tmpfs"), ("o", &options)];
    Ok(all.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
}

/// Name → source.
fn volumes(
    pod: &str,
    list: &[Volume],
    beside: &Documents,
) -> FieldResult<BTreeMap<String, Source>> {
    let mut volumes = BTreeMap::new();
    for volume in list {
        let field = format!("spec.volumes `{}`", volume.name);
        let given = [
            volume.empty_dir.is_some(),
            volume.host_path.is_some(),
            volume.config_map.is_some(),
            volume.secret.is_some(),
            volume.projected.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() != 1 {
            let why = "exactly one of emptyDir, hostPath, configMap, secret, projected is wanted";
            return wrong(field, why);
        }
        let from_documents = files::volume(volume, beside)
            .map_err(|(below, why)| (format!("{field}.{below}"), why))?;
        let source = match (&volume.empty_dir, &volume.host_path) {
            (Some(empty), None) => {
                let (name, below) = (format!("{pod}-{}", volume.name), format!("{field}.emptyDir"));
                match (empty.medium.as_deref(), &empty.size_limit) {
                    (None | Some(""), None) => {
                        Source::Own(VolumePlan { name, ..VolumePlan::default() })
                    }
                    (None | Some(""), Some(_)) => {
                        let why = "a directory of the host cannot be held to it: with `medium: \
                                   Memory` it can";
                        return wrong(format!("{below}.sizeLimit"), why);
                    }
                    (Some("Memory"), limit) => {
                        let options = memory_options(limit.as_ref())
                            .map_err(|why| (format!("{below}.sizeLimit"), why))?;
                        Source::Own(VolumePlan { name, options })
                    }
                    (Some(other), _) => {
                        let why = format!("`{other}` is not Memory");
                        return wrong(format!("{below}.medium"), why);
                    }
                }
            }
            (None, Some(host)) if !host.path.starts_with('/') || host.path.contains(':') => {
                let why = format!("`{}` is no absolute path without `:`", host.path);
                return wrong(format!("{field}.hostPath.path"), why);
            }
            (None, Some(host)) => match host.kind.as_deref() {
                None | Some("" | "DirectoryOrCreate") => Source::Bind(host.path.clone(), true),
                Some("Directory" | "File" | "Socket") => Source::Bind(host.path.clone(), false),
                Some(other) => {
                    return wrong(
                        format!("{field}.hostPath.type"),
                        format!("`{other}` cannot be had"),
                    );
                }
            },
            _ => Source::Files(from_documents.unwrap_or_default()),
        };
        if volumes.insert(volume.name.clone(), source).is_some() {
            return wrong(field, "two volumes have this name");
        }
    }
    Ok(volumes)
}

/// What all containers of a pod are translated with.
struct Shared<'a> {
    pod: &'a Pod,
    beside: &'a Documents,
    volumes: &'a BTreeMap<String, Source>,
}

impl Shared<'_> {
    fn container(&self, container: &Container, init: bool) -> FieldResult<ContainerPlan> {
        if container.name.is_empty() {
            return wrong("name", "it is missing");
        }
        if container.image.is_empty() {
            return wrong("image", "it is missing");
        }
        let pull = match container.image_pull_policy.as_deref() {
            None | Some("IfNotPresent") => Pull::Missing,
            Some("Always") => Pull::Always,
            Some("Never") => Pull::Never,
            Some(other) => {
                let why = format!("`{other}` is none of Always, IfNotPresent, Never");
                return wrong("imagePullPolicy", why);
            }
        };
        let (exposed, bindings) = ports(&container.ports)?;
        let variables = environment::all(self.pod, self.beside, container)?;
        let mut host = self.host_config(container, init)?;
        host["PortBindings"] = bindings;
        let secret: Vec<Value> = variables.iter().filter_map(Variable::secret_json).collect();
        if !secret.is_empty() {
            host["HyperSecretEnv"] = secret.into();
        }
        let words = |field: &str, words: &[String]| expand::words(field, words, &variables);
        let list = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
        let mut body = json!({
            "Image": container.image,
            "Entrypoint": list(&words("command", &container.command)?),
            "Cmd": list(&words("args", &container.args)?),
            "WorkingDir": container.working_dir.as_deref().unwrap_or(""),
            "Env": variables.iter().filter_map(Variable::plain).collect::<Vec<_>>(),
            "Labels": {
                "io.kubernetes.container.name": container.name,
                "io.kubernetes.pod.name": self.pod.metadata.name,
            },
            "Tty": container.tty,
            "OpenStdin": container.stdin,
            "StdinOnce": container.stdin_once,
            "User": self.user(container)?,
            "ExposedPorts": exposed,
            "StopTimeout": self.pod.spec.termination_grace_period_seconds.unwrap_or(GRACE),
            "HostConfig": host,
        });
        if init && (container.liveness_probe.is_some() || container.readiness_probe.is_some()) {
            return wrong("livenessProbe", "an init container has no probes");
        }
        if let Some((check, restarts)) = probe::health(container)? {
            body["Healthcheck"] = check;
            if restarts {
                body["HostConfig"]["Annotations"]["io.hyper.unhealthy"] = json!("restart");
            }
        }
        let name = format!("{}-{}", self.pod.metadata.name, container.name);
        Ok(ContainerPlan { name, image: container.image.clone(), pull, body })
    }

    fn host_config(&self, container: &Container, init: bool) -> FieldResult<Value> {
        let spec = &self.pod.spec;
        let restart = match (spec.restart_policy.as_deref(), init) {
            // An init container that fails is tried again by whoever starts the pod again.
            (_, true) | (Some("Never"), _) => "no",
            (None | Some("Always"), _) => "always",
            (Some("OnFailure"), _) => "on-failure",
            (Some(other), _) => {
                let why =
                    format!("`{other}` is none of Always, OnFailure, Never (spec.restartPolicy)");
                return wrong("restartPolicy", why);
            }
        };
        let resources = &container.resources;
        let mut annotations = json!({ "io.hyper.pod": self.pod.metadata.name });
        if init {
            annotations["io.hyper.pod-init"] = json!("true");
        }
        let aliases = spec
            .host_aliases
            .iter()
            .flat_map(|alias| alias.hostnames.iter().map(|name| format!("{name}:{}", alias.ip)));
        let dns = spec.dns_config.as_ref();
        let options =
            dns.into_iter().flat_map(|dns| &dns.options).map(|option| match &option.value {
                Some(value) => format!("{}:{value}", option.name),
                None => option.name.clone(),
            });
        let security = &container.security_context;
        let (binds, present, files) = self.binds(&container.volume_mounts)?;
        let mut host = json!({
            "Annotations": annotations,
            "RestartPolicy": { "Name": restart },
            "ExtraHosts": aliases.collect::<Vec<_>>(),
            "Dns": dns.map(|dns| &dns.nameservers),
            "DnsSearch": dns.map(|dns| &dns.searches),
            "DnsOptions": options.collect::<Vec<_>>(),
            "Binds": binds,
            "Mounts": present,
            "Privileged": security.privileged,
            "ReadonlyRootfs": security.read_only_root_filesystem,
            "CapAdd": security.capabilities.add,
            "CapDrop": security.capabilities.drop,
            "SecurityOpt": self.security_options(security)?,
            "GroupAdd": self.groups(),
        });
        if !files.is_empty() {
            host["HyperFiles"] = files.into();
        }
        for (list, what, key) in [
            ("limits", "cpu", "NanoCpus"),
            ("limits", "memory", "Memory"),
            ("requests", "memory", "MemoryReservation"),
        ] {
            if let Some(value) = size(resources, list, what)? {
                host[key] = json!(value);
            }
        }
        if let Some(nanos) = size(resources, "requests", "cpu")? {
            // Kubernetes' own: 1024 shares are a CPU.
            host["CpuShares"] = json!((nanos.saturating_mul(1024) / 1_000_000_000).max(2));
        }
        Ok(host)
    }

    fn groups(&self) -> Vec<String> {
        let groups = self.pod.spec.security_context.iter();
        groups.flat_map(|security| &security.supplemental_groups).map(u32::to_string).collect()
    }

    fn user(&self, container: &Container) -> FieldResult<String> {
        let (own, pods) = (&container.security_context, self.pod.spec.security_context.as_ref());
        let user = own.run_as_user.or(pods.and_then(|pods| pods.run_as_user));
        let group = own.run_as_group.or(pods.and_then(|pods| pods.run_as_group));
        let not_root = own.run_as_non_root.or(pods.and_then(|pods| pods.run_as_non_root));
        if not_root == Some(true) && matches!(user, None | Some(0)) {
            let why = "runAsUser, and not 0, is wanted with it: an image's user is a name";
            return wrong("securityContext.runAsNonRoot", why);
        }
        match (user, group) {
            (Some(user), Some(group)) => Ok(format!("{user}:{group}")),
            (Some(user), None) => Ok(user.to_string()),
            (None, None) => Ok(String::new()),
            (None, Some(_)) => wrong("securityContext.runAsGroup", "runAsUser is wanted with it"),
        }
    }

    fn security_options(&self, security: &Security) -> FieldResult<Vec<String>> {
        let mut options = Vec::new();
        if security.allow_privilege_escalation == Some(false) {
            options.push("no-new-privileges".to_owned());
        }
        let pods = self.pod.spec.security_context.as_ref();
        let profile: Option<&SeccompProfile> = security
            .seccomp_profile
            .as_ref()
            .or(pods.and_then(|pods| pods.seccomp_profile.as_ref()));
        match profile.map(|profile| profile.kind.as_str()) {
            None | Some("RuntimeDefault") => {}
            Some("Unconfined") => options.push("seccomp=unconfined".to_owned()),
            Some(other) => {
                let why = format!("`{other}` is neither RuntimeDefault nor Unconfined");
                return wrong("securityContext.seccompProfile.type", why);
            }
        }
        Ok(options)
    }

    /// `Binds`, whose sources are made where they are missing, `Mounts`, whose must be there, and
    /// `HyperFiles`.
    fn binds(&self, mounts: &[VolumeMount]) -> FieldResult<(Vec<String>, Vec<Value>, Vec<Value>)> {
        let (mut binds, mut present, mut given) = (Vec::new(), Vec::new(), Vec::new());
        for mount in mounts {
            let field = format!("volumeMounts `{}`", mount.name);
            let Some(volume) = self.volumes.get(&mount.name) else {
                return wrong(field, "no volume has this name");
            };
            if !mount.mount_path.starts_with('/') || mount.mount_path.contains(':') {
                let why = format!("`{}` is no absolute path", mount.mount_path);
                return wrong(format!("{field}.mountPath"), why);
            }
            let (source, made) = match volume {
                Source::Bind(source, made) => (source, made),
                Source::Own(volume) => (&volume.name, &true),
                Source::Files(files) => {
                    let one = files::mounted(mount, files);
                    given.push(one.map_err(|(below, why)| (format!("{field}.{below}"), why))?);
                    continue;
                }
            };
            let source = match &mount.sub_path {
                None => source.clone(),
                Some(sub)
                    if source.starts_with('/') && !sub.split('/').any(|part| part == "..") =>
                {
                    format!("{source}/{sub}")
                }
                Some(sub) => {
                    let why =
                        format!("`{sub}` cannot be had: only inside of a hostPath, without `..`");
                    return wrong(format!("{field}.subPath"), why);
                }
            };
            if *made {
                let suffix = if mount.read_only { ":ro" } else { "" };
                binds.push(format!("{source}:{}{suffix}", mount.mount_path));
            } else {
                present.push(json!({
                    "Type": "bind", "Source": source, "Target": mount.mount_path,
                    "ReadOnly": mount.read_only,
                }));
            }
        }
        Ok((binds, present, given))
    }
}

fn ports(list: &[Port]) -> FieldResult<(Value, Value)> {
    let (mut exposed, mut bindings) = (Map::new(), Map::new());
    for port in list {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => "tcp",
            Some("UDP") => "udp",
            Some("SCTP") => "sctp",
            Some(other) => {
                return wrong("ports.protocol", format!("`{other}` is none of TCP, UDP, SCTP"));
            }
        };
        if port.container_port == 0 || port.host_port == Some(0) {
            return wrong("ports", "a port is 1 to 65535");
        }
        let key = format!("{}/{protocol}", port.container_port);
        exposed.insert(key.clone(), json!({}));
        if let Some(number) = port.host_port {
            let binding = json!({ "HostIp": port.host_ip.as_deref().unwrap_or(""), "HostPort": number.to_string() });
            let list = bindings.entry(key).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(binding);
            }
        }
    }
    Ok((exposed.into(), bindings.into()))
}
