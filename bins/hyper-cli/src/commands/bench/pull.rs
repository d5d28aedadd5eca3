//! `bench pull`: how long a pull takes until its image can run, here and with dockerd, and what memory it needs.
//!
//! Docker's own client asks both engines, each in turn, so that what differs is the engine. Memory is the highest
//! resident set of the daemon and its children during the pull (`VmHWM`, reset before each).

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use hyper_bench::statistics::sorted;
use serde_json::{Value, json};

use super::{quantile, study};
use crate::arguments::BenchPullFlags;
use crate::client::Client;

pub async fn pull(client: &Client, flags: &BenchPullFlags) -> anyhow::Result<i32> {
    let ours = format!("unix://{}", client.socket().display());
    let mut engines = vec![Engine::new("hyper", &ours)?];
    if study::docker_version(&flags.docker).await.is_ok() {
        engines.push(Engine::new("docker", &flags.docker)?);
    } else {
        eprintln!("bench: no docker engine answers at {}: measured without", flags.docker);
    }
    let mut all = Vec::new();
    for image in &flags.images {
        for round in 0..=flags.runs {
            for engine in &mut engines {
                let sample = engine.pull(image).context(engine.name)?;
                // The first round warms the registry's page cache.
                if round > 0 {
                    engine.samples.push(sample);
                }
            }
            eprint!("\rbench: {image}: round {round} of {}", flags.runs);
        }
        eprintln!();
        all.push(report(image, &mut engines, flags.json));
    }
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(0)
}

struct Engine {
    name: &'static str,
    host: String,
    /// The daemon's.
    pid: u32,
    samples: Vec<Sample>,
}

/// One pull.
struct Sample {
    milliseconds: f64,
    peak_kib: u64,
}

impl Engine {
    fn new(name: &'static str, host: &str) -> anyhow::Result<Self> {
        let path = host.strip_prefix("unix://").context("only unix:// sockets can be measured")?;
        let stream =
            UnixStream::connect(path).with_context(|| format!("connect to {name} at {path}"))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).context("who listens")?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).context("its process id")?;
        Ok(Self { name, host: host.to_owned(), pid, samples: Vec::new() })
    }

    fn pull(&self, image: &str) -> anyhow::Result<Sample> {
        // Whether it was there does not matter.
        let _ = self.docker(&["rmi", "-f", image]);
        for pid in self.processes() {
            // 5 resets the peak; needs root, or the figure is the highest ever.
            let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
        let started = Instant::now();
        self.docker(&["pull", "-q", image])?;
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        let peak_kib = self.processes().into_iter().map(peak).sum();
        Ok(Sample { milliseconds, peak_kib })
    }

    fn docker(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new("docker")
            .args(["-H", &self.host])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("start the docker client")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("docker {}: {}", arguments.join(" "), text.trim());
        }
        Ok(())
    }

    /// The daemon and all below it (dockerd's containerd).
    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.pid];
        let mut next = 0;
        while let Some(pid) = found.get(next).copied() {
            next += 1;
            for task in Path::new(&format!("/proc/{pid}/task")).read_dir().into_iter().flatten() {
                let Ok(task) = task else { continue };
                let children = std::fs::read_to_string(task.path().join("children"));
                let children = children.unwrap_or_default();
                found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        found
    }
}

/// Highest resident set in KiB; 0 of a process that is gone.
fn peak(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Prints what was measured of one image, and forgets it.
fn report(image: &str, engines: &mut [Engine], quiet: bool) -> Value {
    let mut results = Vec::new();
    for engine in &mut *engines {
        let samples = std::mem::take(&mut engine.samples);
        let times = sorted(samples.iter().map(|sample| sample.milliseconds));
        let peak = samples.iter().map(|sample| sample.peak_kib).max().unwrap_or(0);
        let (median, p95) = (quantile(&times, 0.5), quantile(&times, 0.95));
        if !quiet {
            println!(
                "{image}: {}: {} pulls, median {median:.0} ms, p95 {p95:.0} ms, peak memory {} MiB",
                engine.name,
                times.len(),
                peak / 1024
            );
        }
        results.push((engine.name, median, times, peak));
    }
    let ratio = match results.as_slice() {
        [(_, ours, ..), (_, theirs, ..)] => Some(ours / theirs),
        _ => None,
    };
    if let Some(ratio) = ratio.filter(|_| !quiet) {
        println!("{image}: hyper takes {ratio:.2} × docker (medians)");
    }
    let engines: Vec<Value> = results
        .into_iter()
        .map(|(name, median, times, peak)| {
            json!({ "name": name, "median_ms": median, "times_ms": times, "peak_kib": peak })
        })
        .collect();
    json!({ "image": image, "engines": engines, "ratio": ratio })
}
