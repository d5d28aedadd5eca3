//! The seam for the pod's network: finds what the host prepared, wires nothing yet.
//!
//! containerd's CRI plugin and hyperd give a network namespace by path; interfaces in it are to
//! be redirected to taps and their addresses moved into the guest. Until then a guest has its
//! loopback only, and what was found is in the pod's report.

use std::path::PathBuf;

/// What the host prepared for this pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The namespace that `config.json` names.
    pub namespace: Option<PathBuf>,
}

impl Found {
    /// One line for each thing that is not wired.
    pub fn report(&self) -> Vec<String> {
        self.namespace
            .iter()
            .map(|path| format!("network namespace `{}` is not wired", path.display()))
            .collect()
    }
}
