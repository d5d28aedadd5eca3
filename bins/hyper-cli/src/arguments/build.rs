//! `hyper build`.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct BuildFlags {
    /// Dockerfile [default: Dockerfile in the context]; `-`: standard input
    #[arg(short, long)]
    pub file: Option<String>,
    /// Name of the image, NAME[:TAG]
    #[arg(short, long)]
    pub tag: Vec<String>,
    /// NAME=VALUE for an ARG; without value, that of the environment
    #[arg(long)]
    pub build_arg: Vec<String>,
    /// Stage to build
    #[arg(long)]
    pub target: Option<String>,
    /// Take no step from the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Images whose steps count as cached
    #[arg(long)]
    pub cache_from: Vec<String>,
    /// Pull base images even if they are here
    #[arg(long)]
    pub pull: bool,
    /// NAME=VALUE
    #[arg(long)]
    pub label: Vec<String>,
    /// Network of RUN
    #[arg(long)]
    pub network: Option<String>,
    /// OS/ARCH[/VARIANT]
    #[arg(long)]
    pub platform: Option<String>,
    /// Memory of RUN, e.g. 512m
    #[arg(short, long)]
    pub memory: Option<String>,
    /// Print only the image's id
    #[arg(short, long)]
    pub quiet: bool,
    /// Write the image's id to a file
    #[arg(long)]
    pub iidfile: Option<std::path::PathBuf>,
    /// Directory of the build context; `-`: a Dockerfile or an archive on standard input
    pub path: String,
}

#[derive(Debug, Subcommand)]
pub enum BuilderCommand {
    /// Remove the steps of builds that no image needs
    Prune(BuilderPruneFlags),
    /// Build an image from a Dockerfile
    Build(Box<BuildFlags>),
}

#[derive(Debug, Args)]
pub struct BuilderPruneFlags {
    /// As without: steps behind a named image are parts of it
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// until=TIME, id=ID
    #[arg(long)]
    pub filter: Vec<String>,
}
