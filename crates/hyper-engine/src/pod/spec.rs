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
