//! Check that guests leave nothing on the host.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::session::{Session, Shape, disk};
use super::{Fixture, Verdict, hold};
use crate::Hypervisor;

/// Processes, cgroups, mounts, descriptors, files: after several ends all is as before.
pub async fn nothing(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let disks = vec![disk(fixture, "left", 1, &[4096, 8192])?];
    let shape = Shape { disks, ..Shape::default() };
    // The first guest makes the runtime acquire what it keeps (signal pipe, threads).
    drop(Session::boot(hypervisor, fixture, shape.clone()).await?);
    let mut before = Snapshot::take();
    settle(&mut before).await;
    for dropped in [true, false] {
        let session = Session::boot(hypervisor, fixture, shape.clone()).await?;
        let (pid, run_dir) = (session.vm.pid(), session.run_dir.clone());
        if dropped {
            drop(session);
        } else {
            session.vm.kill().await;
            drop(session);
        }
        let id = run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let left = before.left(&id, pid, &run_dir);
            if left.is_empty() {
                break;
            }
            hold!(Instant::now() < limit, "after drop ({dropped}) or kill: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// What this process and the host hold.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    children: BTreeSet<u32>,
    descriptors: usize,
    mounts: usize,
}

/// Waits until what the first guest held is released, so that it does not hide a leak.
async fn settle(before: &mut Snapshot) {
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = Snapshot::take();
        let calm = now == *before;
        *before = now;
        if calm && before.children.is_empty() {
            return;
        }
    }
}

impl Snapshot {
    fn take() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            children: descendants(std::process::id()),
            descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            mounts: mounts.lines().count(),
        }
    }

    /// What there is beyond this snapshot.
    fn left(&self, id: &str, pid: u32, run_dir: &Path) -> Vec<String> {
        let now = Self::take();
        let mut left = Vec::new();
        if Path::new(&format!("/proc/{pid}")).exists() {
            left.push(format!("process {pid}"));
        }
        left.extend(now.children.difference(&self.children).map(|pid| format!("child {pid}")));
        if now.descriptors > self.descriptors {
            left.push(format!("{} descriptors, were {}", now.descriptors, self.descriptors));
        }
        if now.mounts > self.mounts {
            left.push(format!("{} mounts, were {}", now.mounts, self.mounts));
        }
        named(Path::new("/sys/fs/cgroup"), id, 6, &mut left);
        let files = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
        left.extend(files.map(|entry| entry.path().display().to_string()));
        left
    }
}

/// All processes below one, by their parents: proc(5), `stat` field 4.
fn descendants(root: u32) -> BTreeSet<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rfind(')').and_then(|at| stat[at + 1..].split_whitespace().nth(1));
        parents.extend(parent.and_then(|text| text.parse().ok()).map(|parent: u32| (pid, parent)));
    }
    let mut found = BTreeSet::from([root]);
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.remove(&root);
    found
}

/// Cgroups whose name holds `id`.
fn named(directory: &Path, id: &str, depth: u32, found: &mut Vec<String>) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().contains(id) {
            found.push(entry.path().display().to_string());
        } else if depth > 0 {
            named(&entry.path(), id, depth - 1, found);
        }
    }
}
