//! The limits that containers have, for processes of the host: a cgroup, of either version.
//!
//! Invariant: the group goes with its owner; what a killed one left goes at the next start.

use std::fs::{create_dir, read_dir, remove_dir, write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

const BASE: &str = "/sys/fs/cgroup";
const PREFIX: &str = "hyper-bench-";

/// Directories of one group; processes enter by writing 0 into each one's `cgroup.procs`.
pub struct Limits {
    pub dirs: Vec<PathBuf>,
}

impl Limits {
    pub fn new(cpus: u32, memory: u64) -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{}", std::process::id());
        let base = Path::new(BASE);
        let quota = u64::from(cpus) * 100_000;
        let settings = match base.join("cgroup.controllers").exists() {
            true => vec![
                (base.join(&name), "cpu.max", format!("{quota} 100000")),
                (base.join(&name), "memory.max", memory.to_string()),
            ],
            false => vec![
                (base.join("cpu").join(&name), "cpu.cfs_quota_us", quota.to_string()),
                (base.join("memory").join(&name), "memory.limit_in_bytes", memory.to_string()),
            ],
        };
        let mut limits = Self { dirs: Vec::new() };
        for (dir, file, value) in settings {
            if !limits.dirs.contains(&dir) {
                create_dir(&dir).with_context(|| format!("make the cgroup `{}`", dir.display()))?;
                limits.dirs.push(dir.clone());
            }
            write(dir.join(file), value)
                .with_context(|| format!("limit by `{}`", dir.join(file).display()))?;
        }
        Ok(limits)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.dirs.iter().for_each(|dir| remove(dir));
    }
}

/// Removes groups whose makers are gone.
pub fn sweep() {
    for base in ["", "cpu", "memory"] {
        for entry in read_dir(Path::new(BASE).join(base)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if maker.is_some_and(|maker| !Path::new("/proc").join(maker).exists()) {
                remove(&entry.path());
            }
        }
    }
}

/// Its last process may not be reaped yet.
fn remove(dir: &Path) {
    for _ in 0..30 {
        match remove_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => return,
        }
    }
}
