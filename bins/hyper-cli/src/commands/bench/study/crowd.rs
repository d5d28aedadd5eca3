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

/// From here on it is looked first whether the host has the memory.
const MANY: u32 = 20;

pub async fn run(subject: &Subject, settings: &Settings, job: &Job, count: u32) -> Yield {
    let mut all = Yield::default();
    if count >= MANY
        && let Some(why) = too_many(subject, settings, job, count).await
    {
        for step in &job.steps {
            fail(step, &why, &mut all);
        }
        return all;
    }
    let names: Vec<String> = (0..count).map(|_| subject::name()).collect();
    let before = machine::available();
    let started = Instant::now();
    let outcomes = join_all(names.iter().map(|name| start(subject, settings, job, name))).await;
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

/// Starts one that stays; its id.
async fn start(
    subject: &Subject,
    settings: &Settings,
    job: &Job,
    name: &str,
) -> Result<String, String> {
    let options = ["-d", "--network", "none", "--cpus", "1", "--memory", MEMORY];
    match subject.limited(settings, name, &options, &["sleep", "100000"]) {
        Some(mut command) => {
            let ended = process::run(&mut command, job.deadline()).await?;
            ended.failure().map_or(Ok(ended.stdout), Err)
        }
        None => Err("no containers".to_owned()),
    }
}

/// Why the host has no room for as many, judged by one alone: of many, each needs less, by what they share.
async fn too_many(subject: &Subject, settings: &Settings, job: &Job, count: u32) -> Option<String> {
    let name = subject::name();
    let one = start(subject, settings, job, &name).await;
    let bytes = one.ok().and_then(|id| pss::of_containers(&[id.trim()]));
    subject.remove(&[name]).await;
    let (needed, there) = (bytes?.saturating_mul(u64::from(count)), machine::available());
    let mib = |bytes: u64| bytes >> 20;
    (needed > there).then(|| {
        format!(
            "{count} of {} MiB each do not fit into the {} MiB that the host has available",
            mib(bytes.unwrap_or_default()),
            mib(there)
        )
    })
}
