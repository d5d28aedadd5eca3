//! The project's own chores, for people and for CI: `cargo xtask VERB`.
//!
//! - [`check`]: the tree against what ARCHITECTURE.md says of it.
//! - [`initramfs`]: the guest's first file system, with the agent in it.
#![forbid(unsafe_code)]

mod check;
mod initramfs;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Chores of the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Holds the tree against ARCHITECTURE.md and CONTRIBUTING.md.
    Check,
    /// Builds the agent for the guest and packs it.
    Initramfs(initramfs::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Check => check::check(&workspace()?),
        Verb::Initramfs(arguments) => initramfs::run(&workspace()?, &arguments),
    }
}

/// The directory of the workspace this program was built from.
fn workspace() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask is not in a workspace")?.to_owned())
}
