//! Finding hyperd, and starting it when none is running.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::client::{Client, ClientError};

/// Where root's hyperd listens unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/hyper/hyper.sock";
/// Bytes of the log's end that a last line is looked for in.
const LAST: u64 = 4096;
const START_DEADLINE: Duration = Duration::from_secs(15);

/// A client of a running hyperd. With the default host, hyperd is started when it is not there.
pub async fn connect(host: Option<&str>) -> anyhow::Result<Client> {
    let client = Client::new(match host {
        Some(host) => socket_of(host)?,
        None => default_socket()?,
    });
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

/// Root's hyperd; for others their own, unless they may use root's and have started none.
fn default_socket() -> anyhow::Result<PathBuf> {
    let roots = PathBuf::from(DEFAULT_SOCKET);
    if rustix::process::geteuid().is_root() {
        return Ok(roots);
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR")
        .map(|directory| PathBuf::from(directory).join("hyper/hyper.sock"));
    let may = |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    match own {
        Some(own) if own.exists() || !may(&roots) => Ok(own),
        None if !may(&roots) => bail!(
            "XDG_RUNTIME_DIR is not set, so there is no place for a hyperd of your own: log in with a session of your \
             own (ssh, `machinectl shell`), run hyper by sudo, or give an address with -H"
        ),
        _ => Ok(roots),
    }
}

/// Where a hyperd that is started here writes what it says.
fn log_file() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/log/hyperd.log".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let directory =
        state.or_else(home).context("HOME is not set: start hyperd by hand")?.join("hyper");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("make `{}` for hyperd's log", directory.display()))?;
    Ok(directory.join("hyperd.log"))
}

/// The last thing that hyperd said.
fn last_line(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST))).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().next_back().map(str::to_owned)
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

async fn start(client: &Client) -> anyhow::Result<()> {
    let program = program("hyperd");
    let log = log_file()?;
    let output = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
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
            let said = last_line(&log).unwrap_or_else(|| format!("see `{}`", log.display()));
            bail!("`{}` ended at once ({status}): {said}", program.display());
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
