//! `bench many`: how many pods a host holds, how fast they come and go, and what each takes.
//!
//! Pods are started some at once and stay. At 1, 10, 100 and the last the figures are taken; then something is run in
//! each, all are removed, and what is left of them on the host is counted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::stream::{self, StreamExt as _};
use hyper_bench::statistics::sorted;
use serde_json::{Value, json};

use super::study::process;
use super::{pss, quantile};
use crate::arguments::BenchManyFlags;
use crate::client::Client;

/// Where figures are taken, and at the end.
const MARKS: [usize; 3] = [1, 10, 100];
/// Of one command.
const DEADLINE: Duration = Duration::from_secs(600);
/// What runs after a start comes to rest.
const REST: Duration = Duration::from_secs(3);
/// What runs after a removal comes to an end.
const SETTLED: Duration = Duration::from_secs(30);

pub async fn many(client: &Client, flags: BenchManyFlags) -> anyhow::Result<i32> {
    let hyper = Hyper {
        socket: format!("unix://{}", client.socket().display()),
        flags: &flags,
        stem: format!("many-{}", std::process::id()),
    };
    let before = Left::look();
    let mut pods = Vec::new();
    let measured = tokio::select! {
        measured = hyper.measure(&mut pods) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped by Ctrl-C")),
    };
    let removed = hyper.remove(measured.is_err()).await;
    let mut report = measured?;
    report["remove"] = removed?;
    let ids: Vec<&str> = pods.iter().map(String::as_str).collect();
    report["left"] = before.settled(&ids).await;
    match flags.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print(&report),
    }
    Ok(i32::from(report["left"] != json!({ "processes": 0, "interfaces": 0, "mounts": 0 })))
}

struct Hyper<'a> {
    socket: String,
    flags: &'a BenchManyFlags,
    stem: String,
}

impl Hyper<'_> {
    /// Milliseconds and output of one command.
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<(f64, String)> {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.args(["-H", &self.socket]).args(arguments);
        let started = Instant::now();
        let ended = process::run(&mut command, DEADLINE).await.map_err(anyhow::Error::msg)?;
        match ended.failure() {
            None => Ok((started.elapsed().as_secs_f64() * 1e3, ended.stdout.trim().to_owned())),
            Some(why) => bail!("hyper {}: {why}", arguments.join(" ")),
        }
    }

    fn name(&self, pod: usize) -> String {
        format!("{}-{pod}", self.stem)
    }

    fn count(&self) -> usize {
        usize::try_from(self.flags.pods).unwrap_or(usize::MAX)
    }

    async fn start(&self, pod: usize) -> anyhow::Result<(f64, String)> {
        let name = self.name(pod);
        let mut words = vec!["run", "-d", "--name", &name, "--runtime", &self.flags.runtime];
        for (flag, value) in [("--network", &self.flags.network), ("--memory", &self.flags.memory)]
        {
            words.extend(value.iter().flat_map(|value| [flag, value.as_str()]));
        }
        words.extend([self.flags.image.as_str(), "sleep", "1000000"]);
        self.run(&words).await
    }

    /// Every command for every pod, some at once.
    async fn each<'a, F>(
        &'a self,
        pods: std::ops::Range<usize>,
        what: impl Fn(usize) -> F,
    ) -> anyhow::Result<Vec<(f64, String)>>
    where
        F: Future<Output = anyhow::Result<(f64, String)>> + 'a,
    {
        let at_once = usize::try_from(self.flags.at_once).unwrap_or(1).max(1);
        let all: Vec<_> = stream::iter(pods.map(what)).buffer_unordered(at_once).collect().await;
        all.into_iter().collect()
    }

    async fn measure(&self, pods: &mut Vec<String>) -> anyhow::Result<Value> {
        let last = self.count();
        let marks = MARKS.into_iter().filter(|mark| *mark < last).chain([last]);
        let mut rows = Vec::new();
        for mark in marks {
            let from = pods.len();
            let started = Instant::now();
            let new = self.each(from..mark, |pod| self.start(pod)).await?;
            let seconds = started.elapsed().as_secs_f64();
            let walls = sorted(new.iter().map(|(wall, _)| *wall));
            pods.extend(new.into_iter().map(|(_, id)| id));
            tokio::time::sleep(REST).await;
            let ids: Vec<&str> = pods.iter().map(String::as_str).collect();
            let bytes =
                pss::of_containers(&ids).context("the processes' memory needs root to read")?;
            let (list, _) = self.run(&["ps", "-q"]).await?;
            #[expect(clippy::cast_precision_loss, reason = "bytes of one machine, few pods")]
            rows.push(json!({
                "pods": mark,
                "started": mark - from,
                "seconds": seconds,
                "per_second": (mark - from) as f64 / seconds,
                "start_ms": { "median": quantile(&walls, 0.5), "p95": quantile(&walls, 0.95) },
                "pss_mib_per_pod": bytes as f64 / f64::from(1 << 20) / mark as f64,
                "list_ms": list,
            }));
            eprintln!("bench: {mark} of {last} pods run");
        }
        let exec = self
            .each(0..last, |pod| async move { self.run(&["exec", &self.name(pod), "true"]).await });
        let walls = sorted(exec.await?.iter().map(|(wall, _)| *wall));
        Ok(json!({
            "runtime": self.flags.runtime,
            "at_once": self.flags.at_once,
            "rows": rows,
            "exec_ms": { "median": quantile(&walls, 0.5), "p95": quantile(&walls, 0.95) },
        }))
    }

    /// Removes all there are; after a failure also those that nobody counted.
    async fn remove(&self, failed: bool) -> anyhow::Result<Value> {
        let started = Instant::now();
        let remove = |pod: usize| async move { self.run(&["rm", "-f", &self.name(pod)]).await };
        let removed = self.each(0..self.count(), remove).await;
        let seconds = started.elapsed().as_secs_f64();
        if let Err(error) = removed
            && !failed
        {
            return Err(error);
        }
        #[expect(clippy::cast_precision_loss, reason = "few pods")]
        Ok(json!({ "seconds": seconds, "per_second": self.count() as f64 / seconds }))
    }
}

/// What pods have on the host beside their processes.
#[derive(Clone, Copy)]
struct Left {
    interfaces: usize,
    mounts: usize,
}

impl Left {
    fn look() -> Self {
        let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        // A bridge is its network's, and stays.
        let links = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with("hy-"));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { interfaces: links.count(), mounts: mounts.lines().count() }
    }

    /// What there is more than before, once it becomes no less.
    async fn settled(self, ids: &[&str]) -> Value {
        let until = Instant::now() + SETTLED;
        loop {
            let now = Self::look();
            let left = json!({
                "processes": pss::processes(ids).len(),
                "interfaces": now.interfaces.saturating_sub(self.interfaces),
                "mounts": now.mounts.saturating_sub(self.mounts),
            });
            let clean = left.as_object().is_some_and(|all| all.values().all(|count| *count == 0));
            if clean || Instant::now() > until {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn print(report: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    println!(
        "{:>6} {:>9} {:>12} {:>10} {:>14} {:>9}",
        "pods", "pods/s", "start ms", "p95", "PSS MiB/pod", "list ms"
    );
    for row in report["rows"].as_array().into_iter().flatten() {
        println!(
            "{:>6} {:>9.2} {:>12.0} {:>10.0} {:>14.1} {:>9.0}",
            row["pods"].as_u64().unwrap_or_default(),
            number(&row["per_second"]),
            number(&row["start_ms"]["median"]),
            number(&row["start_ms"]["p95"]),
            number(&row["pss_mib_per_pod"]),
            number(&row["list_ms"]),
        );
    }
    let (exec, remove, left) = (&report["exec_ms"], &report["remove"], &report["left"]);
    println!("exec: median {:.0} ms, p95 {:.0} ms", number(&exec["median"]), number(&exec["p95"]));
    println!(
        "removed in {:.1} s: {:.2} a second",
        number(&remove["seconds"]),
        number(&remove["per_second"])
    );
    println!(
        "left: {} processes, {} interfaces, {} mounts",
        left["processes"], left["interfaces"], left["mounts"]
    );
}
