//! Finding hyperd, and starting it when none is running.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::client::{Client, ClientError};

/// Where hyperd listens unless told otherwise.
pub const DEFAULT_HOST: &str = "unix:///run/hyper/hyper.sock";
const START_DEADLINE: Duration = Duration::from_secs(15);

/// A client of a running hyperd. With the default host, hyperd is started when it is not there.
pub async fn connect(host: Option<&str>) -> anyhow::Result<Client> {
    let client = Client::new(socket_of(host.unwrap_or(DEFAULT_HOST))?);
    match tokio::net::UnixStream::connect(client.socket()).await {
        Ok(_) => Ok(client),
        Err(error) if host.is_none() && is_absent(&error) => {
            start(&client).await?;
            Ok(client)
        }
        Err(source) => {
            Err(ClientError::Connect { socket: client.socket().to_owned(), source }.into())
        }
    }
}

/// Another of Hyper's programs: beside this one, else wherever `PATH` has it.
pub fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name(name));
    beside.filter(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// The supervisor, which alone knows hypervisors.
pub fn supervisor() -> PathBuf {
    program("containerd-shim-hyper-v2")
}

fn socket_of(host: &str) -> anyhow::Result<PathBuf> {
    match host.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => bail!("host `{host}` is not of the form unix:///path/to/socket"),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

async fn start(client: &Client) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "hyperd is not running at `{}` and starting it needs root: run `sudo hyperd`, or give \
             its address with -H",
            client.socket().display()
        );
    }
    let program = program("hyperd");
    let log = std::path::Path::new("/var/log/hyperd.log");
    let output = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open `{}` for hyperd's log", log.display()))?;
    let mut child = std::process::Command::new(&program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start `{}`", program.display()))?;
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        if tokio::net::UnixStream::connect(client.socket()).await.is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("`{}` ended at once ({status}): see `{}`", program.display(), log.display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!(
        "`{}` does not listen on `{}` after {} s: see `{}`",
        program.display(),
        client.socket().display(),
        START_DEADLINE.as_secs(),
        log.display()
    )
}
