//! Flags of `pod …`, `apply` and `delete`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ExecFlags, KillFlags};

#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// Create a pod; containers join it with `run --pod` or `create --pod`
    Create(PodCreateFlags),
    /// Boot pods and start their containers
    Start {
        #[arg(required = true)]
        pods: Vec<String>,
    },
    /// Stop the containers of pods, then their guests
    Stop {
        /// Seconds that each container has before it is killed
        #[arg(short, long = "time", visible_alias = "timeout")]
        time: Option<i64>,
        #[arg(required = true)]
        pods: Vec<String>,
    },
    /// Send a signal to all running containers of pods
    Kill(KillFlags),
    /// Remove pods and their containers
    Rm {
        /// Even if they run
        #[arg(short, long)]
        force: bool,
        #[arg(required = true)]
        pods: Vec<String>,
    },
    /// List pods
    #[command(visible_alias = "ls")]
    Ps(PodPsFlags),
    /// Show everything about pods
    Inspect {
        /// Go template
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true)]
        pods: Vec<String>,
    },
    /// Show the output of a pod's containers, each line behind its container's name
    Logs(PodLogsFlags),
    /// Run a command in a container of a pod, its first if --container names none
    Exec(PodExecFlags),
    /// Show what pods use: their guests, hypervisors and supervisors
    Stats {
        /// `table`, `json`, or a Go template
        #[arg(long)]
        format: Option<String>,
        /// All running pods if none is named
        pods: Vec<String>,
    },
    /// Stop all of a pod's guest where it is
    Pause {
        #[arg(required = true)]
        pods: Vec<String>,
    },
    /// Change pods; one that runs gets no more CPUs than it booted with, and more memory on `kvm` alone
    Update(PodUpdateFlags),
    /// Addresses that only one pod sees, with backends behind them
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Let paused pods go on
    Unpause {
        #[arg(required = true)]
        pods: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List the services of a pod
    Ls {
        /// `table`, `json`, or a Go template
        #[arg(long)]
        format: Option<String>,
        pod: String,
    },
    /// Give a pod one more service
    Add(ServiceFlags),
    /// Give a service of a pod other backends
    Update(ServiceFlags),
    /// Take services from a pod
    Rm {
        pod: String,
        /// ADDRESS:PORT[/tcp|udp]
        #[arg(required = true)]
        services: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct ServiceFlags {
    pub pod: String,
    /// What the pod sends to: ADDRESS:PORT[/tcp|udp], outside of its own network
    pub service: String,
    /// ADDRESS:PORT of those who take connections in turn
    #[arg(required = true)]
    pub backends: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PodCreateFlags {
    /// Hostname of all its containers [default: the pod's name]
    #[arg(long)]
    pub hostname: Option<String>,
    /// KEY or KEY=VALUE
    #[arg(short, long)]
    pub label: Vec<String>,
    /// How strong the wall is: auto, kvm, uml, qemu, …
    #[arg(long)]
    pub runtime: Option<String>,
    /// Virtual CPUs of the guest
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory of the guest, its kernel included, e.g. 512m
    #[arg(short, long)]
    pub memory: Option<String>,
    /// net.…=VALUE, for the whole pod
    #[arg(long)]
    pub sysctl: Vec<String>,
    /// Network to join, or `none`
    #[arg(long)]
    pub network: Option<String>,
    /// What it may reach, see `run --egress`
    #[arg(long, value_name = "POLICY")]
    pub egress: Option<String>,
    /// Bits per second that it may receive and send, e.g. in=10m,out=5m
    #[arg(long, value_name = "RATES")]
    pub network_rate: Option<String>,
    /// [default: made up]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct PodUpdateFlags {
    /// KEY or KEY=VALUE to add or change
    #[arg(short, long)]
    pub label: Vec<String>,
    /// KEY to take away
    #[arg(long, value_name = "KEY")]
    pub label_rm: Vec<String>,
    /// Virtual CPUs of the guest
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory of the guest, its kernel included, e.g. 512m
    #[arg(short, long)]
    pub memory: Option<String>,
    /// What it may reach, see `run --egress`
    #[arg(long, value_name = "POLICY")]
    pub egress: Option<String>,
    /// Bits per second that it may receive and send, e.g. in=10m,out=5m
    #[arg(long, value_name = "RATES")]
    pub network_rate: Option<String>,
    #[arg(required = true)]
    pub pods: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PodPsFlags {
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    #[arg(long)]
    pub no_trunc: bool,
    /// `table`, `json`, or a Go template
    #[arg(long)]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct PodLogsFlags {
    #[arg(short, long)]
    pub follow: bool,
    #[arg(short, long)]
    pub timestamps: bool,
    /// Lines from the end of each container's output, or `all`
    #[arg(short = 'n', long, default_value = "all")]
    pub tail: String,
    /// Only this container
    #[arg(short, long)]
    pub container: Option<String>,
    pub pod: String,
}

#[derive(Debug, Args)]
pub struct PodExecFlags {
    /// Container of the pod
    #[arg(short = 'c', long = "container", value_name = "CONTAINER")]
    pub member: Option<String>,
    /// Outside of the containers, in the guest itself, with programs of the container: sees all
    /// processes, mounts and devices of the guest
    #[arg(long)]
    pub guest: bool,
    /// POD COMMAND [ARGUMENT...]
    #[command(flatten)]
    pub exec: ExecFlags,
}

#[derive(Debug, Args)]
pub struct ManifestFlags {
    /// Kubernetes v1/Pod manifest or UserPod, YAML or JSON; `-` is standard input
    #[arg(short, long, required = true)]
    pub file: Vec<PathBuf>,
}
