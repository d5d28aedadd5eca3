//! What could leak on the host: counted before and after, by a test that is alone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::turn::Alone;

/// A look at everything that pods take from the host.
#[derive(Debug, PartialEq, Eq)]
pub struct Host {
    pub links: BTreeSet<String>,
    pub namespaces: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    pub loops: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
    /// Command names of supervisors, hypervisors and their helpers.
    pub processes: Vec<String>,
}

impl Host {
    /// Looks until nothing changes any more: links of pods that are gone take the kernel a while.
    pub fn at_rest(_: &Alone, marker: &str) -> Self {
        let mut before = Self::look(marker);
        for _ in 0..50 {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let now = Self::look(marker);
            if now == before {
                break;
            }
            before = now;
        }
        before
    }

    /// Looks now. Processes are those whose command line has `marker`, a path of the engine.
    pub fn look(marker: &str) -> Self {
        Self {
            // A bridge is hyperd's, for as long as it runs.
            links: names("/sys/class/net")
                .into_iter()
                .filter(|name| !name.starts_with("hy-"))
                .collect(),
            namespaces: names("/run/netns"),
            mounts: fs::read_to_string("/proc/self/mounts")
                .unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect(),
            loops: names("/sys/block")
                .into_iter()
                .filter(|name| {
                    name.starts_with("loop")
                        && fs::metadata(format!("/sys/block/{name}/loop/backing_file")).is_ok()
                })
                .collect(),
            cgroups: hyper_cgroups(),
            processes: processes(marker),
        }
    }
}

/// The disk of the host that `directory` is on, e.g. `/dev/vda`; `None`: it is in memory, or on an overlay.
pub fn disk_of(directory: &Path) -> Option<String> {
    let number = fs::metadata(directory).expect("a directory").dev();
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
    let own = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let disk = if own.join("partition").exists() { own.parent().expect("its disk") } else { &own };
    Some(format!("/dev/{}", disk.file_name().expect("a name").display()))
}

fn names(directory: &str) -> BTreeSet<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Cgroups that carry our name, in every hierarchy.
fn hyper_cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut queue = vec![(std::path::PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((directory, depth)) = queue.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || depth > 5 {
                continue;
            }
            let path = entry.path();
            if depth > 1 && path.components().any(|part| part.as_os_str() == "hyper") {
                found.insert(path.display().to_string());
            }
            queue.push((path, depth + 1));
        }
    }
    found
}

/// Command names of processes whose command line, environment or directory has `marker`, but for hyperd.
pub fn processes(marker: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(line) = fs::read(path.join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        let ours = line.contains(marker)
            || String::from_utf8_lossy(&environment).contains(marker)
            || fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(marker));
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if ours && !line.contains("hyperd ") && !line.is_empty() {
            found.push(name.trim().to_owned());
        }
    }
    found.sort();
    found
}
