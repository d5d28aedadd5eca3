//! `bench`: `run`, `report`, `compare`, `many`, `pull` and `vmm` are below; `start`: how long `run --rm IMAGE true` takes, phase by phase, each runtime in turn.
//!
//! Runs are interleaved (A B C A B C …) so that a noisy host is noisy for all. The wall time is
//! that of the whole client process, as a user feels it; phases are the engine's own stamps.

mod many;
mod pss;
mod pull;
mod report;
mod study;
mod vmm;

pub use many::many;
pub use pull::pull;
pub use report::{compare, report};
pub use study::run;
pub use vmm::vmm;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyper_bench::statistics::{nearest_rank, sorted};
use serde_json::{Map, Value, json};

use crate::arguments::BenchStartFlags;
use crate::client::{Client, quote};

/// How long a template may take to be made.
const TEMPLATE: Duration = Duration::from_secs(120);
/// Name of a phase and the two stamps it lies between; dotted ones are the supervisor's.
const PHASES: [(&str, &str, &str); 8] = [
    ("create accepted to start accepted", "create_accepted", "start_accepted"),
    ("start accepted to supervisor", "start_accepted", "supervisor.supervisor_started"),
    (
        "supervisor to hypervisor exec",
        "supervisor.supervisor_started",
        "supervisor.hypervisor_started",
    ),
    ("hypervisor exec to agent ready", "supervisor.hypervisor_started", "supervisor.agent_ready"),
    ("agent ready to process start", "supervisor.agent_ready", "supervisor.process_started"),
    ("process start to exit", "supervisor.process_started", "supervisor.process_exited"),
    ("exit to guest gone", "supervisor.process_exited", "supervisor.guest_gone"),
    ("guest gone to clean", "supervisor.guest_gone", "cleaned"),
];

pub async fn start(client: &Client, flags: BenchStartFlags) -> anyhow::Result<i32> {
    let mut subjects = Vec::new();
    for name in &flags.runtime {
        subjects.push(Subject::ours(name, false));
        if flags.clones {
            subjects.push(Subject::ours(name, true));
        }
    }
    if study::docker_version(&flags.docker).await.is_ok() {
        subjects.push(Subject::docker());
    } else {
        eprintln!("bench: no docker engine answers at {}: measured without", flags.docker);
    }
    let mut able = Vec::new();
    for subject in subjects {
        match subject.templated(client, &flags).await {
            Ok(()) => able.push(subject),
            Err(why) => eprintln!("bench: {}: not measured: {why:#}", subject.name),
        }
    }
    let mut subjects = able;
    for round in 0..=flags.runs {
        for subject in &mut subjects {
            let outcome = subject.run(client, &flags).await;
            if round > 0 {
                match outcome {
                    Ok(sample) => subject.samples.push(sample),
                    Err(error) => subject.failures.push(format!("{error:#}")),
                }
            }
        }
        eprint!("\rbench: round {round} of {}", flags.runs);
    }
    eprintln!();
    if flags.json {
        let all: Vec<_> = subjects.iter().map(Subject::to_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        for subject in &subjects {
            subject.print();
        }
        beside(&subjects);
    }
    Ok(i32::from(subjects.iter().any(|subject| subject.samples.is_empty())))
}

/// One thing that is measured.
struct Subject {
    name: String,
    runtime: Option<String>,
    /// Its pods are to be clones of a template, else they boot.
    cloned: bool,
    samples: Vec<Sample>,
    failures: Vec<String>,
}

/// One run: wall time, and phases by name, all in ms.
struct Sample {
    wall: f64,
    phases: Vec<(&'static str, f64)>,
}

impl Subject {
    fn ours(runtime: &str, cloned: bool) -> Self {
        Self {
            name: format!("hyper {runtime}{}", if cloned { ", cloned" } else { "" }),
            runtime: Some(runtime.to_owned()),
            cloned,
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn docker() -> Self {
        let name = "docker".to_owned();
        Self { name, runtime: None, cloned: false, samples: Vec::new(), failures: Vec::new() }
    }

    /// Clones need their template, which the first pod that wants one has made.
    async fn templated(&self, client: &Client, flags: &BenchStartFlags) -> anyhow::Result<()> {
        let until = Instant::now() + TEMPLATE;
        loop {
            match if self.cloned { self.run(client, flags).await.map(drop) } else { Ok(()) } {
                Err(error)
                    if format!("{error:#}").contains("being made") && Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                ended => return ended,
            }
        }
    }

    async fn run(&self, client: &Client, flags: &BenchStartFlags) -> anyhow::Result<Sample> {
        let mut command = match &self.runtime {
            Some(runtime) => {
                let mut command = Command::new(std::env::current_exe().context("own program")?);
                let socket = format!("unix://{}", client.socket().display());
                command.args(["-H", &socket, "run", "--rm", "--runtime", runtime, "--annotation"]);
                let template = if self.cloned { "on" } else { "off" };
                command.arg(format!("io.hyper.template={template}"));
                command
            }
            None => {
                let mut command = Command::new("docker");
                command.args(["-H", &flags.docker, "run", "--rm"]);
                command
            }
        };
        if let Some(network) = &flags.network {
            command.args(["--network", network]);
        }
        let name =
            format!("bench-{}-{}", std::process::id(), self.samples.len() + self.failures.len());
        let started = Instant::now();
        let output = command
            .args(["--name", &name, &flags.image, "true"])
            .stdin(Stdio::null())
            .output()
            .context("start the client")?;
        let wall = started.elapsed().as_secs_f64() * 1e3;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", output.status, text.trim());
        }
        let phases = if self.runtime.is_some() {
            let (origin, phases) = phases(client, &name).await?;
            if self.cloned && !origin.starts_with("cloned") {
                bail!("its pod is no clone: {origin}");
            }
            phases
        } else {
            Vec::new()
        };
        Ok(Sample { wall, phases })
    }

    fn walls(&self) -> Vec<f64> {
        sorted(self.samples.iter().map(|sample| sample.wall))
    }

    fn phase(&self, name: &str) -> Vec<f64> {
        sorted(self.samples.iter().flat_map(|sample| {
            sample.phases.iter().filter(|(phase, _)| *phase == name).map(|(_, ms)| *ms)
        }))
    }

    fn print(&self) {
        let walls = self.walls();
        if walls.is_empty() {
            let why = self.failures.first().map_or("", String::as_str);
            println!("{}: all {} runs failed, the first: {why}", self.name, self.failures.len());
            return;
        }
        println!(
            "{}: {} runs, {} failed; median {:.1} ms, p95 {:.1} ms",
            self.name,
            self.samples.len(),
            self.failures.len(),
            quantile(&walls, 0.5),
            quantile(&walls, 0.95)
        );
        for (phase, _, _) in PHASES {
            let values = self.phase(phase);
            if !values.is_empty() {
                println!(
                    "  {phase:<34} median {:7.1} ms   p95 {:7.1} ms",
                    quantile(&values, 0.5),
                    quantile(&values, 0.95)
                );
            }
        }
        if let Some(failure) = self.failures.first() {
            println!("  first failure: {failure}");
        }
    }

    fn to_json(&self) -> Value {
        let summary = |values: &[f64]| json!({"median_ms": quantile(values, 0.5), "p95_ms": quantile(values, 0.95)});
        let phases: Map<String, Value> = PHASES
            .iter()
            .map(|(phase, _, _)| ((*phase).to_owned(), self.phase(phase)))
            .filter(|(_, values)| !values.is_empty())
            .map(|(phase, values)| (phase, summary(&values)))
            .collect();
        let walls = self.walls();
        json!({
            "name": self.name,
            "runs": self.samples.len(),
            "failures": self.failures,
            "wall": summary(&walls),
            "wall_ms": walls,
            "phases": phases,
        })
    }
}

/// Beside docker, or else beside `runc` on our engine.
fn beside(subjects: &[Subject]) {
    let measured = |subject: &&Subject| !subject.samples.is_empty();
    let docker = subjects.iter().find(|subject| subject.runtime.is_none());
    let runc = || subjects.iter().find(|subject| subject.runtime.as_deref() == Some("runc"));
    let Some(reference) = docker.filter(measured).or_else(|| runc().filter(measured)) else {
        return;
    };
    let median = quantile(&reference.walls(), 0.5);
    let others = subjects.iter().filter(|subject| subject.name != reference.name);
    for subject in others.filter(measured) {
        let ratio = quantile(&subject.walls(), 0.5) / median;
        println!("{} takes {ratio:.2} × {} (medians)", subject.name, reference.name);
    }
}

/// How the pod came to be, and its phases.
async fn phases(
    client: &Client,
    container: &str,
) -> anyhow::Result<(String, Vec<(&'static str, f64)>)> {
    let stamps = client
        .get(&format!("/hyper/v1/phases/{}", quote(container)))
        .await
        .context("ask the engine for the phases")?;
    let stamp = |key: &str| match key.split_once('.') {
        Some((part, key)) => stamps[part][key].as_i64(),
        None => stamps[key].as_i64(),
    };
    let origin = stamps["supervisor"]["origin"].as_str().unwrap_or_default().to_owned();
    #[expect(clippy::cast_precision_loss, reason = "differences of stamps are small")]
    let phases = PHASES
        .iter()
        .filter_map(|(name, from, to)| Some((*name, (stamp(to)? - stamp(from)?) as f64 / 1e6)))
        .collect();
    Ok((origin, phases))
}

/// Nearest-rank quantile of sorted values; NaN of none.
fn quantile(values: &[f64], q: f64) -> f64 {
    nearest_rank(values, q).unwrap_or(f64::NAN)
}
