//! `volume` and its verbs.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreateFlags),
    /// Show everything about volumes
    Inspect {
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeListFlags),
    /// Remove volumes that no container has
    Prune(VolumePruneFlags),
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm {
        /// A volume that is not there is no error
        #[arg(short, long)]
        force: bool,
        #[arg(required = true)]
        volumes: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct VolumeCreateFlags {
    /// local, disk or tmpfs
    #[arg(short, long, default_value = "local")]
    pub driver: String,
    /// KEY=VALUE, e.g. size=10G of a disk
    #[arg(short, long)]
    pub opt: Vec<String>,
    /// KEY or KEY=VALUE
    #[arg(long)]
    pub label: Vec<String>,
    /// One is made up when absent
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct VolumeListFlags {
    /// dangling, driver, label, name
    #[arg(short, long)]
    pub filter: Vec<String>,
    #[arg(long)]
    pub format: Option<String>,
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct VolumePruneFlags {
    /// Those with a name, too
    #[arg(short, long)]
    pub all: bool,
    #[arg(long)]
    pub filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}
