//! One process's stdio: FIFOs between its shim and our hub, so that logs and clients are as with
//! any pod, and nothing is lost while hyperd is away.
//!
//! ```text
//!  shim ──FIFO──► pump ──► Hub ──► log file, attached clients
//!       ◄─FIFO─── feed ◄── Hub ◄── attached clients
//!  opened ──started()──► the shim has its ends ──its last end closed──► delivered
//! ```
//! Writing ends of our own keep the FIFOs from ending before the shim has opened them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_stdio::{Hub, Loss, Stream};
use hyper_task::stdio::Sink;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::ForeignError;
use crate::error::{Result, blocking, file};

/// What the shim is told: paths of FIFOs; empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Uris {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Opened streams. Dropped, nothing is carried any more.
#[derive(Debug)]
pub(crate) struct Streams {
    pub hub: Arc<Hub>,
    /// For the shim.
    pub fifos: Uris,
    held: Mutex<Vec<pipe::Sender>>,
    output: Mutex<Option<JoinHandle<()>>>,
    input: Mutex<Option<AbortOnDropHandle<()>>>,
    paths: Vec<PathBuf>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(output) = self.output.lock().unwrap_or_else(PoisonError::into_inner).take() {
            output.abort();
        }
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Streams {
    /// Makes FIFOs in `dir`, named after `process`, for what `asked` wants; `stdin_ended` is run
    /// when the clients have closed the input.
    pub async fn open(
        dir: &Path,
        process: &str,
        asked: &Uris,
        stdin_ended: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Self> {
        let parse = |uri: &str| {
            let sink =
                Sink::parse(uri).map_err(|error| ForeignError::Invalid(error.to_string()))?;
            match sink {
                Sink::Path(path) => Err(ForeignError::Invalid(format!(
                    "stdio `{}`: only the hub is served for runtimes of others",
                    path.display()
                ))),
                other => Ok(other),
            }
        };
        let (stdin, stdout) = (parse(&asked.stdin)?, parse(&asked.stdout)?);
        let stderr = if asked.terminal { Sink::Null } else { parse(&asked.stderr)? };
        let log = match (&stdout, &stderr) {
            (Sink::Hub(Some(log)), _) | (_, Sink::Hub(Some(log))) => Some(log.clone()),
            _ => None,
        };
        let hub = blocking(move || Ok(Hub::new(log.as_ref())?)).await?;
        let hub = Arc::new(hub);
        let mut streams = Self {
            hub: hub.clone(),
            fifos: Uris { terminal: asked.terminal, ..Uris::default() },
            held: Mutex::default(),
            output: Mutex::default(),
            input: Mutex::default(),
            paths: Vec::new(),
        };
        let mut outputs = [None, None];
        for (at, (sink, name)) in [(stdout, "stdout"), (stderr, "stderr")].into_iter().enumerate() {
            if sink == Sink::Null {
                continue;
            }
            let path = streams.fifo(dir, process, name)?;
            let reader = pipe::OpenOptions::new().open_receiver(&path);
            outputs[at] = Some(reader.map_err(file("open", &path))?);
            let holder =
                pipe::OpenOptions::new().open_sender(&path).map_err(file("open", &path))?;
            streams.held.get_mut().unwrap_or_else(PoisonError::into_inner).push(holder);
            let text = path.display().to_string();
            *(if at == 0 { &mut streams.fifos.stdout } else { &mut streams.fifos.stderr }) = text;
        }
        if stdin == Sink::Null {
            hub.refuse_stdin();
        } else {
            let path = streams.fifo(dir, process, "stdin")?;
            // Both ends: it must neither wait for the shim nor break when that closes its own.
            let mut sink = pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(&path)
                .map_err(file("open", &path))?;
            streams.fifos.stdin = path.display().to_string();
            let hub = hub.clone();
            let feed = tokio::spawn(async move {
                if let Err(error) = hub.feed_stdin(&mut sink).await {
                    tracing::debug!(%error, "process takes no more input");
                }
                hub.refuse_stdin();
                drained(&sink).await;
                drop(sink);
                stdin_ended.await;
            });
            *streams.input.get_mut().unwrap_or_else(PoisonError::into_inner) =
                Some(AbortOnDropHandle::new(feed));
        }
        let [stdout, stderr] = outputs;
        let output = tokio::spawn(async move {
            tokio::join!(pump(&hub, Stream::Stdout, stdout), pump(&hub, Stream::Stderr, stderr));
        });
        *streams.output.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(output);
        Ok(streams)
    }

    fn fifo(&mut self, dir: &Path, process: &str, name: &str) -> Result<PathBuf> {
        let path = dir.join(format!("{process}-{name}"));
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::Fifo, mode, 0).map_err(file("make FIFO", &path))?;
        self.paths.push(path.clone());
        Ok(path)
    }

    /// The shim has opened its ends, or will not.
    pub fn started(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The process has ended: waits until its output is in the log and with the clients, at most
    /// for `patience`. What the log could not take.
    pub async fn ended(&self, patience: Duration) -> Loss {
        self.started();
        self.hub.ended();
        self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut output) = output
            && tokio::time::timeout(patience, &mut output).await.is_err()
        {
            tracing::warn!("output is still held open by somebody; what comes is dropped");
            output.abort();
            let _ = output.await;
        }
        self.hub.finish().await
    }
}

async fn pump(hub: &Hub, stream: Stream, source: Option<pipe::Receiver>) {
    let Some(source) = source else { return };
    if let Err(error) = hub.pump(stream, source).await {
        tracing::debug!(stream = stream.name(), %error, "output ended early");
    }
}

/// Until the shim has taken what is in the FIFO.
async fn drained(fifo: &pipe::Sender) {
    let mut pause = Duration::from_millis(1);
    while rustix::io::ioctl_fionread(fifo).is_ok_and(|left| left > 0) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
