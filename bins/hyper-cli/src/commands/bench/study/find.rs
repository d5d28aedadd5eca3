//! What can be measured here, and why the rest cannot.

use std::time::{Duration, Instant};

use anyhow::bail;
use hyper_bench::results::{Missing, Settings};
use serde_json::Value;
use tokio::process::Command;

use super::subject::{self, Engine, Subject};
use super::{process, unknown};
use crate::client::Client;

const PATIENCE: Duration = Duration::from_secs(120);
/// In the study that this repeats, and not among hyperd's runtimes.
const OTHERS: [(&str, &str); 2] = [
    ("firecracker", "Hyper has no adapter for it"),
    ("kata", "`containerd-shim-kata-v2` is not on hyperd's PATH"),
];

/// Subjects that may work, in the order of walls, and what is missing.
pub async fn candidates(
    client: &Client,
    wanted: &[String],
    docker: &str,
) -> anyhow::Result<(Vec<Subject>, Vec<Missing>)> {
    let info = client.get("/info").await?;
    let probed = probe(&info).await;
    let own = subject::own_client(client)?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let mut known = vec!["docker".to_owned(), "host".to_owned()];
    let listed = info["Runtimes"].as_object();
    for (name, told) in listed.into_iter().flatten().filter(|(name, _)| *name != "auto") {
        known.push(name.clone());
        let probe = probed.iter().find(|one| one["name"] == name.as_str());
        if let Some(why) = probe.and_then(unusable) {
            missing.push(Missing { name: name.clone(), why });
            continue;
        }
        let version = probe.and_then(|one| one["version"].as_str()).map(str::to_owned);
        let wall = told["status"]["io.hyper.wall"].as_str().unwrap_or("unknown").to_owned();
        let engine = Engine::Hyper { client: own.clone(), runtime: name.clone() };
        let name = name.clone();
        found.push(Subject { name, wall, version, engine, clones: false });
    }
    for one in &probed {
        let name = one["name"].as_str().unwrap_or_default().to_owned();
        if !name.is_empty() && !known.contains(&name) {
            let why = unusable(one).unwrap_or_else(|| "hyperd does not offer it".into());
            missing.push(Missing { name: name.clone(), why });
            known.push(name);
        }
    }
    for (name, why) in OTHERS {
        if !known.iter().any(|one| one == name) {
            missing.push(Missing { name: name.into(), why: why.into() });
            known.push(name.into());
        }
    }
    match docker_version(docker).await {
        Ok(version) => found.push(Subject {
            name: "docker".into(),
            wall: "shared-kernel".into(),
            version: Some(version),
            engine: Engine::Docker { host: docker.into() },
            clones: false,
        }),
        Err(why) => missing.push(Missing { name: "docker".into(), why }),
    }
    found.push(Subject {
        name: "host".into(),
        wall: "none".into(),
        version: None,
        engine: Engine::Host,
        clones: false,
    });
    found.sort_by_key(|subject| strength(&subject.wall));
    for name in wanted {
        if !known.contains(name) {
            known.sort();
            unknown("runtime", name, &known)?;
        }
    }
    if !wanted.is_empty() {
        found.retain(|subject| wanted.contains(&subject.name));
        missing.retain(|missing| wanted.contains(&missing.name));
    }
    Ok((found, missing))
}

/// Strongest first, as in `hyper info`.
fn strength(wall: &str) -> usize {
    let order =
        ["hardware", "emulated", "user-mode-kernel", "application-kernel", "shared-kernel", "none"];
    order.iter().position(|one| *one == wall).unwrap_or(order.len())
}

/// Starts one container; an error says why it does not.
pub async fn works(subject: &Subject, settings: &Settings) -> Result<(), String> {
    let name = subject::name();
    let options = ["--rm", "--network", "none"];
    if let Engine::Docker { .. } = subject.engine {
        let inspect = ["image", "inspect", &settings.image];
        if let Some(mut inspect) = subject.client(&inspect)
            && !process::run(&mut inspect, PATIENCE).await?.status.success()
        {
            return Err(format!(
                "it has no image `{0}`: `hyper save {0} | docker load`",
                settings.image
            ));
        }
    }
    let Some(mut command) = subject.run(settings, &name, &options, &["true"]) else {
        return Ok(());
    };
    let ended = process::run(&mut command, PATIENCE).await;
    match ended.and_then(|ended| ended.failure().map_or(Ok(()), Err)) {
        Ok(()) => Ok(()),
        Err(why) => {
            subject.remove(&[name]).await;
            Err(why)
        }
    }
}

/// Whether a subject's pods can be clones of a template, which is made if need be; an error says why they cannot.
pub async fn clones(client: &Client, subject: &Subject, settings: &Settings) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let name = subject::name();
        let options = ["--rm", "--network", "none", "--annotation", subject::CLONED];
        let Some(mut command) = subject.run(settings, &name, &options, &["true"]) else {
            return Err("it has no pods".into());
        };
        let ended = process::run(&mut command, PATIENCE).await?;
        if let Some(why) = ended.failure() {
            subject.remove(&[name]).await;
            return Err(why);
        }
        let told = super::super::phases(client, &name).await;
        let (origin, _) = told.map_err(|error| format!("{error:#}"))?;
        match () {
            () if origin.starts_with("cloned") => return Ok(()),
            () if origin.contains("being made") && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            () if origin.is_empty() => return Err("hyperd knows no templates".into()),
            () => return Err(origin),
        }
    }
}

/// Versions of tools in the image, as they say themselves; those that are not there have none.
pub async fn tools(
    subject: &Subject,
    settings: &Settings,
    tools: &[&'static str],
) -> anyhow::Result<Vec<(&'static str, Option<String>)>> {
    let mut script = String::new();
    for tool in tools {
        let version = match *tool {
            "wrk" | "nginx" => "-v",
            _ => "--version",
        };
        script.push_str(&format!(
            "if command -v {tool} >/dev/null; then echo \"{tool} = $({tool} {version} 2>&1 </dev/null | grep -m1 '[0-9]\\.[0-9]')\"; fi\n"
        ));
    }
    let name = subject::name();
    let options = ["--rm", "--network", "none"];
    let words = ["sh", "-c", &script];
    let Some(mut command) = subject.run(settings, &name, &options, &words) else {
        bail!("`{}` has no containers", subject.name);
    };
    let ended = process::run(&mut command, PATIENCE).await.map_err(anyhow::Error::msg)?;
    let of = |tool: &str| {
        let head = format!("{tool} = ");
        let line = ended.stdout.lines().find_map(|line| line.strip_prefix(&head))?;
        Some(hyper_bench::tools::excerpt(line))
    };
    Ok(tools.iter().map(|tool| (*tool, of(tool))).collect())
}

/// What hyperd's own supervisor says of this host; nothing, if it does not say.
async fn probe(info: &Value) -> Vec<Value> {
    let Some(program) = info["Runtimes"]["auto"]["path"].as_str() else { return Vec::new() };
    let Ok(ended) = process::run(Command::new(program).arg("probe"), PATIENCE).await else {
        return Vec::new();
    };
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_default();
    let lists = ["hypervisors", "runtimes"].map(|key| report[key].as_array().cloned());
    lists.into_iter().flatten().flatten().collect()
}

/// The findings that keep a runtime from working.
fn unusable(one: &Value) -> Option<String> {
    if one["usable"] != false {
        return None;
    }
    let findings = one["findings"].as_array().into_iter().flatten();
    let failed = findings.filter(|finding| finding["ok"] == false);
    let words: Vec<_> = failed
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", text("what"), text("detail"))
        })
        .collect();
    Some(if words.is_empty() { "not usable here".into() } else { words.join("; ") })
}

/// Of a Docker engine that answers soon.
pub async fn docker_version(host: &str) -> Result<String, String> {
    let words = ["-H", host, "version", "--format", "{{.Server.Version}}"];
    let ended = process::run(Command::new("docker").args(words), Duration::from_secs(20)).await?;
    match ended.failure() {
        Some(_) => Err(format!("no Docker engine answers at {host}")),
        None => Ok(ended.stdout.trim().to_owned()),
    }
}
