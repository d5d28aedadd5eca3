//! `config.json`: the fields that are carried out, and the refusal of those that cannot be.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md> and `config-linux.md`.
//! Fields that mean nothing in a guest of its own are skipped: `cgroupsPath` (the agent names the
//! cgroup), AppArmor and SELinux (not in this kernel), network namespaces (the guest is one).

use std::collections::BTreeMap;

use hyper_link::message::FailureKind;
use serde::Deserialize;
use serde_json::Value;

use crate::failure::{Doing as _, Outcome, unsupported};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    pub(crate) process: Process,
    pub(crate) root: Root,
    pub(crate) hostname: String,
    pub(crate) domainname: String,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) linux: Linux,
    pub(crate) annotations: BTreeMap<String, String>,
    hooks: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Root {
    pub(crate) readonly: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Process {
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<ConsoleSize>,
    pub(crate) user: User,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
    /// `user[:group]` by name, from the image's files: ours, see [`USER_NAME`].
    #[serde(rename = "user_name", alias = "io.hyper.user")]
    pub(crate) user_name: Option<String>,
    /// Further groups by name, from the image's file: ours.
    #[serde(rename = "group_names")]
    pub(crate) group_names: Vec<String>,
    /// An exec outside of all containers: ours, see [`crate::container`].
    #[serde(rename = "in_guest")]
    pub(crate) in_guest: bool,
}

/// Annotation with the first process's `user[:group]`, to be looked up in the image.
pub(crate) const USER_NAME: &str = "io.hyper.user";

/// Annotation, `true`: the first process is [`crate::init`].
pub(crate) const INIT: &str = "io.hyper.init";

/// Annotation of a container that is made for its files: nothing runs in it.
pub(crate) const FILES_ONLY: &str = "io.hyper.files-only";

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConsoleSize {
    pub(crate) height: u16,
    pub(crate) width: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) umask: Option<u32>,
    pub(crate) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    pub(crate) bounding: Vec<String>,
    pub(crate) effective: Vec<String>,
    pub(crate) permitted: Vec<String>,
    pub(crate) inheritable: Vec<String>,
    pub(crate) ambient: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) hard: u64,
    pub(crate) soft: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Mount {
    pub(crate) destination: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Linux {
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) devices: Vec<Device>,
    pub(crate) resources: Resources,
    pub(crate) seccomp: Option<Seccomp>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) sysctl: BTreeMap<String, String>,
    uid_mappings: Vec<Value>,
    time_offsets: Option<BTreeMap<String, Value>>,
    intel_rdt: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// A namespace of the host: in the guest that is the pod's own.
    #[serde(default)]
    pub(crate) path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Device {
    pub(crate) path: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) file_mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// `linux.resources`; also the argument of an update.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Resources {
    pub(crate) devices: Vec<DeviceRule>,
    pub(crate) memory: Option<Memory>,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    pub(crate) block_io: Option<BlockIo>,
    pub(crate) hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 file names and contents.
    pub(crate) unified: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DeviceRule {
    pub(crate) allow: bool,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    pub(crate) access: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    pub(crate) limit: Option<i64>,
    pub(crate) reservation: Option<i64>,
    /// Memory and swap together.
    pub(crate) swap: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cpu {
    pub(crate) shares: Option<u64>,
    pub(crate) quota: Option<i64>,
    pub(crate) period: Option<u64>,
    pub(crate) burst: Option<u64>,
    pub(crate) idle: Option<i64>,
    pub(crate) cpus: String,
    pub(crate) mems: String,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pids {
    pub(crate) limit: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockIo {
    pub(crate) weight: Option<u64>,
    pub(crate) throttle_read_bps_device: Vec<Throttle>,
    pub(crate) throttle_write_bps_device: Vec<Throttle>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub(crate) throttle_read_iops_device: Vec<Throttle>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub(crate) throttle_write_iops_device: Vec<Throttle>,
}

/// A rate for a device of the host, whose number says nothing here: it is that of the files behind
/// the container's disks.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Throttle {
    pub(crate) rate: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HugepageLimit {
    pub(crate) page_size: String,
    pub(crate) limit: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seccomp {
    pub(crate) default_action: String,
    #[serde(default)]
    pub(crate) default_errno_ret: Option<u16>,
    #[serde(default)]
    pub(crate) architectures: Vec<String>,
    #[serde(default)]
    pub(crate) flags: Vec<String>,
    #[serde(default)]
    pub(crate) syscalls: Vec<SyscallRule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SyscallRule {
    pub(crate) names: Vec<String>,
    pub(crate) action: String,
    #[serde(default)]
    pub(crate) errno_ret: Option<u16>,
    #[serde(default)]
    pub(crate) args: Vec<ArgumentRule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ArgumentRule {
    pub(crate) index: u32,
    pub(crate) value: u64,
    #[serde(default)]
    pub(crate) value_two: u64,
    pub(crate) op: String,
}

impl Spec {
    /// # Errors
    /// `InvalidArgument`: a field of another type than the specification says.
    pub(crate) fn parse(config: &Value) -> Outcome<Self> {
        Self::deserialize(config)
            .doing_as(FailureKind::InvalidArgument, || "read config.json".to_owned())
    }

    /// Refuses what would otherwise be dropped in silence.
    ///
    /// # Errors
    /// `Unsupported`, naming the field and its value.
    pub(crate) fn check(&self) -> Outcome<()> {
        let hooks = self.hooks.iter().flatten();
        if let Some((name, _)) = hooks
            .into_iter()
            .find(|(_, hooks)| hooks.as_array().is_none_or(|list| !list.is_empty()))
        {
            return Err(unsupported(format!("hooks.{name}: hooks are programs of the host")));
        }
        if !self.linux.uid_mappings.is_empty() {
            return Err(unsupported("linux.uidMappings: user namespaces are not made in a guest"));
        }
        if self.linux.time_offsets.as_ref().is_some_and(|offsets| !offsets.is_empty()) {
            return Err(unsupported("linux.timeOffsets: time namespaces are not made in a guest"));
        }
        if self.linux.intel_rdt.is_some() {
            return Err(unsupported("linux.intelRdt: a guest has no cache allocation"));
        }
        for namespace in &self.linux.namespaces {
            let known = ["pid", "network", "mount", "ipc", "uts", "cgroup"];
            if !known.contains(&namespace.kind.as_str()) {
                return Err(unsupported(format!(
                    "linux.namespaces: {} namespaces are not made in a guest",
                    namespace.kind
                )));
            }
        }
        Ok(())
    }

    /// Whether a new namespace of `kind` is asked for. One with a path is the pod's.
    pub(crate) fn has_own(&self, kind: &str) -> bool {
        self.linux.namespaces.iter().any(|n| n.kind == kind && n.path.is_empty())
    }
}
