//! The project's own chores, for people and for CI: `cargo xtask VERB`.
//!
//! - [`check`]: the tree against what ARCHITECTURE.md says of it.
//! - [`initramfs`]: the guest's first file system, with the agent in it.
//! - [`lab`]: a machine with a real `/dev/kvm` around one command.
#![forbid(unsafe_code)]

mod check;
#[path = "../../crates/hyper-hypervisor/src/contract/cpio.rs"]
mod cpio;
mod initramfs;
mod lab;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    /// Runs a command as root on a machine with a working /dev/kvm, made of QEMU and this one.
    Lab(lab::Arguments),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::Check => check::check(&workspace()?)?,
        Verb::Initramfs(arguments) => initramfs::run(&workspace()?, &arguments)?,
        Verb::Lab(arguments) => return Ok(lab::run(&arguments)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory of the workspace this program was built from.
fn workspace() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask is not in a workspace")?.to_owned())
}
