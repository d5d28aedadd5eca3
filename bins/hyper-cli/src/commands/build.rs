//! `build`: sends the context, shows what the builder says.
//!
//! - [`context`]: the directory as a tar stream, without what `.dockerignore` leaves out.
//! - [`prune`]: the steps of builds that no image needs.

mod context;
mod prune;

pub use prune::prune;

use std::io::Write as _;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::pull;
use crate::arguments::BuildFlags;
use crate::client::{Body, Client, quote};
use context::Source;

/// Longest line of the answer.
const MAX_LINE: usize = 16 << 20;

pub async fn build(client: &Client, flags: BuildFlags) -> anyhow::Result<i32> {
    let source = Source::open(&flags.path, flags.file.as_deref())?;
    let path = path(&flags, &source.dockerfile_name)?;
    let credentials = credentials(source.dockerfile_text.as_deref()).await?;
    let (sending, chunks) = source.send();
    let sent = client.send(Method::POST, &path, Body::Context(chunks, credentials));
    let answer = async {
        let mut shown = Shown::default();
        let mut body = sent.await?.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context("read the builder's answer")?.into_data() else {
                continue;
            };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                shown.line(&line)?;
            }
            if buffer.len() > MAX_LINE {
                bail!("hyperd sent a line that does not end");
            }
        }
        shown.line(&buffer)?;
        Ok(shown)
    };
    let shown = tokio::select! {
        // The context cannot be read: nothing more is sent, and hyperd sees that it is not whole.
        biased;
        error = sending.failed() => return Err(error),
        answer = answer => answer?,
    };
    let id = shown.id.context("the builder named no image")?;
    if let Some(file) = &flags.iidfile {
        std::fs::write(file, &id).with_context(|| format!("write `{}`", file.display()))?;
    }
    Ok(0)
}

fn path(flags: &BuildFlags, dockerfile: &str) -> anyhow::Result<String> {
    let mut path = format!(
        "/build?version=1&rm=1&dockerfile={}&nocache={}&q={}",
        quote(dockerfile),
        u8::from(flags.no_cache),
        u8::from(flags.quiet)
    );
    let mut add = |key: &str, value: &str| path.push_str(&format!("&{key}={}", quote(value)));
    for tag in &flags.tag {
        add("t", tag);
    }
    if flags.pull {
        add("pull", "1");
    }
    for (key, value) in
        [("target", &flags.target), ("networkmode", &flags.network), ("platform", &flags.platform)]
    {
        if let Some(value) = value {
            add(key, value);
        }
    }
    if let Some(memory) = &flags.memory {
        let bytes =
            crate::arguments::bytes(memory).with_context(|| format!("--memory `{memory}`"))?;
        add("memory", &bytes.to_string());
    }
    if !flags.build_arg.is_empty() {
        let mut all = Map::new();
        for argument in &flags.build_arg {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), std::env::var(argument).ok()),
            };
            all.insert(name.to_owned(), json!(value));
        }
        add("buildargs", &Value::from(all).to_string());
    }
    if !flags.label.is_empty() {
        let pair = |label: &String| {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            (name.to_owned(), json!(value))
        };
        let all: Map<String, Value> = flags.label.iter().map(pair).collect();
        add("labels", &Value::from(all).to_string());
    }
    if !flags.cache_from.is_empty() {
        add("cachefrom", &json!(flags.cache_from).to_string());
    }
    Ok(path)
}

/// Credentials for the registries that the Dockerfile's images come from, as `X-Registry-Config` has them.
async fn credentials(dockerfile: Option<&str>) -> anyhow::Result<String> {
    let mut all = Map::new();
    for line in dockerfile.unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        if words.next().is_none_or(|word| !word.eq_ignore_ascii_case("from")) {
            continue;
        }
        let Some(image) = words.find(|word| !word.starts_with("--")) else { continue };
        if let Some((server, auth)) = pull::credentials_for(image).await? {
            all.insert(server, auth);
        }
    }
    Ok(base64::engine::general_purpose::URL_SAFE.encode(Value::from(all).to_string()))
}

/// The builder's lines.
#[derive(Default)]
struct Shown {
    id: Option<String>,
}

impl Shown {
    fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let line: Value = serde_json::from_slice(line).context("an answer that is not JSON")?;
        if let Some(error) = line["errorDetail"]["message"].as_str() {
            bail!("{error}");
        }
        if let Some(text) = line["stream"].as_str() {
            let mut out = std::io::stdout().lock();
            // Whoever reads our output may stop reading: the build goes on.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
        if let Some(text) = line["status"].as_str()
            && line["progressDetail"]["current"].is_null()
        {
            match line["id"].as_str() {
                Some(id) => eprintln!("{id}: {text}"),
                None => eprintln!("{text}"),
            }
        }
        if let Some(id) = line["aux"]["ID"].as_str() {
            self.id = Some(id.to_owned());
        }
        Ok(())
    }
}
