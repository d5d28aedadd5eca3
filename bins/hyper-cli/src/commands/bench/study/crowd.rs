//! Containers started all at once, and the memory of all their processes on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hyper_bench::plan::Job;
use hyper_bench::results::Settings;
use hyper_bench::script::{Yield, fail};

use super::subject::{self, Subject};
use super::{machine, process};

/// Of each: what a small service gets.
const MEMORY: &str = "128m";

pub async fn run(subject: &Subject, settings: &Settings, job: &Job, count: u32) -> Yield {
    let mut all = Yield::default();
    let names: Vec<String> = (0..count).map(|_| subject::name()).collect();
    let before = machine::available();
    let started = Instant::now();
    let words = ["sleep", "100000"];
    let options = ["-d", "--network", "none", "--cpus", "1", "--memory", MEMORY];
    let runs = names.iter().map(|name| async {
        match subject.limited(settings, name, &options, &words) {
            Some(mut command) => {
                let ended = process::run(&mut command, job.deadline()).await?;
                ended.failure().map_or(Ok(ended.stdout), Err)
            }
            None => Err("no containers".to_owned()),
        }
    });
    let outcomes = join_all(runs).await;
    let wall = started.elapsed().as_secs_f64() * 1e3;
    // Let what runs after a start come to rest.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let less = before.saturating_sub(machine::available());
    let ids: Vec<&str> = outcomes.iter().flatten().map(|id| id.trim()).collect();
    let pss = pss(&ids);
    subject.remove(&names).await;

    let errors: Vec<&String> =
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    let failed = errors.len();
    let share = f64::from(u32::try_from(failed).unwrap_or(count)) * 100.0 / f64::from(count);
    all.values.insert(format!("{}.failed", job.id), share);
    if let Some(error) = errors.first() {
        let why = format!("{failed} of {count} did not start: {error}");
        for step in &job.steps {
            fail(step, &why, &mut all);
        }
        all.errors.remove(&format!("{}.failed", job.id));
        return all;
    }
    #[expect(clippy::cast_precision_loss, reason = "bytes of one machine")]
    let each = |bytes: u64| bytes as f64 / f64::from(1 << 20) / f64::from(count);
    all.values.insert(format!("{}.all", job.id), wall);
    all.values.insert(format!("{}.available", job.id), each(less));
    let key = format!("{}.pss", job.id);
    match pss {
        Some(bytes) => drop(all.values.insert(key, each(bytes))),
        None => drop(all.errors.insert(key, "the processes' memory needs root to read".into())),
    }
    all
}

/// Proportional set size of all processes that name one of the containers, and of all below them. `None` if one that
/// still runs does not let itself be read.
fn pss(ids: &[&str]) -> Option<u64> {
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
    let mut sum = 0;
    for pid in ours {
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
