//! What a look at the host found; `hyper doctor` prints it.

use serde::{Deserialize, Serialize};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// E.g. `/dev/kvm`, `jail: seccomp`.
    pub what: String,
    pub ok: bool,
    /// What was seen, and when not ok what to do.
    pub detail: String,
}

/// Whether a hypervisor works on this host, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub usable: bool,
    /// Version of the program, when there is one.
    pub version: Option<String>,
    pub findings: Vec<Finding>,
}
