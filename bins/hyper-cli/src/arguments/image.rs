//! Flags of the commands on images, registries and the engine's store.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct PushFlags {
    /// All tags of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    #[arg(short, long)]
    pub quiet: bool,
    /// NAME[:TAG]
    pub image: String,
}

#[derive(Debug, Args)]
pub struct TagFlags {
    pub source: String,
    /// NAME[:TAG]
    pub target: String,
}

#[derive(Debug, Args)]
pub struct SaveFlags {
    /// File to write instead of standard output
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    #[arg(required = true)]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ImportFlags {
    /// Dockerfile instruction to apply to the image: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, …
    #[arg(short, long)]
    pub change: Vec<String>,
    /// Comment of the image
    #[arg(short, long)]
    pub message: Option<String>,
    /// OS/ARCH[/VARIANT]
    #[arg(long)]
    pub platform: Option<String>,
    /// File, http(s) URL, or `-` for standard input
    pub source: String,
    /// NAME[:TAG]
    pub repository: Option<String>,
}

#[derive(Debug, Args)]
pub struct HistoryFlags {
    #[arg(short, long)]
    pub quiet: bool,
    #[arg(long)]
    pub no_trunc: bool,
    /// Sizes and dates for people
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub human: bool,
    /// `table`, `json`, or a Go template
    #[arg(long)]
    pub format: Option<String>,
    pub image: String,
}

#[derive(Debug, Args)]
pub struct LoginFlags {
    #[arg(short, long)]
    pub username: Option<String>,
    /// Seen by everybody on this host: prefer --password-stdin
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub password: Option<String>,
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// Registry [default: docker.io]
    pub server: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls(super::ImagesFlags),
    /// Show everything about images
    Inspect {
        /// Go template
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(super::RmiFlags),
    /// Remove unused images
    Prune(ImagePruneFlags),
    /// Read all of the image store and check every digest
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the documents about an image that came with it: signatures, bills of materials
    Referrers {
        /// Do not shorten
        #[arg(long)]
        no_trunc: bool,
        /// `table`, `json`, or a Go template
        #[arg(long)]
        format: Option<String>,
        image: String,
    },
    /// Download an image from a registry
    Pull(super::PullFlags),
    /// Upload an image to a registry
    Push(PushFlags),
    /// Give an image a further name
    Tag(TagFlags),
    /// Write images to a tar archive
    Save(SaveFlags),
    /// Load images from a docker-archive or an OCI layout
    Load(super::LoadFlags),
    /// Make an image from a root file system's tar archive
    Import(ImportFlags),
    /// Show how an image was made
    History(HistoryFlags),
}

#[derive(Debug, Args)]
pub struct ImagePruneFlags {
    /// All images that no container uses, not just those without a name
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// until=TIME, label=KEY[=VALUE], label!=…
    #[arg(long)]
    pub filter: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Show what images and containers occupy
    Df {
        #[arg(short, long)]
        verbose: bool,
        /// `table`, `json`, or a Go template
        #[arg(long)]
        format: Option<String>,
    },
    /// Show the engine's state
    Info {
        #[arg(short, long)]
        format: Option<String>,
    },
    /// Show what happens in the engine
    Events(super::EventsFlags),
}
