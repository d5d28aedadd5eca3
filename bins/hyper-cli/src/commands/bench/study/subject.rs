//! What is measured, and how its containers are called for.

use std::time::Duration;

use hyper_bench::plan::{Job, Kind, Mounts};
use hyper_bench::results::Settings;
use tokio::process::Command;

use super::{LABEL, process};
use crate::client::Client;

/// Annotations of pods that are to be clones, and of such as are not.
pub const CLONED: &str = "io.hyper.template=on";
pub const BOOTED: &str = "io.hyper.template=off";
const DEADLINE: Duration = Duration::from_secs(120);

/// One thing that is measured.
#[derive(Debug, Clone)]
pub struct Subject {
    pub name: String,
    pub wall: String,
    pub version: Option<String>,
    pub engine: Engine,
    /// Its pods can be clones of templates.
    pub clones: bool,
}

/// Who runs its containers.
#[derive(Debug, Clone)]
pub enum Engine {
    /// Our client: program and first arguments.
    Hyper { client: Vec<String>, runtime: String },
    /// Docker's client.
    Docker { host: String },
    /// Nobody.
    Host,
}

impl Subject {
    /// The engine's client with a command; `None` of the host.
    pub fn client(&self, words: &[&str]) -> Option<Command> {
        let mut command = match &self.engine {
            Engine::Hyper { client, .. } => {
                let mut command = Command::new(&client[0]);
                command.args(&client[1..]);
                command
            }
            Engine::Docker { host } => {
                let mut command = Command::new("docker");
                command.args(["-H", host]);
                command
            }
            Engine::Host => return None,
        };
        command.args(words);
        Some(command)
    }

    /// `run` of a container with the study's limits.
    pub fn run(
        &self,
        settings: &Settings,
        name: &str,
        options: &[&str],
        words: &[&str],
    ) -> Option<Command> {
        let cpus = settings.cpus.to_string();
        let limits = ["--cpus", &cpus, "--memory", &settings.memory];
        self.limited(settings, name, &[&limits[..], options].concat(), words)
    }

    /// `run` with limits among the options.
    pub fn limited(
        &self,
        settings: &Settings,
        name: &str,
        options: &[&str],
        words: &[&str],
    ) -> Option<Command> {
        let mut command = self.client(&["run", "--name", name, "--label", LABEL])?;
        if let Engine::Hyper { runtime, .. } = &self.engine {
            command.args(["--runtime", runtime]);
        }
        command.args(options).arg(&settings.image).args(words);
        Some(command)
    }

    /// Removes containers; those that are gone already are no matter.
    pub async fn remove(&self, names: &[String]) {
        if let Some(mut command) = self.client(&["rm", "-f", "-v"]) {
            drop(process::run(command.args(names), DEADLINE).await);
        }
    }

    /// It has a kernel that is not the host's, whose memory can be asked for.
    pub fn has_kernel(&self) -> bool {
        matches!(self.wall.as_str(), "hardware" | "emulated" | "user-mode-kernel")
    }

    /// Whether a job means something for it, here.
    pub fn able(&self, job: &Job, tree: bool) -> bool {
        let host = matches!(self.engine, Engine::Host);
        match &job.kind {
            Kind::Start { cloned: true, .. } => self.clones,
            Kind::Start { network, .. } => !(host && *network),
            Kind::Crowd { .. } => !host,
            Kind::Guest | Kind::Inside { mounts: Mounts::Disk, .. } => self.has_kernel(),
            Kind::Served { .. } => tree,
            Kind::Between { .. } => tree && !host,
            Kind::Inside { .. } => true,
        }
    }
}

/// A name for a container that no other of this bench has.
pub fn name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// This program as a client of the same hyperd.
pub fn own_client(client: &Client) -> anyhow::Result<Vec<String>> {
    let program = std::env::current_exe()?.display().to_string();
    Ok(vec![program, "-H".into(), format!("unix://{}", client.socket().display())])
}

/// Removes all containers of benches, of this one and of such as were killed.
pub async fn sweep(client: &Client, docker: &str) {
    let Ok(own) = own_client(client) else { return };
    let ours = Engine::Hyper { client: own, runtime: String::new() };
    for engine in [ours, Engine::Docker { host: docker.to_owned() }] {
        let (name, wall) = (String::new(), String::new());
        let subject = Subject { name, wall, version: None, engine, clones: false };
        let filter = format!("label={LABEL}");
        let Some(mut list) = subject.client(&["ps", "-aq", "--filter", &filter]) else { continue };
        // An engine that is not there has none.
        let Ok(ended) = process::run(&mut list, DEADLINE).await else { continue };
        let names: Vec<_> = ended.stdout.split_whitespace().map(str::to_owned).collect();
        if ended.status.success() && !names.is_empty() {
            subject.remove(&names).await;
        }
    }
}
