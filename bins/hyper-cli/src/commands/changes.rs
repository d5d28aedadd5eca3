//! `diff export commit`: what a container wrote.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, bail};
use serde_json::Value;

use super::copy;
use crate::arguments::{CommitFlags, ExportFlags};
use crate::client::{Body, Client, quote};
use crate::terminal;

pub async fn diff(client: &Client, container: &str) -> anyhow::Result<i32> {
    let answer = client.get(&format!("/containers/{}/changes", quote(container))).await?;
    for change in answer.as_array().into_iter().flatten() {
        let kind = match change["Kind"].as_i64() {
            Some(1) => 'A',
            Some(2) => 'D',
            _ => 'C',
        };
        println!("{kind} {}", change["Path"].as_str().unwrap_or_default());
    }
    Ok(0)
}

pub async fn export(client: &Client, flags: ExportFlags) -> anyhow::Result<i32> {
    let mut out: Box<dyn Write + Send> = match &flags.output {
        Some(path) => {
            Box::new(File::create(path).with_context(|| format!("create `{}`", path.display()))?)
        }
        None if terminal::stdout_is_terminal() => {
            bail!("refusing to write an archive to a terminal: use -o FILE, or redirect it")
        }
        None => Box::new(std::io::stdout()),
    };
    let request = format!("/containers/{}/export", quote(&flags.container));
    copy::stream(client, &request, move |mut tar| {
        std::io::copy(&mut tar, &mut out).and_then(|_| out.flush()).context("write the archive")
    })
    .await?;
    Ok(0)
}

pub async fn commit(client: &Client, flags: CommitFlags) -> anyhow::Result<i32> {
    let mut path =
        format!("/commit?container={}&pause={}", quote(&flags.container), u8::from(flags.pause));
    if let Some(repository) = &flags.repository {
        // A colon after the last slash separates the tag; one before it, a port.
        let (name, tag) = match repository.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (repository.as_str(), ""),
        };
        path.push_str(&format!("&repo={}&tag={}", quote(name), quote(tag)));
    }
    for (key, value) in [("author", &flags.author), ("comment", &flags.message)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", quote(value)));
        }
    }
    for change in &flags.change {
        path.push_str(&format!("&changes={}", quote(change)));
    }
    let answer = client.post(&path, Body::None).await?;
    for warning in answer["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("WARNING: {warning}");
    }
    println!("{}", answer["Id"].as_str().context("the engine sent no id")?);
    Ok(0)
}
