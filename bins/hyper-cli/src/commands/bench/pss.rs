//! The proportional set size of containers: what they take of the host's memory, with supervisors, hypervisors and whatever
//! else runs for them; pages that several share are counted once.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of all [`processes`] of the containers. `None` if one that still runs does not let itself be read.
pub fn of_containers(ids: &[&str]) -> Option<u64> {
    let mut sum = 0;
    for pid in processes(ids) {
        match std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(text) => {
                let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
                let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
                sum += kib.unwrap_or(0) << 10;
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return None,
            // Gone meanwhile, or without memory of its own.
            Err(_) => {}
        }
    }
    Some(sum)
}

/// Processes that name one of the containers, and all below them.
pub fn processes(ids: &[&str]) -> BTreeSet<u32> {
    let mut parents = BTreeMap::new();
    let mut ours = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in brackets may hold anything.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
        let parent = fields.and_then(|mut fields| fields.nth(1)?.parse::<u32>().ok());
        parents.insert(pid, parent.unwrap_or(0));
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        // The client that asked for it is no part of it.
        if pid != std::process::id() && ids.iter().any(|id| id.len() >= 12 && command.contains(id))
        {
            ours.insert(pid);
        }
    }
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| !ours.contains(pid) && ours.contains(parent))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        ours.extend(more);
    }
    ours
}
