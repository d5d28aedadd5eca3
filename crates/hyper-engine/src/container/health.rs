//! Health checks: a command run in the container now and then, and what its exit codes say.
//!
//! ```text
//!             0                 retries failures in a row
//!   starting ───▶ healthy ◀──────────────▶ unhealthy
//!      └────────────────── retries failures ───▲    (failures in the start period do not count)
//! ```
//! What ends with it is the restart policy's matter, if the container wants that; said again after
//! as many further failures, should it not have ended.
//!
//! The container's actor owns the wait for the next probe; a probe itself is a task that always
//! cleans up after itself: its exec is killed at the timeout and deleted, whoever still listens.
//! What is known is stored with the container's state, so a new hyperd goes on where the old ended.

use std::sync::Arc;
use std::time::Duration;

use hyper_stdio::Wanted;
use hyper_task::annotation;
use serde::{Deserialize, Serialize};

use super::secrets;
use super::spec::{HealthCheck, Spec};
use crate::core::Core;
use crate::oci::{self, ExecSpec};
use crate::supervisor::Pod;
use crate::{Error, Result, id};

/// Probes that are kept for `inspect`.
const LOG: usize = 5;
/// Bytes of a probe's output that are kept.
const OUTPUT: usize = 4096;
/// Of output that is read and dropped before a probe is taken for runaway.
const MOST_OUTPUT: usize = 1 << 20;
const SECOND: i64 = 1_000_000_000;
/// How long a killed probe may take to be gone before it is killed again.
const KILLED: Duration = Duration::from_secs(10);

/// What a health check says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: i64,
    /// The last probes, oldest first.
    pub log: Vec<Probe>,
}

/// Docker's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One run of the command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// Nanoseconds since the Unix epoch.
    pub start_ns: i64,
    pub end_ns: i64,
    /// -1: it could not be run, or took too long.
    pub exit_code: i32,
    pub output: String,
}

impl HealthCheck {
    /// What is really run: the request over the image, Docker's defaults under both.
    #[must_use]
    pub fn over(self, image: Option<&Self>) -> Self {
        let image = image.cloned().unwrap_or_default();
        let or = |own: i64, image: i64| if own == 0 { image } else { own };
        let test = if self.test.is_empty() { image.test } else { self.test };
        Self {
            test,
            interval_ns: or(self.interval_ns, image.interval_ns),
            timeout_ns: or(self.timeout_ns, image.timeout_ns),
            start_period_ns: or(self.start_period_ns, image.start_period_ns),
            start_interval_ns: or(self.start_interval_ns, image.start_interval_ns),
            retries: or(self.retries, image.retries),
            shell: image.shell,
        }
    }

    /// Whether there is anything to run.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.test.first().is_some_and(|kind| kind != "NONE")
    }

    fn interval(&self) -> i64 {
        positive(self.interval_ns, 30 * SECOND)
    }

    fn timeout(&self) -> Duration {
        nanos(positive(self.timeout_ns, 30 * SECOND))
    }

    /// Whether it has failed as often as is allowed, once or several times over.
    pub(crate) fn gives_up(&self, health: &Health) -> bool {
        health.status == HealthStatus::Unhealthy && health.failing_streak % self.retries() == 0
    }

    fn retries(&self) -> i64 {
        positive(self.retries, 3)
    }

    /// From now to the next probe.
    fn wait(&self, health: &Health, started_ns: i64, now_ns: i64) -> Duration {
        let starting = health.status == HealthStatus::Starting
            && now_ns.saturating_sub(started_ns) < self.start_period_ns;
        let interval = if starting {
            positive(self.start_interval_ns, 5 * SECOND).min(self.interval())
        } else {
            self.interval()
        };
        nanos(interval)
    }

    fn args(&self) -> Vec<String> {
        match self.test.split_first() {
            Some((kind, line)) if kind == "CMD-SHELL" => {
                let shell: &[String] = &self.shell;
                let default = ["/bin/sh".to_owned(), "-c".to_owned()];
                let shell = if shell.is_empty() { &default[..] } else { shell };
                shell.iter().chain(line).cloned().collect()
            }
            Some((kind, args)) if kind == "CMD" => args.to_vec(),
            _ => Vec::new(),
        }
    }
}

fn positive(value: i64, default: i64) -> i64 {
    if value > 0 { value } else { default }
}

fn nanos(value: i64) -> Duration {
    Duration::from_nanos(value.unsigned_abs())
}

impl Health {
    /// Takes a probe's result; true: the status is another one now.
    pub(crate) fn take(&mut self, check: &HealthCheck, started_ns: i64, probe: Probe) -> bool {
        let before = self.status;
        if probe.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else {
            let grace = before == HealthStatus::Starting
                && probe.start_ns.saturating_sub(started_ns) < check.start_period_ns;
            if !grace {
                self.failing_streak += 1;
                if self.failing_streak >= check.retries() {
                    self.status = HealthStatus::Unhealthy;
                }
            }
        }
        self.log.push(probe);
        let surplus = self.log.len().saturating_sub(LOG);
        self.log.drain(..surplus);
        self.status != before
    }
}

/// Refuses what cannot be run, in Docker's words.
pub(crate) fn check(check: &HealthCheck) -> Result<()> {
    let invalid = |why: String| Err(Error::Invalid(why));
    match check.test.first().map(String::as_str) {
        None | Some("NONE" | "CMD" | "CMD-SHELL") => {}
        Some(other) => {
            return invalid(format!(
                "invalid health check `{other}`: its first word must be NONE, CMD or CMD-SHELL"
            ));
        }
    }
    if check.is_on() && check.test.len() < 2 {
        return invalid(format!("health check `{}` has no command", check.test.join(" ")));
    }
    for (name, value) in [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
    ] {
        if value != 0 && value < 1_000_000 {
            return invalid(format!("{name} in Healthcheck cannot be less than 1ms"));
        }
    }
    if check.retries < 0 {
        return invalid("Retries in Healthcheck cannot be negative".to_owned());
    }
    Ok(())
}

/// Whether failing is to end the container, see [`annotation::UNHEALTHY`].
pub(crate) fn ends(spec: &Spec) -> bool {
    spec.host.annotations.get(annotation::UNHEALTHY).is_some_and(|wish| wish == "restart")
}

/// Refuses an [`annotation::UNHEALTHY`] that is none, or that nothing will come of.
pub(crate) fn check_wish(spec: &Spec) -> Result<()> {
    let key = annotation::UNHEALTHY;
    let invalid = |why: String| Err(Error::Invalid(format!("annotation {key}: {why}")));
    match spec.host.annotations.get(key).map(String::as_str) {
        None | Some("leave") => Ok(()),
        Some("restart") if spec.health.as_ref().is_some_and(HealthCheck::is_on) => Ok(()),
        Some("restart") => invalid(
            "neither the request nor the image has a health check: give one with --health-cmd"
                .to_owned(),
        ),
        Some(other) => invalid(format!("`{other}` is neither restart nor leave")),
    }
}

/// Waits until a probe is due and runs it. Dropped, a probe that runs ends by itself.
pub(crate) async fn next(
    core: Arc<Core>,
    spec: Arc<Spec>,
    pod: Arc<Pod>,
    health: Health,
    started_ns: i64,
) -> Probe {
    let Some(check) = spec.health.clone() else { return std::future::pending().await };
    tokio::time::sleep(check.wait(&health, started_ns, hyper_stdio::now_ns())).await;
    let with = core.clone();
    let running = core.tasks.spawn(async move { probe(&with, &spec, &check, &pod).await });
    match running.await {
        Ok(probe) => probe,
        // Only a panic or the runtime's end: nothing was learnt.
        Err(_) => std::future::pending().await,
    }
}

async fn probe(core: &Core, spec: &Arc<Spec>, check: &HealthCheck, pod: &Arc<Pod>) -> Probe {
    let start_ns = hyper_stdio::now_ns();
    let exec = id::fresh();
    let mut output = Vec::new();
    let ran =
        tokio::time::timeout(check.timeout(), run(core, spec, check, pod, &exec, &mut output))
            .await;
    let (exit_code, said) = match ran {
        Ok(Ok(code)) => (code, None),
        Ok(Err(error)) => (-1, Some(error.chain())),
        Err(_) => {
            let seconds = check.timeout().as_secs_f64();
            (-1, Some(format!("Health check exceeded timeout ({seconds}s)")))
        }
    };
    if exit_code < 0 {
        end(pod, &exec).await;
    }
    if let Err(error) = pod.delete_exec(&exec).await {
        tracing::debug!(container = spec.id, %error, "delete a health check's process");
    }
    let mut output = String::from_utf8_lossy(&output).into_owned();
    if let Some(said) = said {
        output = if output.is_empty() { said } else { format!("{said}: {output}") };
    }
    Probe { start_ns, end_ns: hyper_stdio::now_ns(), exit_code, output }
}

async fn run(
    core: &Core,
    spec: &Arc<Spec>,
    check: &HealthCheck,
    pod: &Pod,
    exec: &str,
    output: &mut Vec<u8>,
) -> Result<i32> {
    let asked = ExecSpec { args: check.args(), ..ExecSpec::default() };
    let process = oci::exec_process(&*secrets::with_environment(core, spec).await?, &asked)?;
    pod.exec(exec, &process, false, false).await?;
    let wanted = Wanted { stdin: false, stdout: true, stderr: true };
    let ((mut reader, _writer), _guard) = pod.attach(Some(exec.to_owned()), wanted).await?;
    pod.start(Some(exec)).await?;
    let mut seen = 0;
    while let Ok(Some(frame)) = reader.next().await {
        seen += frame.data.len();
        let room = OUTPUT.saturating_sub(output.len()).min(frame.data.len());
        output.extend_from_slice(&frame.data[..room]);
        if seen > MOST_OUTPUT {
            return Err(Error::Invalid(format!("it wrote more than {MOST_OUTPUT} bytes")));
        }
    }
    Ok(pod.wait_process(Some(exec)).await?.0)
}

/// Kills what is left of a probe until it is gone, or its pod is.
async fn end(pod: &Pod, exec: &str) {
    loop {
        let killed = pod.kill(Some(exec), 9, false).await;
        match tokio::time::timeout(KILLED, pod.wait_process(Some(exec))).await {
            Ok(_) => return,
            Err(_) if killed.is_err() => tracing::debug!("a health check cannot be killed yet"),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn failed(start_ns: i64) -> Probe {
        Probe { start_ns, exit_code: 1, ..Probe::default() }
    }

    #[test]
    fn a_check_turns_healthy_and_unhealthy() {
        let check = HealthCheck { retries: 2, start_period_ns: 10, ..HealthCheck::default() };
        let mut health = Health::default();
        assert!(!health.take(&check, 0, failed(5)));
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Starting, 0));
        assert!(!health.take(&check, 0, failed(11)));
        assert!(health.take(&check, 0, failed(12)));
        assert_eq!(health.status, HealthStatus::Unhealthy);
        assert!(health.take(&check, 0, Probe::default()));
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Healthy, 0));
        for n in 0..9 {
            let _ = health.take(&check, 0, failed(n));
        }
        assert_eq!(health.log.len(), LOG);
    }

    #[test]
    fn waits() {
        let check = HealthCheck {
            interval_ns: 60 * SECOND,
            start_period_ns: 10 * SECOND,
            start_interval_ns: 2 * SECOND,
            ..HealthCheck::default()
        };
        let starting = Health::default();
        let healthy = Health { status: HealthStatus::Healthy, ..Health::default() };
        assert_eq!(check.wait(&starting, 0, SECOND).as_secs(), 2);
        assert_eq!(check.wait(&starting, 0, 11 * SECOND).as_secs(), 60);
        assert_eq!(check.wait(&healthy, 0, SECOND).as_secs(), 60);
        assert_eq!(HealthCheck::default().wait(&healthy, 0, 0).as_secs(), 30);
    }

    #[test]
    fn the_request_goes_over_the_image() {
        let image = HealthCheck {
            test: vec!["CMD-SHELL".into(), "x".into()],
            retries: 7,
            shell: vec!["/bin/ash".into(), "-c".into()],
            ..HealthCheck::default()
        };
        let asked = HealthCheck { interval_ns: 5_000_000, ..HealthCheck::default() };
        let merged = asked.over(Some(&image));
        assert_eq!((merged.interval_ns, merged.retries), (5_000_000, 7));
        assert_eq!(merged.args(), ["/bin/ash", "-c", "x"]);
        let none = HealthCheck { test: vec!["NONE".into()], ..HealthCheck::default() };
        assert!(!none.over(Some(&image)).is_on());
        let bad = HealthCheck { test: vec!["RUN".into()], ..HealthCheck::default() };
        assert!(check(&bad).unwrap_err().to_string().contains("RUN"));
    }
}
