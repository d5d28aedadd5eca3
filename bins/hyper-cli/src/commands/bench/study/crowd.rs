//! Containers started all at once, and the memory of all their processes on the host.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hyper_bench::plan::Job;
use hyper_bench::results::Settings;
use hyper_bench::script::{Yield, fail};

use super::super::pss;
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
    let pss = pss::of_containers(&ids);
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
