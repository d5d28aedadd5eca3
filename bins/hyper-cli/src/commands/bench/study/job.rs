//! One job on one subject. Whatever goes wrong is an error of the measures that it was for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hyper_bench::plan::{Job, Kind, Mounts};
use hyper_bench::results::Settings;
use hyper_bench::script::{self, Yield};
use hyper_bench::tools::excerpt;
use tokio::process::{Child, Command};

use super::subject::{self, Engine, Subject};
use super::tree::Tree;
use super::{Turn, crowd, machine, process};
use crate::client::Client;

pub async fn run(
    client: &Client,
    turn: &Turn<'_>,
    settings: &Settings,
    tree: Option<&Tree>,
    phases: &mut BTreeMap<String, f64>,
) -> Yield {
    let (job, subject) = (turn.job, turn.subject);
    let with = With { subject, job, settings, tree };
    let outcome = match &job.kind {
        Kind::Start { network, cloned } => start(client, &with, *network, *cloned, phases).await,
        Kind::Crowd { count } => Ok(crowd::run(subject, settings, job, *count).await),
        Kind::Guest => guest(&with).await,
        Kind::Inside { setup, mounts } => inside(&with, setup, *mounts).await,
        Kind::Served { server, port } => served(&with, server, *port, false).await,
        Kind::Between { server, port } => served(&with, server, *port, true).await,
    };
    outcome.unwrap_or_else(|why| {
        let mut all = Yield::default();
        for step in &job.steps {
            script::fail(step, &why, &mut all);
        }
        all
    })
}

/// What every kind of job has at hand.
struct With<'a> {
    subject: &'a Subject,
    job: &'a Job,
    settings: &'a Settings,
    tree: Option<&'a Tree>,
}

impl<'a> With<'a> {
    fn tree(&self) -> Result<&'a Tree, String> {
        self.tree.ok_or_else(|| "no tree of the image on the host".to_owned())
    }
}

/// The wall time of the whole client, as a user feels it.
async fn start(
    client: &Client,
    with: &With<'_>,
    network: bool,
    cloned: bool,
    phases: &mut BTreeMap<String, f64>,
) -> Result<Yield, String> {
    let With { subject, job, settings, .. } = with;
    let name = subject::name();
    let mut options = vec!["--rm"];
    if !network {
        options.extend(["--network", "none"]);
    }
    if subject.has_kernel() {
        options.extend(["--annotation", if cloned { subject::CLONED } else { subject::BOOTED }]);
    }
    let mut command = match subject.run(settings, &name, &options, &["true"]) {
        Some(command) => command,
        None => with.tree()?.start(),
    };
    let started = Instant::now();
    let ended = process::run(&mut command, job.deadline()).await;
    let wall = started.elapsed().as_secs_f64() * 1e3;
    if let Some(why) = ended.as_ref().map_or_else(|why| Some(why.clone()), process::Ended::failure)
    {
        subject.remove(std::slice::from_ref(&name)).await;
        return Err(why);
    }
    if let Engine::Hyper { .. } = subject.engine {
        // Stamps are not for every runtime.
        let (origin, all) = super::super::phases(client, &name).await.unwrap_or_default();
        if cloned && !origin.starts_with("cloned") {
            return Err(format!("its pod is no clone: {origin}"));
        }
        phases.extend(all.into_iter().map(|(phase, ms)| (phase.to_owned(), ms)));
    }
    let mut all = Yield::default();
    all.values.insert(format!("{}.wall", job.id), wall);
    Ok(all)
}

async fn guest(with: &With<'_>) -> Result<Yield, String> {
    let With { subject, job, settings, .. } = with;
    let name = subject::name();
    let words = ["cat", "/proc/meminfo"];
    let command = subject.run(settings, &name, &["--rm", "--network", "none"], &words);
    let mut command = command.ok_or("no guest")?;
    let ended = to_end(subject, &name, &mut command, job).await?;
    if let Some(why) = ended.failure() {
        return Err(why);
    }
    let mut all = Yield::default();
    for step in &job.steps {
        script::take(step, &ended.stdout, &mut all);
    }
    Ok(all)
}

/// Goes with its container.
const DISK: &str = "type=volume,volume-driver=disk,volume-opt=size=1g,dst=/bench-disk";

async fn inside(with: &With<'_>, setup: &str, mounts: Mounts) -> Result<Yield, String> {
    let With { subject, job, settings, .. } = with;
    let mark = mark();
    let text = script::steps(setup, &job.steps, &mark);
    let name = subject::name();
    let mut options = vec!["--rm", "--network", "none"];
    match mounts {
        Mounts::None => {}
        Mounts::Volumes => {
            options.extend(["-v", "/bench-volume", "--tmpfs", "/bench-tmpfs:size=512m"]);
        }
        Mounts::Disk => options.extend(["--mount", DISK]),
    }
    let mut command = match subject.run(settings, &name, &options, &["sh", "-c", &text]) {
        Some(command) => command,
        None => {
            let tree = with.tree()?;
            tree.command(&text, tree.limits.as_ref())
        }
    };
    let ended = to_end(subject, &name, &mut command, job).await?;
    let said = ended.failure().unwrap_or_else(|| "it was not run".into());
    Ok(script::read(job, &ended.stdout, &said, &mark))
}

/// Runs a container's client; the container goes with it when it is not done in time.
async fn to_end(
    subject: &Subject,
    name: &str,
    command: &mut Command,
    job: &Job,
) -> Result<process::Ended, String> {
    let ended = process::run(command, job.deadline()).await;
    if ended.as_ref().map_or(true, |ended| !ended.status.success()) {
        subject.remove(&[name.to_owned()]).await;
    }
    ended
}

/// A server that is asked; it goes with this value, or with [`Server::end`].
struct Server {
    name: String,
    address: IpAddr,
    /// The host's own.
    child: Option<Child>,
}

/// Asks a server from the host's tree, or from a container of its kind.
async fn served(with: &With<'_>, server: &str, port: u16, between: bool) -> Result<Yield, String> {
    let names = [subject::name(), subject::name()];
    let outcome = ask(with, &names[0], between.then_some(&names[1]), server, port).await;
    with.subject.remove(&names).await;
    outcome
}

async fn ask(
    with: &With<'_>,
    name: &str,
    asker: Option<&String>,
    server: &str,
    port: u16,
) -> Result<Yield, String> {
    let With { subject, job, settings, .. } = with;
    let tree = with.tree()?;
    if let Some(asker) = asker {
        let words = ["sleep", "3600"];
        let mut command = subject.run(settings, asker, &["-d"], &words).ok_or("no container")?;
        if let Some(why) = process::run(&mut command, Duration::from_secs(90)).await?.failure() {
            return Err(why);
        }
    }
    let text = format!("{}\n{server}", script::head());
    let server = serve(with, name, &text).await?;
    ready(subject, &server, port).await?;
    let mut all = Yield::default();
    for step in &job.steps {
        let asked = step.command.replace("@IP@", &server.address.to_string());
        let mut command = match asker {
            None => tree.command(&asked, None),
            Some(asker) => {
                subject.client(&["exec", asker, "sh", "-c", &asked]).ok_or("no container")?
            }
        };
        let busy = machine::busy();
        let ended = process::run(&mut command, job.deadline()).await;
        let busy = machine::busy() - busy;
        let ended = match ended {
            Ok(ended) => ended,
            Err(why) => {
                script::fail(step, &why, &mut all);
                continue;
            }
        };
        match ended.failure() {
            // iperf3 tells its errors in its JSON.
            Some(_) if ended.stdout.contains("\"error\"") => {
                script::take(step, &ended.stdout, &mut all);
            }
            Some(why) => script::fail(step, &why, &mut all),
            None => {
                script::take(step, &ended.stdout, &mut all);
                let gbit = step.tool.and_then(|tool| tool.read(&ended.stdout).ok());
                let gbit = gbit.and_then(|figures| figures.get("gbit").copied());
                if let Some(gbit) = gbit.filter(|gbit| step.host_cpu && *gbit > 0.0) {
                    all.values.insert(format!("{}.cpu", step.name), busy / gbit);
                }
            }
        }
    }
    if let Some(mut child) = server.child {
        // Its namespace ends with it.
        drop(child.kill().await);
    }
    Ok(all)
}

async fn serve(with: &With<'_>, name: &str, text: &str) -> Result<Server, String> {
    let With { subject, settings, .. } = with;
    let tree = with.tree()?;
    let deadline = Duration::from_secs(90);
    let Some(mut command) = subject.run(settings, name, &["-d"], &["sh", "-c", text]) else {
        let child = tree.command(text, tree.limits.as_ref()).spawn();
        let child = child.map_err(|error| format!("start the server: {error}"))?;
        let address = IpAddr::from([127, 0, 0, 1]);
        return Ok(Server { name: name.to_owned(), address, child: Some(child) });
    };
    if let Some(why) = process::run(&mut command, deadline).await?.failure() {
        return Err(why);
    }
    let words = ["inspect", "--format", "{{.NetworkSettings.IPAddress}}", name];
    let mut inspect = subject.client(&words).ok_or("no engine")?;
    let told = process::run(&mut inspect, deadline).await?;
    let address = told.stdout.trim().parse();
    let address =
        address.map_err(|_| format!("no address of its own: {}", excerpt(&told.stdout)))?;
    Ok(Server { name: name.to_owned(), address, child: None })
}

/// Waits until the server takes connections.
async fn ready(subject: &Subject, server: &Server, port: u16) -> Result<(), String> {
    let address = SocketAddr::new(server.address, port);
    let started = Instant::now();
    let patience = Duration::from_secs(45);
    loop {
        let attempt = tokio::net::TcpStream::connect(address);
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), attempt).await {
            // It has to be done with this connection first.
            tokio::time::sleep(Duration::from_millis(300)).await;
            return Ok(());
        }
        let mut said = String::new();
        let mut over = started.elapsed() > patience;
        if let Some(mut state) =
            subject.client(&["inspect", "--format", "{{.State.Running}}", &server.name])
        {
            let told = process::run(&mut state, Duration::from_secs(20)).await?;
            over |= told.stdout.trim() != "true";
        }
        if over {
            if let Some(mut logs) = subject.client(&["logs", &server.name]) {
                let told = process::run(&mut logs, Duration::from_secs(20)).await?;
                said =
                    format!("; it says: {}", excerpt(&format!("{}{}", told.stdout, told.stderr)));
            }
            let seconds = started.elapsed().as_secs();
            return Err(format!("its server did not answer at {address} in {seconds} s{said}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A word that no tool can know.
fn mark() -> String {
    let mut bytes = [0; 8];
    // Without randomness the marks are only less surely apart.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("@@{:016x}@@", u64::from_ne_bytes(bytes))
}
