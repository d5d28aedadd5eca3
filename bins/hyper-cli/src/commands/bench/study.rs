//! `bench run`: carries out the plan of `hyper-bench`, as a user would: it calls `hyper` and `docker`.
//!
//! ```text
//! lock ─▶ what is here ─▶ round 0 (warm-up) ─▶ round 1 … n: each job on each subject in turn ─▶ report
//!                            Ctrl-C, TERM anywhere: running children end, containers and files go, the rest is kept
//! ```
//! Invariants
//! - One bench at a time on a machine: a lock that ends with the process.
//! - All containers carry [`LABEL`]; none is left when this ends, and what a killed one left goes at the next start.

mod begin;
mod crowd;
mod find;
mod job;
mod limits;
mod machine;
pub(super) mod process;
mod progress;
mod subject;
mod tree;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};
use hyper_bench::plan::{self, Job, Kind, Scope};
use hyper_bench::results::{Sample, State, Study};
use hyper_bench::store::Store;
use hyper_bench::{summary, table};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::arguments::BenchRunFlags;
use crate::client::Client;

use begin::Begun;
use progress::Progress;
use subject::Subject;
use tree::Tree;

pub use find::docker_version;

/// On every container of a bench.
const LABEL: &str = "io.hyper.bench=1";

pub async fn run(client: &Client, flags: BenchRunFlags) -> anyhow::Result<i32> {
    let _lock = begin::lock(&flags.lock)?;
    subject::sweep(client, &flags.docker).await;
    tree::sweep(&flags.work);
    limits::sweep();
    let outcome = tokio::select! {
        outcome = study(client, &flags) => outcome,
        signal = interrupted() => {
            // Every child ended with the future that waited for it.
            subject::sweep(client, &flags.docker).await;
            return halted(&flags, signal?);
        }
    };
    subject::sweep(client, &flags.docker).await;
    outcome
}

/// Measures what is not measured yet, then reports.
async fn study(client: &Client, flags: &BenchRunFlags) -> anyhow::Result<i32> {
    let Begun { dir, mut store, mut study, samples, subjects, tree } =
        begin::begin(client, flags).await?;
    let scope =
        Scope { quick: flags.quick, axes: study.settings.axes.clone(), cpus: study.settings.cpus };
    let jobs = plan::jobs(&scope);
    let done: BTreeSet<_> = samples.iter().map(key).collect();
    let turns = turns(&jobs, &study, &subjects, tree.is_some());
    let mut progress = Progress::new(turns.iter().filter(|turn| !done.contains(&turn.key())));
    let mut samples = samples;
    for turn in turns.iter().filter(|turn| !done.contains(&turn.key())) {
        progress.begins(turn, study.settings.runs);
        let sample = measure(client, turn, &study, tree.as_ref()).await;
        progress.ended(turn, &sample);
        store.append(&sample)?;
        samples.push(sample);
    }
    study.state = State::Complete;
    study.finished = Some(now());
    finish(&dir, &mut store, study, samples)
}

fn finish(
    dir: &Path,
    store: &mut Store,
    study: Study,
    samples: Vec<Sample>,
) -> anyhow::Result<i32> {
    store.head(&study)?;
    let results = summary::results(study, samples);
    super::report::write(dir, &results)?;
    print!("{}", table::text(&results));
    println!("{}", dir.join("report.html").display());
    Ok(i32::from(results.summary.iter().all(|cell| cell.n == 0)))
}

/// Marks the study as partial and reports what there is.
fn halted(flags: &BenchRunFlags, signal: &'static str) -> anyhow::Result<i32> {
    tree::sweep(&flags.work);
    let code = if signal == "SIGINT" { 130 } else { 143 };
    let dir = begin::chosen(flags);
    if !hyper_bench::store::exists(&dir) {
        eprintln!("bench: {signal}: ended before anything was measured");
        return Ok(code);
    }
    let (mut store, mut study, samples) = Store::resume(&dir)?;
    study.state = State::Partial { why: format!("interrupted by {signal}") };
    let count = samples.len();
    finish(&dir, &mut store, study, samples)?;
    eprintln!(
        "bench: {signal}: {count} runs are kept; go on with `hyper bench run … --out {}`",
        dir.display()
    );
    Ok(code)
}

async fn interrupted() -> anyhow::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut int = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut hup = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
    Ok(tokio::select! {
        _ = int.recv() => "SIGINT",
        _ = term.recv() => "SIGTERM",
        _ = hup.recv() => "SIGHUP",
    })
}

/// One run that is to be made.
struct Turn<'a> {
    round: u32,
    repeat: u32,
    job: &'a Job,
    subject: &'a Subject,
}

type Key = (u32, u32, String, String);

impl Turn<'_> {
    fn key(&self) -> Key {
        (self.round, self.repeat, self.job.id.clone(), self.subject.name.clone())
    }
}

fn key(sample: &Sample) -> Key {
    (sample.round, sample.repeat, sample.job.clone(), sample.subject.clone())
}

/// All runs in their order: A B C A B C, another first each time.
fn turns<'a>(jobs: &'a [Job], study: &Study, subjects: &'a [Subject], tree: bool) -> Vec<Turn<'a>> {
    let mut all = Vec::new();
    for round in 0..=study.settings.runs {
        for job in jobs {
            // What a start warms up is the image, and that is most of it; the tools take their own time for the rest.
            let warms = matches!(job.kind, Kind::Start { .. });
            if round == 0 && !warms {
                continue;
            }
            for repeat in 0..if round == 0 { 1 } else { job.repeat } {
                let able = |subject: &&Subject| subject.able(job, tree);
                let order = plan::turned(subjects, round + repeat).filter(able);
                all.extend(order.map(|subject| Turn { round, repeat, job, subject }));
            }
        }
    }
    all
}

async fn measure(client: &Client, turn: &Turn<'_>, study: &Study, tree: Option<&Tree>) -> Sample {
    let started = std::time::Instant::now();
    let mut sample = Sample {
        round: turn.round,
        repeat: turn.repeat,
        job: turn.job.id.clone(),
        subject: turn.subject.name.clone(),
        at: now(),
        load: machine::load(),
        mhz: machine::megahertz(),
        ..Sample::default()
    };
    let yielded = job::run(client, turn, &study.settings, tree, &mut sample.phases).await;
    sample.values = yielded.values;
    sample.errors = yielded.errors;
    sample.seconds = started.elapsed().as_secs_f64();
    sample
}

fn now() -> String {
    // Without fractions; this format has none that fail.
    let now = OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .unwrap_or_else(|_| OffsetDateTime::now_utc());
    now.format(&Rfc3339).unwrap_or_default()
}

/// An error for a subject or axis that is not known.
fn unknown(kind: &str, name: &str, known: &[String]) -> anyhow::Result<()> {
    bail!("unknown {kind} `{name}`: here are {}", known.join(", "))
}
