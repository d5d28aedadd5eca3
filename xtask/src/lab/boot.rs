//! What the laboratory's kernel starts with: an initramfs with busybox, the few modules that the
//! root needs, and all that this run is about. Made anew for each run; nothing is left of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, ensure};

use super::kernel::{Kernel, find};
use crate::cpio::Archive;

const INIT: &str = include_str!("init.sh");
const MAIN: &str = include_str!("main.sh");
const DIRECTORIES: [&str; 10] =
    ["bin", "dev", "host", "lab", "modules", "proc", "root", "scratch", "sys", "tmp"];
const MODULES: [&str; 5] = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console"];
const DISK_MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
/// Variables that go in: exact names, and beginnings of names.
const NAMES: [&str; 7] = ["HOME", "LANG", "LOGNAME", "PATH", "TERM", "TMPDIR", "USER"];
const BEGINNINGS: [&str; 4] = ["CARGO", "HYPER_", "LC_", "RUST"];

/// One run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) command: &'a [OsString],
    /// `NAME` or `NAME=VALUE`, beside what always goes in.
    pub(super) environment: &'a [OsString],
    pub(super) directory: &'a Path,
    pub(super) copies: &'a [PathBuf],
    /// `v1` or `v2`.
    pub(super) cgroup: &'a str,
    pub(super) disk: bool,
    /// Follows the last byte of each output stream.
    pub(super) mark: &'a [u8],
}

impl Run<'_> {
    /// The initramfs.
    pub(super) fn pack(&self, kernel: &Kernel) -> anyhow::Result<Vec<u8>> {
        let mut archive = Archive::default();
        for name in DIRECTORIES {
            archive.directory(name);
        }
        archive.device("dev/console", 5, 1);
        archive.device("dev/null", 1, 3);
        let busybox = find("busybox").context("no busybox")?;
        let program = read(&busybox)?;
        let advice =
            || format!("`{}` is not static: apt-get install busybox-static", busybox.display());
        ensure!(!has_loader(&program), advice());
        archive.program("bin/busybox", &program);
        archive.program("init", INIT.as_bytes());
        let mut wanted = MODULES.to_vec();
        if self.disk {
            wanted.extend(DISK_MODULES);
        }
        let mut names = Vec::new();
        for file in kernel.order(&wanted)? {
            let (name, content) = module(&kernel.modules.join(file))?;
            archive.file(&format!("modules/{name}"), &content);
            names.push(name);
        }
        archive.file("lab/settings", &self.settings(kernel, &names.join(" ")));
        archive.file("lab/main.sh", MAIN.as_bytes());
        archive.file("lab/command", &self.script());
        archive.file("lab/mark", self.mark);
        for (at, path) in self.copies.iter().enumerate() {
            archive.file(&format!("lab/copy.{}", at + 1), path.as_os_str().as_bytes());
        }
        Ok(archive.finish())
    }

    fn settings(&self, kernel: &Kernel, modules: &str) -> Vec<u8> {
        let mut text = Vec::new();
        for (name, value) in [
            ("MODULES", OsStr::new(modules)),
            ("RELEASE", OsStr::new(&kernel.release)),
            ("MODULES_DIRECTORY", kernel.modules.as_os_str()),
            ("CGROUP", OsStr::new(self.cgroup)),
            ("SCRATCH", OsStr::new(if self.disk { "disk" } else { "memory" })),
            ("COPIES", OsStr::new(&self.copies.len().to_string())),
        ] {
            assign(&mut text, OsStr::new(name), value);
        }
        text
    }

    /// The command for `sh`: in its directory, with its environment. 127 when there is none such.
    fn script(&self) -> Vec<u8> {
        let mut text = b"cd ".to_vec();
        quote(&mut text, self.directory.as_os_str());
        text.extend(b" || exit 125\n");
        for (name, value) in env::vars_os().filter(|(name, _)| passed(name)) {
            text.extend(b"export ");
            assign(&mut text, &name, &value);
        }
        for given in self.environment {
            let mut parts = given.as_bytes().splitn(2, |byte| *byte == b'=');
            let name = OsStr::from_bytes(parts.next().unwrap_or_default());
            let value = match parts.next() {
                Some(value) => Some(OsStr::from_bytes(value).to_owned()),
                None => env::var_os(name),
            };
            if let (Some(value), true) = (value, is_name(name)) {
                text.extend(b"export ");
                assign(&mut text, name, &value);
            }
        }
        text.extend(b"exec");
        for word in self.command {
            text.push(b' ');
            quote(&mut text, word);
        }
        text.push(b'\n');
        text
    }
}

fn passed(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    is_name(name)
        && (NAMES.iter().any(|known| name == *known)
            || BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning.as_bytes())))
}

/// What a shell can export.
fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|first| !first.is_ascii_digit())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn assign(text: &mut Vec<u8>, name: &OsStr, value: &OsStr) {
    text.extend(name.as_bytes());
    text.push(b'=');
    quote(text, value);
    text.push(b'\n');
}

fn quote(text: &mut Vec<u8>, word: &OsStr) {
    text.push(b'\'');
    for byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend(br"'\''"),
            byte => text.push(*byte),
        }
    }
    text.push(b'\'');
}

/// A module as `insmod` takes it: later Debians compress theirs.
fn module(path: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let name = path.file_name().and_then(OsStr::to_str).context("a module's name")?;
    let Some(plain) = name.strip_suffix(".xz") else { return Ok((name.to_owned(), read(path)?)) };
    let output = Command::new("xz").arg("-dc").arg(path).output().context("run xz")?;
    ensure!(output.status.success(), "xz -dc {}: {}", path.display(), output.status);
    Ok((plain.to_owned(), output.stdout))
}

/// Whether a program (ELF, 64 bits) asks for a loader.
fn has_loader(program: &[u8]) -> bool {
    const INTERPRETER: &[u8] = &[3, 0, 0, 0];
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size).unwrap_or_default();
        bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 4), number(54, 2), number(56, 2));
    (0..count).any(|at| {
        program.get(table + at * size..).is_some_and(|header| header.starts_with(INTERPRETER))
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_loader_is_known() {
        assert!(has_loader(&fs::read("/bin/sh").unwrap()));
        assert!(!has_loader(&fs::read("/bin/busybox").unwrap()));
        assert!(!has_loader(b"\x7fELF"));
    }

    #[test]
    fn words_reach_the_command_as_they_are() {
        let command = ["printf", "%s|", "a b", "it's", "$HOME", "", "\\n\""].map(OsString::from);
        let environment = ["LAB_X='y z'", "LAB BAD=1"].map(OsString::from);
        let run = Run {
            command: &command,
            environment: &environment,
            directory: Path::new("/"),
            copies: &[],
            cgroup: "v2",
            disk: false,
            mark: b"",
        };
        let script = run.script();
        let output =
            Command::new("/bin/sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$HOME||\\n\"|", "{output:?}");
        let text = String::from_utf8_lossy(&script).into_owned();
        assert!(text.contains(r"export LAB_X=''\''y z'\'''") && !text.contains("BAD"), "{text}");
    }
}
