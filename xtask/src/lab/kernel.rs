//! The laboratory's kernel: Debian's, from its package, unpacked into a cache and never installed.
//!
//! `~/.cache/hyper/lab/PACKAGE_VERSION/` has `boot/vmlinuz-…`, unpacked `boot/vmlinux-…` (emulated,
//! unpacking takes 3 to 6 s of every start) and `lib/modules/…`; it appears in one step, complete. An older version goes when a newer one has come.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, thread};

use anyhow::{Context as _, bail, ensure};

/// Depends on the package with the kernel itself; has 9p, which Debian's cloud kernel has not.
const META: &str = "linux-image-amd64";
/// Drivers of hardware that no laboratory has: three quarters of the package.
const EXCLUDED: [&str; 19] = [
    "sound",
    "drivers/bluetooth",
    "drivers/gpu",
    "drivers/hid",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/input",
    "drivers/isdn",
    "drivers/media",
    "drivers/mtd",
    "drivers/net/can",
    "drivers/net/ethernet",
    "drivers/net/usb",
    "drivers/net/wireless",
    "drivers/scsi",
    "drivers/staging",
    "drivers/usb",
    "drivers/video",
];

/// A kernel with its modules.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// As `uname -r` says it.
    pub(super) release: String,
    /// What belongs at `/lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The newest kernel that apt knows, or, where apt cannot tell, the newest there is already.
    /// Apt's lists may be missing or too old to download by: then they are brought up to date.
    pub(super) fn get() -> anyhow::Result<Self> {
        let cache = cache()?;
        Self::get_as_listed(&cache).or_else(|problem| {
            eprintln!("lab: {problem:#}; running apt-get update");
            run(Command::new("apt-get").args(["-q", "update"]).stdout(Stdio::null()))
                .with_context(|| format!("{problem:#}"))?;
            Self::get_as_listed(&cache)
        })
    }

    fn get_as_listed(cache: &Path) -> anyhow::Result<Self> {
        let (package, version) = match candidate() {
            Ok(found) => found,
            Err(problem) => {
                let Some(known) = newest(cache) else { return Err(problem) };
                return Self::at(&known);
            }
        };
        let directory = cache.join(format!("{package}_{}", version.replace(':', "%")));
        if !directory.exists() {
            fetch(cache, &package, &version, &directory)?;
        }
        Self::at(&directory)
    }

    fn at(directory: &Path) -> anyhow::Result<Self> {
        let modules = only(&directory.join("lib/modules"))?;
        let release = modules.file_name().and_then(OsStr::to_str).context("a release's name")?;
        let mut images = ["vmlinux", "vmlinuz"]
            .iter()
            .map(|name| directory.join(format!("boot/{name}-{release}")));
        let image = images
            .find(|image| image.exists())
            .with_context(|| format!("no kernel in `{}`: remove it", directory.display()))?;
        Ok(Self { image, release: release.to_owned(), modules })
    }

    /// Files below `modules` for these modules, in the order in which they must be loaded.
    pub(super) fn order(&self, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let read = |name: &str| {
            let path = self.modules.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        order(&read("modules.dep")?, &read("modules.builtin")?, wanted)
    }
}

/// Programs that are called, and the packages they are in.
const PROGRAMS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("setpriv", "util-linux"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("mke2fs", "e2fsprogs"),
];

/// Checks that every program is there.
pub(super) fn programs() -> anyhow::Result<()> {
    let lacking: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    ensure!(
        lacking.is_empty(),
        "missing Debian packages: {}: run `scripts/deps test`, or apt-get install them",
        lacking.join(" ")
    );
    Ok(())
}

/// A program on the PATH, or where the superuser's are.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

fn cache() -> anyhow::Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: no place for the kernel")?;
    let cache = base.join("hyper/lab");
    fs::create_dir_all(&cache).with_context(|| format!("make `{}`", cache.display()))?;
    // The laboratory sees it under the same name.
    fs::canonicalize(&cache).with_context(|| format!("find `{}`", cache.display()))
}

/// Name and version of the package with the kernel.
fn candidate() -> anyhow::Result<(String, String)> {
    let hint = "the laboratory's kernel comes from Debian: run `apt-get update` on a Debian host";
    let shown = Command::new("apt-cache")
        .args(["show", "--no-all-versions", META])
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("run apt-cache: {hint}"))?;
    parse_candidate(&String::from_utf8_lossy(&shown.stdout))
        .with_context(|| format!("apt knows no package `{META}`: {hint}"))
}

/// Out of `Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)`.
fn parse_candidate(shown: &str) -> Option<(String, String)> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let (package, version) =
        depends.split(", ").find(|one| one.starts_with("linux-image-"))?.split_once(" (= ")?;
    Some((package.to_owned(), version.strip_suffix(')')?.to_owned()))
}

fn newest(cache: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(cache).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join("boot").is_dir())
        .max_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

fn fetch(cache: &Path, package: &str, version: &str, directory: &Path) -> anyhow::Result<()> {
    eprintln!("lab: getting {package} {version} (once; about 70 MB)");
    // The name begins with a dot: not a kernel yet. Another laboratory may be doing the same.
    let work = cache.join(format!(".new.{}", std::process::id()));
    let result = unpack(&work, package, version, directory);
    // What is left of a failure goes; after success there is only the package.
    let _ = fs::remove_dir_all(&work);
    result?;
    for entry in fs::read_dir(cache)?.flatten().map(|entry| entry.path()) {
        let other = entry != directory && entry.join("boot").is_dir();
        if other && entry.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
        {
            let _ = fs::remove_dir_all(&entry);
        }
    }
    Ok(())
}

fn unpack(work: &Path, package: &str, version: &str, directory: &Path) -> anyhow::Result<()> {
    let root = work.join("root");
    fs::create_dir_all(&root).with_context(|| format!("make `{}`", root.display()))?;
    run(Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .arg(format!("{package}={version}"))
        .stdout(Stdio::null())
        .current_dir(work))
    .with_context(|| {
        format!("download {package} {version}: no network, or old package lists (`apt-get update`)")
    })?;
    let deb = only_with(work, "deb")?;
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("run dpkg-deb")?;
    let archive = reader.stdout.take().context("dpkg-deb's output")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "-C"]).arg(&root).stdin(archive);
    for name in EXCLUDED {
        tar.arg(format!("--exclude=*/kernel/{name}"));
    }
    let unpacked = run(&mut tar);
    let read = reader.wait().context("wait for dpkg-deb")?;
    unpacked?;
    ensure!(read.success(), "dpkg-deb --fsys-tarfile {}: {read}", deb.display());
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    let modules = only(&root.join("lib/modules"))?;
    let release = modules.file_name().and_then(OsStr::to_str).context("a release's name")?;
    if let Some(kernel) = uncompressed(&root.join(format!("boot/vmlinuz-{release}")))? {
        fs::write(root.join(format!("boot/vmlinux-{release}")), kernel)?;
    }
    let depmod = find("depmod").context("no depmod")?;
    run(Command::new(depmod).arg("-b").arg(&root).arg(release).stderr(Stdio::null()))?;
    match fs::rename(&root, directory) {
        // The other laboratory was quicker.
        Err(_) if directory.exists() => Ok(()),
        renamed => renamed.with_context(|| format!("make `{}`", directory.display())),
    }
}

/// The ELF kernel in a bzImage, which QEMU starts by its PVH entry; `None` where it is not packed
/// by xz. Offsets: the kernel's Documentation/arch/x86/boot.rst.
fn uncompressed(image: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let image = fs::read(image).with_context(|| format!("read `{}`", image.display()))?;
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = image.get(0x1f1).map_or(0, |sectors| usize::from(*sectors)).max(1) + 1;
    let (Some(offset), Some(length)) = (number(0x248), number(0x24c)) else { return Ok(None) };
    // The size of what is unpacked follows the stream.
    let start = sectors * 512 + offset;
    let Some(payload) = image.get(start..start.saturating_add(length.saturating_sub(4))) else {
        return Ok(None);
    };
    if !payload.starts_with(b"\xfd7zXZ\0") {
        return Ok(None);
    }
    let mut xz = Command::new("xz")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run xz (xz-utils)")?;
    let mut input = xz.stdin.take().context("xz's input")?;
    let output = thread::scope(|scope| {
        // What it does not take, its exit code tells.
        scope.spawn(move || input.write_all(payload));
        xz.wait_with_output()
    })?;
    ensure!(output.status.success(), "xz could not unpack the kernel: {}", output.status);
    Ok(output.stdout.starts_with(b"\x7fELF").then_some(output.stdout))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_owned();
    let status = command.status().with_context(|| format!("run {}", program.display()))?;
    ensure!(status.success(), "{} failed: {status}", program.display());
    Ok(())
}

/// The only thing in a directory.
fn only(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(directory)
        .with_context(|| format!("read `{}`", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    match (entries.pop(), entries.pop()) {
        (Some(one), None) => Ok(one),
        _ => bail!("`{}` has not one entry", directory.display()),
    }
}

fn only_with(directory: &Path, extension: &str) -> anyhow::Result<PathBuf> {
    fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("apt-get download left no .{extension} file"))
}

/// `modules.dep` has a line per module, `a.ko: b.ko c.ko`; what is needed first comes last.
fn order(dependencies: &str, builtin: &str, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for name in wanted {
        let line = dependencies.lines().filter_map(|line| line.split_once(':'));
        let Some((file, needs)) = line.into_iter().find(|(file, _)| module(file) == *name) else {
            ensure!(
                builtin.lines().any(|file| module(file) == *name),
                "the kernel has no module `{name}`"
            );
            continue;
        };
        for file in needs.split_whitespace().rev().chain([file]).map(PathBuf::from) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// `kernel/fs/9p/9p.ko.xz` is `9p`; names of modules have no hyphens.
fn module(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dependencies = "kernel/a-one.ko: kernel/b.ko kernel/c.ko.xz\nkernel/b.ko: kernel/c.ko.xz\nkernel/c.ko.xz:\n";
        let files =
            order(dependencies, "kernel/built-in.ko\n", &["b", "a_one", "built_in"]).unwrap();
        assert_eq!(files, ["kernel/c.ko.xz", "kernel/b.ko", "kernel/a-one.ko"].map(PathBuf::from));
        let missing = order(dependencies, "", &["built_in"]).unwrap_err();
        assert_eq!(missing.to_string(), "the kernel has no module `built_in`");
    }

    #[test]
    fn the_package_with_the_kernel_is_found_in_the_meta_package() {
        let shown =
            "Package: linux-image-amd64\nDepends: foo, linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n";
        let found = parse_candidate(shown).unwrap();
        assert_eq!(found, ("linux-image-6.1.0-56-amd64".to_owned(), "6.1.192-2".to_owned()));
        assert_eq!(parse_candidate(""), None);
    }
}
