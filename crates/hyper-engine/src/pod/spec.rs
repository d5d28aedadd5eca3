//! What a pod was created as and what it is doing; both stored as JSON in the database.
//!
//! ```text
//!   created ──start──▶ starting ──ok──▶ running ◀──unpause / pause──▶ paused
//!      ▲                  │ failed         │ stop, or the guest is gone    │
//!      └──────────────────┤                ▼                               │
//!   stopped ──start───────┘◀──────────  stopped ◀──────────────────────────┘
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Of a CPU quota, in microseconds.
const PERIOD_US: u64 = 100_000;

use crate::network::spec::Service;

/// What a client asks for. Empty and `None`: the engine's default.
#[derive(Debug, Clone, Default)]
pub struct CreatePod {
    /// A name is made up when absent.
    pub name: Option<String>,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    /// `auto` or a hypervisor.
    pub runtime: String,
    pub vcpus: Option<u32>,
    /// Of the guest, its kernel included.
    pub memory_bytes: Option<u64>,
    pub sysctls: BTreeMap<String, String>,
    /// As a container's.
    pub network: String,
    /// What it may reach, see `hyper_network::egress`.
    pub egress: Option<String>,
    /// What it may receive and send, see `hyper_network::rate`.
    pub network_rate: Option<String>,
    /// What only it sees, see `hyper_network::service`.
    pub services: Vec<Service>,
}

/// What `update` changes; absent: stays. A guest that runs can be given less memory and CPU time
/// than it booted with, and up to that again more; more memory than that where its hypervisor can.
#[derive(Debug, Clone, Default)]
pub struct PodChange {
    /// Added to those it has; `None` takes one away.
    pub labels: BTreeMap<String, Option<String>>,
    pub vcpus: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub egress: Option<String>,
    /// Empty: no bounds any more.
    pub network_rate: Option<String>,
}

impl PodChange {
    /// What of it concerns a guest that runs: OCI `linux.resources` of the pod's sandbox.
    pub(crate) fn resources(&self) -> Option<Value> {
        let mut resources = json!({});
        if let Some(bytes) = self.memory_bytes {
            resources["memory"] = json!({ "limit": bytes });
        }
        if let Some(vcpus) = self.vcpus {
            let quota = u64::from(vcpus) * PERIOD_US;
            resources["cpu"] = json!({ "quota": quota, "period": PERIOD_US });
        }
        resources.as_object().is_some_and(|all| !all.is_empty()).then_some(resources)
    }

    /// The pod with the change.
    pub(crate) fn over(self, spec: &PodSpec) -> PodSpec {
        let mut spec = spec.clone();
        for (key, value) in self.labels {
            match value {
                None => spec.labels.remove(&key),
                Some(value) => spec.labels.insert(key, value),
            };
        }
        spec.vcpus = self.vcpus.or(spec.vcpus);
        spec.memory_bytes = self.memory_bytes.or(spec.memory_bytes);
        spec.egress = self.egress.or(spec.egress);
        spec.network_rate = self.network_rate.or(spec.network_rate);
        spec
    }
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    pub id: String,
    /// Nanoseconds since the Unix epoch.
    pub created_ns: i64,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub runtime: String,
    pub vcpus: Option<u32>,
    pub memory_bytes: Option<u64>,
    /// `net.*`: of the whole pod.
    pub sysctls: BTreeMap<String, String>,
    /// `default`, `none`, or a network's name or id.
    pub network: String,
    /// What it may reach, see `hyper_network::egress`.
    pub egress: Option<String>,
    /// What it may receive and send, see `hyper_network::rate`.
    pub network_rate: Option<String>,
    /// What only it sees.
    pub services: Vec<Service>,
}

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodStatus {
    #[default]
    Created,
    Starting,
    Running,
    Paused,
    Stopped,
}

impl PodStatus {
    /// Has a guest.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// For people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What a pod is doing. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodState {
    pub status: PodStatus,
    pub started_ns: Option<i64>,
    pub finished_ns: Option<i64>,
    /// Why it ended or did not start, when nobody asked for it.
    pub reason: String,
}

#[cfg(test)]
mod test {
    use super::*;

    fn labels(keys: &[&str]) -> BTreeMap<String, String> {
        keys.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect()
    }

    #[test]
    fn labels_come_and_go_and_a_guest_is_told_only_of_what_is_its() {
        let spec = PodSpec { labels: labels(&["a", "b"]), vcpus: Some(1), ..PodSpec::default() };
        let change = PodChange {
            labels: [("a".to_owned(), None), ("c".to_owned(), Some("1".to_owned()))].into(),
            ..PodChange::default()
        };
        assert_eq!(change.resources(), None);
        let change = PodChange { vcpus: Some(2), ..change };
        let quota = json!({ "cpu": { "quota": 200_000, "period": 100_000 } });
        assert_eq!(change.resources(), Some(quota));
        let changed = change.over(&spec);
        assert_eq!((changed.vcpus, changed.labels), (Some(2), labels(&["b", "c"])));
    }
}
