//! Kubernetes' `v1/Pod`, as far as a pod on one host has it.
//!
//! Source: kubernetes.io, API reference "Pod v1 core". The fields here are those that are honoured,
//! and those that are refused with a reason; every other field is unknown, and an error.

mod environment;
mod expand;
mod files;
mod probe;
mod translate;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use translate::plan;

/// A pod.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pod {
    /// `v1`
    pub api_version: String,
    /// `Pod`
    #[serde(rename = "kind")]
    _kind: String,
    pub metadata: Metadata,
    pub spec: PodSpec,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    pub name: String,
    /// Kept as the label `io.kubernetes.pod.namespace`.
    #[serde(default)]
    pub namespace: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `io.hyper.runtime` chooses the hypervisor; the others are kept as labels.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodSpec {
    pub containers: Vec<Container>,
    /// Run one after the other, each to its end, before the others start.
    pub init_containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    /// `Always` (as Kubernetes), `OnFailure` or `Never`
    pub restart_policy: Option<String>,
    pub termination_grace_period_seconds: Option<i64>,
    pub hostname: Option<String>,
    pub host_aliases: Vec<HostAlias>,
    pub dns_config: Option<DnsConfig>,
    /// `Default`, `ClusterFirst` (the host's resolvers, there being no cluster) or `None`
    pub dns_policy: Option<String>,
    pub security_context: Option<PodSecurity>,
    /// Name of a hypervisor, or `auto`.
    pub runtime_class_name: Option<String>,
    /// Refused: a pod has a kernel, and so a network, of its own.
    pub host_network: bool,
    /// Refused: see `hostNetwork`.
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    /// Refused: see `hostNetwork`.
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    /// No service account is there to mount; `false` is accepted.
    pub automount_service_account_token: Option<bool>,
    /// No services are there to be told of; `false` is accepted.
    pub enable_service_links: Option<bool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`
    pub image_pull_policy: Option<String>,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<EnvVar>,
    pub env_from: Vec<EnvFrom>,
    pub ports: Vec<Port>,
    pub resources: Resources,
    pub volume_mounts: Vec<VolumeMount>,
    pub liveness_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    pub startup_probe: Option<Probe>,
    pub security_context: Security,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvVar {
    pub name: String,
    #[serde(default)]
    pub value: String,
    #[serde(default)]
    pub value_from: Option<ValueFrom>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ValueFrom {
    #[serde(default)]
    pub config_map_key_ref: Option<KeyRef>,
    #[serde(default)]
    pub secret_key_ref: Option<KeyRef>,
    #[serde(default)]
    pub field_ref: Option<FieldRef>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyRef {
    pub name: String,
    pub key: String,
    #[serde(default)]
    pub optional: bool,
}

/// `metadata.name`, `metadata.namespace`, `metadata.labels['KEY']`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FieldRef {
    pub field_path: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvFrom {
    #[serde(default)]
    pub prefix: String,
    #[serde(default)]
    pub config_map_ref: Option<NameRef>,
    #[serde(default)]
    pub secret_ref: Option<NameRef>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NameRef {
    pub name: String,
    #[serde(default)]
    pub optional: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Port {
    #[serde(default)]
    pub name: Option<String>,
    pub container_port: u16,
    /// Published on the host; without it the port is only told.
    #[serde(default)]
    pub host_port: Option<u16>,
    #[serde(rename = "hostIP", default)]
    pub host_ip: Option<String>,
    /// `TCP`, `UDP` or `SCTP`
    #[serde(default)]
    pub protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Resources {
    /// `cpu` and `memory`
    pub limits: BTreeMap<String, Quantity>,
    /// `cpu` and `memory`
    pub requests: BTreeMap<String, Quantity>,
}

/// `500m`, `2`, `128Mi`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Quantity {
    Text(String),
    Number(f64),
}

impl Quantity {
    /// As it was written, or could have been.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
    /// A path inside of the volume.
    #[serde(default)]
    pub sub_path: Option<String>,
}

/// Exactly one of the sources.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    #[serde(default)]
    pub empty_dir: Option<EmptyDir>,
    #[serde(default)]
    pub host_path: Option<HostPath>,
    #[serde(default)]
    pub config_map: Option<ConfigMapVolume>,
    #[serde(default)]
    pub secret: Option<SecretVolume>,
    #[serde(default)]
    pub projected: Option<Projected>,
}

/// Files from a `ConfigMap` of the manifest, read-only.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ConfigMapVolume {
    pub name: String,
    /// Only these keys; none: all.
    pub items: Vec<KeyToPath>,
    /// Default: 0644
    pub default_mode: Option<FileMode>,
    pub optional: bool,
}

/// Files from a `Secret` of the manifest, read-only, in memory only.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SecretVolume {
    pub secret_name: String,
    /// Only these keys; none: all.
    pub items: Vec<KeyToPath>,
    /// Default: 0644
    pub default_mode: Option<FileMode>,
    pub optional: bool,
}

/// Files of several in one directory.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Projected {
    pub sources: Vec<Projection>,
    /// Default: 0644
    pub default_mode: Option<FileMode>,
}

/// Exactly one of `configMap` and `secret`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Projection {
    pub config_map: Option<ProjectedKeys>,
    pub secret: Option<ProjectedKeys>,
    /// Refused.
    pub service_account_token: Option<serde_json::Value>,
    /// Refused.
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectedKeys {
    pub name: String,
    /// Only these keys; none: all.
    pub items: Vec<KeyToPath>,
    pub optional: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyToPath {
    pub key: String,
    /// Below the volume.
    pub path: String,
    #[serde(default)]
    pub mode: Option<FileMode>,
}

/// `0400`, which is octal, or a decimal number as in JSON
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FileMode {
    Number(u32),
    Text(String),
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EmptyDir {
    /// Empty, or `Memory`: of the guest, and gone with it.
    pub medium: Option<String>,
    /// With `medium: Memory` only; a directory is as large as the host's file system.
    pub size_limit: Option<Quantity>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HostPath {
    pub path: String,
    /// None and `DirectoryOrCreate` make it where it is missing; `Directory`, `File` and `Socket` want it there.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<DnsOption>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DnsOption {
    pub name: String,
    #[serde(default)]
    pub value: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodSecurity {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// `net.*`
    pub sysctls: Vec<Sysctl>,
    pub seccomp_profile: Option<SeccompProfile>,
    pub run_as_non_root: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sysctl {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Security {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    /// Wants `runAsUser`, which is then not 0.
    pub run_as_non_root: Option<bool>,
    /// Inside of the guest.
    pub privileged: bool,
    pub read_only_root_filesystem: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub capabilities: Capabilities,
    pub seccomp_profile: Option<SeccompProfile>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

/// `RuntimeDefault` or `Unconfined`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SeccompProfile {
    #[serde(rename = "type")]
    pub kind: String,
}

/// Run inside of the container: `httpGet` by its `wget` or `curl`, `tcpSocket` by its `nc`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Probe {
    pub exec: Option<ExecAction>,
    pub http_get: Option<HttpGet>,
    pub tcp_socket: Option<TcpSocket>,
    pub initial_delay_seconds: u32,
    pub period_seconds: Option<u32>,
    pub timeout_seconds: Option<u32>,
    pub failure_threshold: Option<u32>,
    /// Only 1.
    pub success_threshold: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecAction {
    pub command: Vec<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpGet {
    #[serde(default)]
    pub path: Option<String>,
    pub port: PortName,
    /// `HTTP` or `HTTPS`
    #[serde(default)]
    pub scheme: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpSocket {
    pub port: PortName,
}

/// A number, or the name of one of the container's ports.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PortName {
    Number(u16),
    Name(String),
}
