//! What the program that hosts the pod decides: hypervisors, kernels, directories, defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::{Hypervisor, Wall};

/// Settings of one pod; fixed for its life.
#[derive(Clone)]
pub struct Settings {
    /// Pod id: the id of its first container.
    pub id: String,
    /// Names its cgroup and processes on the host, where two containerds may use one id.
    pub vm_id: String,
    /// In preference order; `auto` takes the first that is usable.
    pub hypervisors: Vec<Arc<dyn Hypervisor>>,
    /// Guest kernels by name of hypervisor.
    pub flavours: BTreeMap<String, Flavour>,
    /// `auto` or the name of a hypervisor.
    pub default_hypervisor: String,
    /// The weakest wall that any pod may have.
    pub min_isolation: Wall,
    /// Guest memory in bytes of a pod without limit or annotation.
    pub default_memory_bytes: u64,
    /// Bytes a guest gets over its container's limit: kernel and agent.
    pub memory_overhead_bytes: u64,
    pub default_vcpus: u32,
    /// Short-lived files of this pod: sockets. Made and removed by the pod; short path.
    pub run_dir: PathBuf,
    /// Files of this pod that may grow: upper disks. Made and removed by the pod.
    pub disk_dir: PathBuf,
    /// Converted layers and images of containerd's snapshots, shared by all pods.
    pub converted_dir: PathBuf,
    /// Templates of fresh disks, shared by all pods.
    pub template_dir: PathBuf,
    /// Guests that pods are cloned from.
    pub templates: Templates,
    /// Size of an upper disk made here, a multiple of 4096; the file is sparse.
    pub upper_bytes: u64,
    /// When the supervisor's first instruction ran, nanoseconds since the Unix epoch.
    pub started_ns: i64,
}

/// Where templates are and who makes them, see `template.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates {
    /// Shared by all pods.
    pub directory: PathBuf,
    /// Program whose `template` makes one of the shape on its standard input.
    pub maker: PathBuf,
    /// For pods that do not say otherwise.
    pub on: bool,
}

/// What a hypervisor boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flavour {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub extra_cmdline: Vec<String>,
    /// How long the agent may take to say hello.
    pub boot_timeout: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.hypervisors.iter().map(|hypervisor| hypervisor.name()).collect();
        f.debug_struct("Settings")
            .field("id", &self.id)
            .field("hypervisors", &names)
            .field("default_hypervisor", &self.default_hypervisor)
            .finish_non_exhaustive()
    }
}
