//! The guest program and the initramfs that holds it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cpio::Archive;

const SOURCE: &str = include_str!("guest.c");

/// Builds the guest program with `cc -static` and packs it; `work` keeps the results. Blocks.
pub fn initramfs(work: &Path) -> io::Result<PathBuf> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys"] {
        archive.directory(directory);
    }
    archive.device("dev/console", 5, 1);
    archive.program("init", &guest_program(work)?);
    let path = work.join("contract.cpio");
    std::fs::write(&path, archive.finish())?;
    Ok(path)
}

/// The guest program, a static executable. Blocks.
pub fn guest_program(work: &Path) -> io::Result<Vec<u8>> {
    let (source, program) = (work.join("contract-guest.c"), work.join("contract-guest"));
    std::fs::write(&source, SOURCE)?;
    let done = Command::new("cc")
        .args(["-static", "-Os", "-s", "-o"])
        .args([&program, &source])
        .output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(io::Error::other(format!("cc -static: {} {said}", done.status)));
    }
    std::fs::read(program)
}
