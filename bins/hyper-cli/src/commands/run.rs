//! `run`, `create`, `attach`: making a container and joining its streams.

use anyhow::{Context, bail};
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::session::{follow_size, pass_signals};
use super::{RunFailed, pull};
use crate::arguments::{AttachFlags, CreateFlags, CreateOnlyFlags, RunFlags};
use crate::client::{Body, Client, ClientError, quote};
use crate::streams::{self, Wanted};
use crate::terminal::{self, Mode};

pub async fn run(client: &Client, flags: RunFlags) -> anyhow::Result<i32> {
    let create = &flags.create;
    if create.tty && create.interactive && !flags.detach && !terminal::stdin_is_terminal() {
        bail!("the input device is not a terminal: leave out -t when piping into a container");
    }
    let id = make(client, create, !flags.detach).await?;
    if flags.detach {
        begin(client, &id).await?;
        println!("{id}");
        return Ok(0);
    }
    let condition = if create.rm { "removed" } else { "next-exit" };
    let session = Session {
        id: &id,
        stdin: create.interactive,
        tty: create.tty,
        detach_keys: flags.detach_keys.as_deref(),
        sig_proxy: flags.sig_proxy && !create.tty,
    };
    session.run(client, condition, true).await
}

pub async fn create(client: &Client, flags: CreateOnlyFlags) -> anyhow::Result<i32> {
    println!("{}", make(client, &flags.create, true).await?);
    Ok(0)
}

pub async fn attach(client: &Client, flags: AttachFlags) -> anyhow::Result<i32> {
    let inspect = client.get(&format!("/containers/{}/json", quote(&flags.container))).await?;
    let state = &inspect["State"];
    if state["Running"] != true {
        bail!("container `{}` is not running: start it, or use `hyper start -a`", flags.container);
    }
    if state["Paused"] == true {
        bail!("container `{}` is paused: unpause it first", flags.container);
    }
    let tty = inspect["Config"]["Tty"] == true;
    let session = Session {
        id: inspect["Id"].as_str().context("the engine sent no container id")?,
        stdin: !flags.no_stdin && inspect["Config"]["OpenStdin"] == true,
        tty,
        detach_keys: flags.detach_keys.as_deref(),
        sig_proxy: flags.sig_proxy && !tty,
    };
    session.run(client, "not-running", false).await
}

/// One user at one container's streams.
#[derive(Debug)]
pub struct Session<'a> {
    pub id: &'a str,
    pub stdin: bool,
    pub tty: bool,
    pub detach_keys: Option<&'a str>,
    pub sig_proxy: bool,
}

impl Session<'_> {
    /// Attaches, starts the container if asked, copies until it ends; returns its exit code, or
    /// 0 when the user detached.
    pub async fn run(
        &self,
        client: &Client,
        condition: &str,
        begin_it: bool,
    ) -> anyhow::Result<i32> {
        let id = self.id;
        let mut path = format!(
            "/containers/{id}/attach?stream=1&stdout=1&stderr=1&stdin={}",
            u8::from(self.stdin)
        );
        if let Some(keys) = self.detach_keys {
            path.push_str(&format!("&detachKeys={}", quote(keys)));
        }
        let hijacked = client
            .hijack(&path, Body::None)
            .await
            .map_err(|error| RunFailed::new("attach to the container", error))?;
        // Asked before the start, so that even a container that ends at once is seen.
        let waiting = client
            .send(Method::POST, &format!("/containers/{id}/wait?condition={condition}"), Body::None)
            .await?;
        let signals = self.sig_proxy.then(|| pass_signals(client, id.to_owned()));
        if begin_it {
            begin(client, id).await?;
        }
        let raw = if self.tty && self.stdin { Mode::raw() } else { None };
        let size = self.tty.then(|| follow_size(client, format!("/containers/{id}")));
        let wanted = Wanted { stdin: self.stdin, stdout: true, stderr: true };
        let copied = streams::copy(hijacked, wanted).await;
        drop((size, raw, signals));
        copied?;
        exit_code(client, id, waiting).await
    }
}

/// The stream ended: because the process did, or because the user detached.
async fn exit_code(
    client: &Client,
    id: &str,
    waiting: hyper::Response<hyper::body::Incoming>,
) -> anyhow::Result<i32> {
    use http_body_util::BodyExt;
    let body = waiting.into_body().collect();
    tokio::pin!(body);
    let patience = std::time::Duration::from_millis(500);
    let bytes = loop {
        tokio::select! {
            body = &mut body => break body.context("wait for the container")?.to_bytes(),
            () = tokio::time::sleep(patience) => {
                match client.get(&format!("/containers/{id}/json")).await {
                    Ok(inspect) if inspect["State"]["Running"] == true => return Ok(0),
                    // Ended and being removed: the answer to `wait` is on its way.
                    Ok(_) | Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    };
    let answer: Value = serde_json::from_slice(&bytes).context("wait for the container")?;
    if let Some(message) = answer["Error"]["Message"].as_str()
        && !message.is_empty()
    {
        bail!("{message}");
    }
    let code = answer["StatusCode"].as_i64().context("the engine sent no exit code")?;
    Ok(i32::try_from(code).unwrap_or(1))
}

/// Creates the container, pulling its image as `--pull` says.
async fn make(client: &Client, flags: &CreateFlags, attach: bool) -> anyhow::Result<String> {
    let body = flags.to_body(attach)?;
    if let Some(file) = &flags.cidfile
        && file.exists()
    {
        bail!("container id file `{}` exists already: remove it or name another", file.display());
    }
    let mut path = String::from("/containers/create?");
    if let Some(name) = &flags.name {
        path.push_str(&format!("name={}&", quote(name)));
    }
    if let Some(platform) = &flags.platform {
        path.push_str(&format!("platform={}", quote(platform)));
    }
    let refused = |error| RunFailed::new("create the container", error);
    let pull = || pull::pull(client, flags.image(), flags.platform.as_deref(), false, true);
    match flags.pull.as_str() {
        "always" => pull().await?,
        "missing" | "never" => {}
        other => bail!("--pull `{other}` is not one of always, missing, never"),
    }
    let answer = match client.post(&path, Body::Json(body.clone())).await {
        Err(ClientError::Refused { status: StatusCode::NOT_FOUND, message })
            if flags.pull == "missing" && message.starts_with("No such image") =>
        {
            eprintln!("image `{}` is not here yet: pulling it", flags.image());
            pull().await?;
            client.post(&path, Body::Json(body)).await.map_err(refused)?
        }
        other => other.map_err(refused)?,
    };
    for warning in answer["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("hyper: warning: {warning}");
    }
    let id = answer["Id"].as_str().context("the engine sent no container id")?.to_owned();
    if let Some(file) = &flags.cidfile {
        std::fs::write(file, &id).with_context(|| format!("write `{}`", file.display()))?;
    }
    Ok(id)
}

async fn begin(client: &Client, id: &str) -> Result<(), RunFailed> {
    client
        .post(&format!("/containers/{id}/start"), Body::None)
        .await
        .map(drop)
        .map_err(|error| RunFailed::new("start the container", error))
}
