//! Builds the agent as one static program and packs it into an initramfs.
//!
//! Every byte is memory of every pod: no compression (the kernel would hold both forms for a
//! while), no libraries, no symbols. The same sources give the same bytes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::cpio::Archive;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the archive goes.
    #[arg(long, default_value = "target/guest/initramfs.cpio")]
    out: PathBuf,
}

/// Named, so that flags for the guest do not apply to build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// One file that needs no loader, at fixed addresses: no relocation touches its pages.
const RUSTFLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Directories of the archive: where the root is made, and devices for PID 1's first steps.
const DIRECTORIES: [&str; 2] = ["dev", "root"];
/// Character devices: name, major, minor. Standard streams, and what Rust opens if there are none.
const DEVICES: [(&str, u32, u32); 2] = [("dev/console", 5, 1), ("dev/null", 1, 3)];

pub(crate) fn run(workspace: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let agent = build(workspace)?;
    let program = fs::read(&agent).with_context(|| format!("read {}", agent.display()))?;
    let out = workspace.join(&arguments.out);
    let archive = pack(&program);
    if fs::read(&out).is_ok_and(|known| known == archive) {
        println!("{}: unchanged, {} bytes", out.display(), archive.len());
        return Ok(());
    }
    if let Some(directory) = out.parent() {
        fs::create_dir_all(directory)?;
    }
    // In one step: a pod may be starting from the old one.
    let fresh = out.with_extension("new");
    fs::write(&fresh, &archive).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, &out)?;
    println!("{}: {} bytes, agent {} bytes", out.display(), archive.len(), program.len());
    Ok(())
}

fn build(workspace: &Path) -> anyhow::Result<PathBuf> {
    // A directory of its own: other flags would throw away what cargo keeps for the host.
    let target = workspace.join("target/guest-build");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--profile", "guest", "--package", "hyperstart", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(workspace)
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "cargo could not build hyperstart: {status}");
    Ok(target.join(TARGET).join("guest/hyperstart"))
}

fn pack(program: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in DIRECTORIES {
        archive.directory(name);
    }
    for (name, major, minor) in DEVICES {
        archive.device(name, major, minor);
    }
    archive.program("init", program);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Stdio};

    use super::*;

    #[test]
    fn cpio_reads_what_is_packed() {
        let archive = pack(b"program");
        let mut list = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        list.stdin.take().unwrap().write_all(&archive).unwrap();
        let list = String::from_utf8(list.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 5, "{list}");
        assert!(lines[2].starts_with("crw-------") && lines[2].contains("5,   1"), "{list}");
        assert!(lines[4].starts_with("-rwxr-xr-x") && lines[4].ends_with("init"), "{list}");
        assert_eq!(archive, pack(b"program"), "the same bytes each time");
    }
}
