//! `pull`: an image from a registry, with a bar for each layer.

use std::collections::HashMap;

use anyhow::{Context, bail};
use base64::Engine;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::credentials::{Config, DOCKER_HUB};
use crate::arguments::PullFlags;
use crate::client::{Body, Client, quote};
use crate::terminal;

/// How the last states of a layer end.
const DONE: [&str; 4] = ["complete", "Already exists", "already exists", "Pushed"];
/// Longest line of progress accepted.
const MAX_LINE: usize = 1 << 20;

pub async fn pull_command(client: &Client, flags: PullFlags) -> anyhow::Result<i32> {
    pull(client, &flags.image, flags.platform.as_deref(), flags.quiet, false).await?;
    if flags.quiet {
        println!("{}", flags.image);
    }
    Ok(0)
}

/// Pulls `image`. Progress goes to standard output, or to standard error when that belongs to a
/// container's output.
pub async fn pull(
    client: &Client,
    image: &str,
    platform: Option<&str>,
    quiet: bool,
    on_stderr: bool,
) -> anyhow::Result<()> {
    let (name, tag) = split(image);
    let mut path = format!("/images/create?fromImage={}&tag={}", quote(name), quote(tag));
    if let Some(platform) = platform {
        path.push_str(&format!("&platform={}", quote(platform)));
    }
    let body = credentials(name).await?.map_or(Body::None, Body::Auth);
    let response = client.send(Method::POST, &path, body).await?;
    show(response, quiet, on_stderr).await.with_context(|| format!("pull `{image}`"))
}

/// Shows the progress that an answer streams, to its end.
pub async fn show(
    response: Response<Incoming>,
    quiet: bool,
    on_stderr: bool,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(quiet, on_stderr);
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("read the progress")?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            progress.show(&line)?;
        }
        if buffer.len() > MAX_LINE {
            bail!("hyperd sent a line of progress that does not end");
        }
    }
    progress.show(&buffer)
}

/// The user's credentials for the image's registry, from `~/.docker/config.json` and its helpers,
/// as the `X-Registry-Auth` header has them.
pub async fn credentials(name: &str) -> anyhow::Result<Option<String>> {
    let auth = credentials_for(name).await?.map(|(_, auth)| auth.to_string());
    Ok(auth.map(|auth| base64::engine::general_purpose::URL_SAFE.encode(auth)))
}

/// The registry of an image, and the user's credentials for it.
pub async fn credentials_for(name: &str) -> anyhow::Result<Option<(String, Value)>> {
    let server = match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DOCKER_HUB,
    };
    let found = Config::read()?.get(server).await?;
    Ok(found.map(|found| (server.to_owned(), found.header(server))))
}

/// `name` and tag or digest; `latest` when there is neither.
pub fn split(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, digest);
    }
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

/// Shows the engine's progress lines: bars on a terminal, changes of state elsewhere.
struct Progress {
    quiet: bool,
    on_stderr: bool,
    bars: Option<MultiProgress>,
    layers: HashMap<String, (ProgressBar, String)>,
}

impl Progress {
    fn new(quiet: bool, on_stderr: bool) -> Self {
        let bars = (!quiet && terminal::stdout_is_terminal()).then(MultiProgress::new);
        Self { quiet, on_stderr, bars, layers: HashMap::new() }
    }

    fn show(&mut self, line: &[u8]) -> anyhow::Result<()> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let line: Value = serde_json::from_slice(line).context("progress that is not JSON")?;
        if let Some(error) =
            line["errorDetail"]["message"].as_str().or_else(|| line["error"].as_str())
        {
            bail!("{error}");
        }
        if self.quiet {
            return Ok(());
        }
        let Some(status) = line["status"].as_str() else { return Ok(()) };
        match line["id"].as_str() {
            Some(id) if line.get("progressDetail").is_some() => self.layer(id, status, &line),
            Some(id) => self.print(&format!("{id}: {status}")),
            None => self.print(status),
        }
        Ok(())
    }

    fn layer(&mut self, id: &str, status: &str, line: &Value) {
        let detail = &line["progressDetail"];
        let (current, total) = (detail["current"].as_u64(), detail["total"].as_u64());
        if !self.layers.contains_key(id) {
            let bar = match &self.bars {
                Some(bars) => bars.add(ProgressBar::new(1)),
                None => ProgressBar::hidden(),
            };
            bar.set_prefix(id.to_owned());
            self.layers.insert(id.to_owned(), (bar, String::new()));
        }
        let Some((bar, shown)) = self.layers.get_mut(id) else { return };
        if shown != status {
            status.clone_into(shown);
            if self.bars.is_none() {
                let text = format!("{id}: {status}");
                self.print(&text);
                return;
            }
            let template = if total.is_some() {
                "{prefix}: {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"
            } else {
                "{prefix}: {msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(status.to_owned());
        }
        if let Some(total) = total {
            bar.set_length(total);
        }
        if let Some(current) = current {
            bar.set_position(current);
        } else if DONE.iter().any(|word| status.ends_with(word)) {
            bar.finish();
        }
    }

    fn print(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                // Only fails when the terminal is gone.
                let _ = bars.println(text);
            }
            None if self.on_stderr => eprintln!("{text}"),
            None => println!("{text}"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::split;

    #[test]
    fn port_is_no_tag() {
        assert_eq!(split("127.0.0.1:5000/busybox"), ("127.0.0.1:5000/busybox", "latest"));
        assert_eq!(split("127.0.0.1:5000/busybox:1"), ("127.0.0.1:5000/busybox", "1"));
        assert_eq!(split("a@sha256:00"), ("a", "sha256:00"));
    }
}
