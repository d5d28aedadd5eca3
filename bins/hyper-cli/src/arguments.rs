//! Commands and flags: Docker's names and forms.

mod build;
mod container;
mod create;
mod given;
mod image;
mod mount;
mod network;
mod pod;
mod settings;
mod volume;

use clap::{Args, Parser, Subcommand};

pub use build::{BuildFlags, BuilderCommand, BuilderPruneFlags};
pub use container::{RestartFlags, StatsFlags, TopFlags, UpdateFlags};
pub use create::{
    CreateFlags, bytes, loose_pairs, nano_cpus, pairs, restart as restart_policy, variable,
};
pub use given::{MAX_BYTES as MAX_GIVEN_BYTES, read as read_given};
pub use image::{
    HistoryFlags, ImageCommand, ImagePruneFlags, ImportFlags, LoginFlags, PushFlags, SaveFlags,
    SystemCommand, TagFlags,
};
pub use network::{NetworkCommand, NetworkCreateFlags, NetworkListFlags, endpoint};
pub use pod::{
    ManifestFlags, PodCommand, PodCreateFlags, PodExecFlags, PodLogsFlags, PodPsFlags,
    PodUpdateFlags, ServiceCommand, ServiceFlags,
};
pub use volume::{VolumeCommand, VolumeCreateFlags, VolumeListFlags, VolumePruneFlags};

/// Runs containers, each pod in a kernel of its own.
#[derive(Debug, Parser)]
#[command(name = "hyper", version, about, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// Address of hyperd [default: unix:///run/hyper/hyper.sock, without root your own; started when not running]
    #[arg(short = 'H', long, env = "HYPER_HOST", global = true, value_name = "URL")]
    pub host: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and run a new container from an image
    Run(RunFlags),
    /// Create a new container
    Create(CreateOnlyFlags),
    /// Start stopped containers
    Start(StartFlags),
    /// Stop running containers
    Stop(StopFlags),
    /// Stop and start containers
    Restart(RestartFlags),
    /// Give a container another name
    Rename { container: String, name: String },
    /// Change limits and restart policies of containers
    Update(UpdateFlags),
    /// Show the processes of a container
    Top(TopFlags),
    /// Show what containers use
    Stats(StatsFlags),
    /// Send a signal to running containers
    Kill(KillFlags),
    /// Remove containers
    Rm(RmFlags),
    /// List containers
    Ps(PsFlags),
    /// Run a command in a running container
    Exec(ExecFlags),
    /// Attach to a running container
    Attach(AttachFlags),
    /// Show a container's output
    Logs(LogsFlags),
    /// Wait until containers stop, then print their exit codes
    Wait {
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Freeze all processes of containers
    Pause {
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Thaw paused containers
    Unpause {
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Make and start the pods of a manifest: Kubernetes' v1/Pod, or UserPod of the first Hyper
    Apply(ManifestFlags),
    /// Remove the pods of a manifest, with their containers and volumes
    Delete(ManifestFlags),
    /// Manage pods: guests that several containers share
    #[command(subcommand)]
    Pod(PodCommand),
    /// Copy files between a container and here; `-` is a tar archive on standard input or output
    Cp(CopyFlags),
    /// Show what a container changed since its image
    Diff { container: String },
    /// Write a container's root file system as a tar archive
    Export(ExportFlags),
    /// Make an image of what a container changed
    Commit(CommitFlags),
    /// Show everything about containers or images
    Inspect(InspectFlags),
    /// Build an image from a Dockerfile
    Build(BuildFlags),
    /// Manage builds
    #[command(subcommand)]
    Builder(BuilderCommand),
    /// Download an image from a registry
    Pull(PullFlags),
    /// Upload an image to a registry
    Push(PushFlags),
    /// Give an image a further name
    Tag(TagFlags),
    /// Write images to a tar archive
    Save(SaveFlags),
    /// Load images from a docker-archive or an OCI layout
    Load(LoadFlags),
    /// Make an image from a root file system's tar archive
    Import(ImportFlags),
    /// Show how an image was made
    History(HistoryFlags),
    /// Manage images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manage volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Show the published ports of a container
    Port { container: String, port: Option<String> },
    /// Log in to a registry
    Login(LoginFlags),
    /// Log out of a registry
    Logout {
        /// Registry [default: docker.io]
        server: Option<String>,
    },
    /// Manage the engine
    #[command(subcommand)]
    System(SystemCommand),
    /// List images
    Images(ImagesFlags),
    /// Remove images
    Rmi(RmiFlags),
    /// Show what happens in the engine
    Events(EventsFlags),
    /// Show the engine's state
    Info {
        #[arg(short, long)]
        format: Option<String>,
    },
    /// Show the versions of client and engine
    Version {
        #[arg(short, long)]
        format: Option<String>,
    },
    /// Check what this host offers, and say what to do about the rest
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Compare all isolations that work here: start-up, CPU, memory, disk, network, system calls, Nginx, MySQL
    Run(BenchRunFlags),
    /// Make the table, CSV, JSON and HTML page of a study's directory anew
    Report { dir: std::path::PathBuf },
    /// Show what changed between two studies by more than their spread
    Compare { before: std::path::PathBuf, after: std::path::PathBuf },
    /// Time `run --rm IMAGE true` phase by phase for each runtime, beside `docker run`
    Start(BenchStartFlags),
    /// Time bare guests of each hypervisor: boot, end, memory, and copies of a saved one
    Vmm(BenchVmmFlags),
    /// Start many pods that stay, and tell their rate and memory at 1, 10, 100 and the last
    Many(BenchManyFlags),
    /// Time pulls of images until they can run, and the memory they need, beside `docker pull`
    Pull(BenchPullFlags),
}

#[derive(Debug, Args)]
pub struct RunFlags {
    #[command(flatten)]
    pub create: CreateFlags,
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub detach: bool,
    /// Keys that detach from a terminal [default: ctrl-p,ctrl-q]
    #[arg(long)]
    pub detach_keys: Option<String>,
    /// Pass signals on to the container
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub sig_proxy: bool,
}

#[derive(Debug, Args)]
pub struct CreateOnlyFlags {
    #[command(flatten)]
    pub create: CreateFlags,
}

#[derive(Debug, Args)]
pub struct StartFlags {
    /// Attach output and pass signals on
    #[arg(short, long)]
    pub attach: bool,
    /// Attach standard input
    #[arg(short, long)]
    pub interactive: bool,
    #[arg(long)]
    pub detach_keys: Option<String>,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StopFlags {
    /// Seconds to wait before the kill
    #[arg(short, long = "time", visible_alias = "timeout")]
    pub time: Option<i64>,
    #[arg(short, long)]
    pub signal: Option<String>,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillFlags {
    #[arg(short, long, default_value = "KILL")]
    pub signal: String,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmFlags {
    /// Kill running containers first
    #[arg(short, long)]
    pub force: bool,
    /// Remove anonymous volumes as well
    #[arg(short, long)]
    pub volumes: bool,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PsFlags {
    /// Stopped containers too
    #[arg(short, long)]
    pub all: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    #[arg(long)]
    pub no_trunc: bool,
    /// The latest N containers, in any state
    #[arg(short = 'n', long)]
    pub last: Option<u32>,
    /// The latest container
    #[arg(short, long)]
    pub latest: bool,
    /// KEY=VALUE, e.g. status=running, name=web, label=app
    #[arg(short, long)]
    pub filter: Vec<String>,
    /// `table`, `json`, or a Go template
    #[arg(long)]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExecFlags {
    #[arg(short, long)]
    pub detach: bool,
    #[arg(short, long)]
    pub interactive: bool,
    #[arg(short, long)]
    pub tty: bool,
    #[arg(short, long)]
    pub env: Vec<String>,
    #[arg(short, long)]
    pub user: Option<String>,
    #[arg(short, long)]
    pub workdir: Option<String>,
    #[arg(long)]
    pub privileged: bool,
    #[arg(long)]
    pub detach_keys: Option<String>,
    pub container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct AttachFlags {
    #[arg(long)]
    pub no_stdin: bool,
    #[arg(long)]
    pub detach_keys: Option<String>,
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub sig_proxy: bool,
    pub container: String,
}

#[derive(Debug, Args)]
pub struct LogsFlags {
    #[arg(short, long)]
    pub follow: bool,
    #[arg(short, long)]
    pub timestamps: bool,
    /// Lines from the end, or `all`
    #[arg(short = 'n', long, default_value = "all")]
    pub tail: String,
    /// RFC 3339 time, Unix seconds, or an age such as 10m
    #[arg(long)]
    pub since: Option<String>,
    #[arg(long)]
    pub until: Option<String>,
    pub container: String,
}

#[derive(Debug, Args)]
pub struct CopyFlags {
    /// Keep owners; into a container: everything belongs to its user
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what a link at the end of SOURCE leads to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    #[arg(short, long)]
    pub quiet: bool,
    /// CONTAINER:PATH, a local path, or `-`
    pub source: String,
    /// CONTAINER:PATH, a local path, or `-`
    pub destination: String,
}

#[derive(Debug, Args)]
pub struct ExportFlags {
    /// File to write instead of standard output
    #[arg(short, long)]
    pub output: Option<std::path::PathBuf>,
    pub container: String,
}

#[derive(Debug, Args)]
pub struct CommitFlags {
    /// e.g. "John Hannibal Smith <hannibal@a-team.com>"
    #[arg(short, long)]
    pub author: Option<String>,
    /// Dockerfile instruction to apply to the image
    #[arg(short, long)]
    pub change: Vec<String>,
    /// What was changed, in words
    #[arg(short, long)]
    pub message: Option<String>,
    /// Pause the container meanwhile
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub pause: bool,
    pub container: String,
    /// REPOSITORY[:TAG]
    pub repository: Option<String>,
}

#[derive(Debug, Args)]
pub struct InspectFlags {
    /// Go template
    #[arg(short, long)]
    pub format: Option<String>,
    /// `container` or `image`
    #[arg(long = "type")]
    pub kind: Option<String>,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PullFlags {
    #[arg(short, long)]
    pub quiet: bool,
    /// OS/ARCH[/VARIANT]
    #[arg(long)]
    pub platform: Option<String>,
    pub image: String,
}

#[derive(Debug, Args)]
pub struct LoadFlags {
    /// File to read instead of standard input
    #[arg(short, long)]
    pub input: Option<std::path::PathBuf>,
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct ImagesFlags {
    #[arg(short, long)]
    pub all: bool,
    #[arg(short, long)]
    pub quiet: bool,
    #[arg(long)]
    pub no_trunc: bool,
    #[arg(long)]
    pub digests: bool,
    #[arg(short, long)]
    pub filter: Vec<String>,
    #[arg(long)]
    pub format: Option<String>,
    /// REPOSITORY[:TAG]
    pub repository: Option<String>,
}

#[derive(Debug, Args)]
pub struct RmiFlags {
    #[arg(short, long)]
    pub force: bool,
    #[arg(long)]
    pub no_prune: bool,
    #[arg(required = true)]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct EventsFlags {
    #[arg(long)]
    pub since: Option<String>,
    #[arg(long)]
    pub until: Option<String>,
    #[arg(short, long)]
    pub filter: Vec<String>,
    #[arg(long)]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct BenchRunFlags {
    /// Runtimes to measure; `host` is this host itself, `docker` a Docker engine [default: all that work]
    #[arg(long, value_delimiter = ',')]
    pub runtime: Vec<String>,
    /// startup, cpu, memory, disk, network, syscalls, nginx, mysql [default: all]
    #[arg(long, value_delimiter = ',')]
    pub axis: Vec<String>,
    /// Measured rounds, after a warm-up [default: 5; 2 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: Option<u32>,
    /// Fewer measures, shorter: at most five minutes for four runtimes that are not emulated
    #[arg(long)]
    pub quick: bool,
    /// Directory of the study; one that was interrupted is gone on with [default: bench-TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<std::path::PathBuf>,
    /// CPUs of each (`uml` has one, always)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cpus: u32,
    /// Memory of each
    #[arg(long, default_value = "1g")]
    pub memory: String,
    /// Image with the tools: `images/build bench`
    #[arg(long, default_value = "bench")]
    pub image: String,
    /// Directory on the host for its own copy of the image, removed at the end
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    pub work: std::path::PathBuf,
    /// Docker engine to measure beside ours, when it answers
    #[arg(long, default_value = "unix:///var/run/docker.sock")]
    pub docker: String,
    /// File whose lock keeps benches of this machine from running at once
    #[arg(long, default_value = "/run/lock/hyper-bench.lock", hide = true)]
    pub lock: std::path::PathBuf,
}

#[derive(Debug, Args)]
pub struct BenchStartFlags {
    /// Measured runs of each runtime, after one warm-up
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// Runtimes to measure
    #[arg(long, value_delimiter = ',', default_value = "uml,qemu")]
    pub runtime: Vec<String>,
    /// Measure clones of templates, too, beside pods that boot
    #[arg(long)]
    pub clones: bool,
    #[arg(long, default_value = "busybox")]
    pub image: String,
    /// Network of the containers, for all runtimes [default: as `run`]
    #[arg(long)]
    pub network: Option<String>,
    /// Docker engine to measure beside ours, when it answers
    #[arg(long, default_value = "unix:///var/run/docker.sock")]
    pub docker: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchManyFlags {
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pods: u32,
    /// Started, asked and removed at once
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub at_once: u32,
    #[arg(long, default_value = "auto")]
    pub runtime: String,
    /// An image with `sleep` and `true`
    #[arg(long, default_value = "busybox")]
    pub image: String,
    /// Network of the pods [default: as `run`]
    #[arg(long)]
    pub network: Option<String>,
    /// Memory limit of each container, e.g. 64m [default: as `run`]
    #[arg(long)]
    pub memory: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchVmmFlags {
    /// Measured guests of each hypervisor, after one warm-up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchPullFlags {
    /// Measured pulls of each image by each engine, after one warm-up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Docker engine to measure beside ours, when it answers
    #[arg(long, default_value = "unix:///var/run/docker.sock")]
    pub docker: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Images of a registry nearby; they are removed from both engines first
    #[arg(required = true)]
    pub images: Vec<String>,
}
