//! The guest program and the initramfs that holds it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("guest.c");

/// Builds the guest program with `cc -static` and packs it; `work` keeps the results. Blocks.
pub fn initramfs(work: &Path) -> io::Result<PathBuf> {
    let mut archive = Cpio::default();
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

/// Writer of a "newc" cpio archive: Linux, Documentation/driver-api/early-userspace/buffer-format.
#[derive(Debug, Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: usize,
}

impl Cpio {
    pub fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), b"");
    }

    /// A character device.
    pub fn device(&mut self, name: &str, major: usize, minor: usize) {
        self.entry(name, 0o020_600, (major, minor), b"");
    }

    pub fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, (0, 0), content);
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: usize, device: (usize, usize), content: &[u8]) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            device.0,
            device.1,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
