//! `UserPod` of the first Hyper (hyperd 1.0, `types.proto`), as JSON or YAML.
//!
//! Its unknown fields were ignored, and so were some that it knew (`restartPolicy`, `sysctl`): here
//! they are honoured, or refused by name.

mod files;
mod nas;
mod service;
mod translate;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

pub(crate) use files::{Fetched, uris};
pub(crate) use translate::{base64, plan};

/// A pod.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UserPod {
    /// Name of the pod; made up when empty.
    pub id: String,
    pub hostname: String,
    /// `pod`; it had no meaning.
    #[serde(rename = "type")]
    pub kind: String,
    /// `never`, `onFailure` or `always`
    pub restart_policy: String,
    /// Gives every container a terminal.
    pub tty: bool,
    pub labels: BTreeMap<String, String>,
    pub resource: Resource,
    pub log: Log,
    pub dns: Vec<String>,
    pub dns_options: Vec<String>,
    pub dns_search: Vec<String>,
    pub containers: Vec<UserContainer>,
    /// Put into containers that refer to them.
    pub files: Vec<UserFile>,
    pub volumes: Vec<UserVolume>,
    /// Refused: the pod's network is the engine's to make.
    pub interfaces: Vec<Value>,
    pub services: Vec<UserService>,
    /// Refused: there is no filter in the guest.
    #[serde(rename = "portmappingWhiteLists")]
    pub port_white_lists: Option<Value>,
    pub portmappings: Vec<PortMapping>,
}

/// An address that only this pod sees.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UserService {
    /// Outside of the pod's network.
    #[serde(rename = "serviceIP")]
    pub service_ip: String,
    pub service_port: u16,
    /// `TCP` or `UDP`; `TCP` when empty.
    pub protocol: String,
    /// Take connections in turn.
    pub hosts: Vec<UserServiceHost>,
}

/// Where connections to a service go.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UserServiceHost {
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    pub host_port: u16,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resource {
    /// 0: the default.
    pub vcpu: u32,
    /// MiB; 0: the default.
    pub memory: u32,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    #[serde(rename = "type")]
    pub kind: String,
    pub config: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UserContainer {
    /// Made up of pod, image and place when empty.
    pub name: String,
    /// Output only; refused.
    pub id: String,
    pub image: String,
    pub workdir: String,
    pub restart_policy: String,
    pub tty: bool,
    pub sysctl: BTreeMap<String, String>,
    pub envs: Vec<Env>,
    pub command: Vec<String>,
    pub entrypoint: Vec<String>,
    pub ports: Vec<UserPort>,
    pub volumes: Vec<VolumeReference>,
    pub files: Vec<FileReference>,
    pub user: Option<User>,
    pub labels: BTreeMap<String, String>,
    #[serde(rename = "StopSignal")]
    pub stop_signal: String,
    pub ulimits: Vec<Ulimit>,
    /// Refused: logs are the engine's.
    pub log_path: String,
    /// Of the root file system.
    pub read_only: bool,
    /// Refused: the root disk's caching is the hypervisor's.
    pub cache: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Env {
    pub env: String,
    #[serde(default)]
    pub value: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UserPort {
    /// 0: not published.
    pub host_port: u16,
    pub container_port: u16,
    /// Refused: `services` of the pod say what it was to mean.
    pub service_port: u16,
    pub protocol: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct VolumeReference {
    /// Where it is in the container.
    pub path: String,
    /// One of the pod's volumes.
    pub volume: String,
    pub read_only: bool,
    /// The volume itself, instead of a name.
    pub detail: Option<UserVolume>,
}

#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserVolume {
    pub name: String,
    /// A directory of the host, or of format `nas` `ADDRESS:/PATH` of an NFS server; empty: a volume
    /// that goes with the pod.
    pub source: String,
    /// `vfs` or `nas`; the others (raw, qcow2, vdi, rbd) are refused.
    pub format: String,
    /// Refused.
    pub fstype: String,
    /// Refused.
    pub cache: String,
    /// Refused.
    pub option: Option<Value>,
}

/// A file that a container gets, writable; what it writes there is gone with its next start.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FileReference {
    /// Where it is in the container.
    pub path: String,
    /// One of the pod's files.
    pub filename: String,
    /// Octal; default: 0755
    pub perm: String,
    /// Name in the image, or number; default: root
    pub user: String,
    /// Name in the image, or number; default: the user's
    pub group: String,
    /// The file itself, instead of a name.
    pub detail: Option<UserFile>,
}

#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserFile {
    pub name: String,
    /// `raw` or `base64`, of `content` and of what the URI has
    pub encoding: String,
    /// `file://`, `http://` or `https://`, read by the client; at most 1 MiB
    pub uri: String,
    pub content: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct User {
    pub name: String,
    pub group: String,
    pub additional_groups: Vec<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub struct Ulimit {
    pub name: String,
    pub hard: i64,
    pub soft: i64,
}

/// Single ports or ranges `a-b` of one length.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PortMapping {
    pub host_port: String,
    pub container_port: String,
    pub protocol: String,
}
