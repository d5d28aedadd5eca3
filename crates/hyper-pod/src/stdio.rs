//! One process's stdio: from the URIs of the Task API to streams of the link, and the tasks that
//! carry bytes between them.
//!
//! ```text
//! open(uris) ─► Channels ──attach──► clients            (before the process exists)
//!                  └─ run(link) ─► Streams for the agent, Running
//! Running: carrying ──sources end──► complete (told once) ──FIFOs taken──► done
//!              └─ process ended, and DRAIN passed ─► told as late, goes on carrying
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_link::message::{ProcessId, Streams};
use hyper_link::{Link, StreamReader, StreamWriter};
use hyper_stdio::fifo::{Outlet, open_input};
use hyper_stdio::{Attachment, Hub, Loss, Stream, Wanted};
use hyper_task::stdio::Sink;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::PodError;
use crate::actor::Input;

/// How long an ended first process's output may take to be delivered before its exit is told.
const DRAIN: Duration = Duration::from_secs(60);
/// The same where the output goes to FIFOs, which nobody may be reading.
const DRAIN_FIFO: Duration = Duration::from_secs(10);
/// The same for an exec, whose children may keep its output open.
const DRAIN_EXEC: Duration = Duration::from_secs(2);

/// The stdio strings of a Create or Exec request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uris {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Where one output stream goes.
#[derive(Debug)]
enum Output {
    Null,
    Outlet(Outlet),
    Hub,
}

/// Opened stdio of a process that may not exist yet.
#[derive(Debug)]
pub(crate) struct Channels {
    hub: Option<Arc<Hub>>,
    stdin: Source,
    stdout: Output,
    stderr: Output,
    terminal: bool,
    exec: bool,
    /// Holds a FIFO's input open until it is closed by request.
    closer: Closer,
}

type Closer = Arc<Mutex<Option<pipe::Sender>>>;

/// Where the input comes from.
#[derive(Debug)]
enum Source {
    Null,
    Fifo(pipe::Receiver),
    Hub,
}

/// A process's stdio at work. Dropping it ends the tasks.
#[derive(Debug)]
pub(crate) struct Running {
    hub: Option<Arc<Hub>>,
    closer: Closer,
    ended: watch::Sender<bool>,
    output: JoinHandle<()>,
    input: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.output.abort();
        self.input.abort();
    }
}

impl Channels {
    /// Opens what the URIs name.
    pub async fn open(container: &str, uris: &Uris, exec: bool) -> Result<Self, PodError> {
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| PodError::Stdio {
            container: container.to_owned(),
            source,
        };
        let parse = |uri: &str| Sink::parse(uri).map_err(|error| fail(error.into()));
        let (stdin, stdout) = (parse(&uris.stdin)?, parse(&uris.stdout)?);
        let stderr = if uris.terminal { Sink::Null } else { parse(&uris.stderr)? };
        let hub = match (&stdin, &stdout, &stderr) {
            (_, Sink::Hub(log), _) | (_, _, Sink::Hub(log)) | (Sink::Hub(log), _, _) => {
                let log = log.clone();
                let opened = tokio::task::spawn_blocking(move || Hub::new(log.as_ref())).await;
                let hub = opened.map_err(|error| fail(error.into()))?;
                Some(Arc::new(hub.map_err(|error| fail(error.into()))?))
            }
            _ => None,
        };
        let file = |path: PathBuf| {
            move |source| fail(Box::new(PodError::File { action: "open", path, source }))
        };
        let mut closer = None;
        let stdin = match stdin {
            Sink::Null => Source::Null,
            Sink::Hub(_) => Source::Hub,
            Sink::Path(path) => {
                let (receiver, sender) = open_input(&path).map_err(file(path))?;
                closer = Some(sender);
                Source::Fifo(receiver)
            }
        };
        let output = async |sink: Sink| match sink {
            Sink::Null => Ok(Output::Null),
            Sink::Hub(_) => Ok(Output::Hub),
            Sink::Path(path) => {
                let opened = Outlet::open(&path).await;
                opened.map(Output::Outlet).map_err(file(path))
            }
        };
        let (stdout, stderr) = (output(stdout).await?, output(stderr).await?);
        if let (Some(hub), false) = (&hub, matches!(stdin, Source::Hub)) {
            hub.refuse_stdin();
        }
        let closer = Arc::new(Mutex::new(closer));
        Ok(Self { hub, stdin, stdout, stderr, terminal: uris.terminal, exec, closer })
    }

    /// Joins the streams, if they go through a hub.
    pub fn attach(&self, wanted: Wanted) -> Option<Attachment> {
        self.hub.as_ref().map(|hub| hub.attach(wanted))
    }

    /// Ends the stdin after what was written to it; the future does not borrow `self`.
    pub fn close_stdin(&self) -> BoxClose {
        Box::pin(close(self.hub.clone(), Arc::clone(&self.closer)))
    }

    /// Opens the link's streams and starts carrying. The queue gets one [`Input::Delivered`]: when
    /// all output is where it goes, or when that takes too long after [`Running::ended`].
    pub fn run(
        self,
        link: &Link,
        process: ProcessId,
        queue: mpsc::Sender<Input>,
    ) -> (Streams, Running) {
        let mut streams = Streams::default();
        let open = |wanted: bool| wanted.then(|| link.open());
        let stdin = open(!matches!(self.stdin, Source::Null));
        let stdout = open(true);
        let stderr = open(!self.terminal);
        streams.stdin = stdin.as_ref().map(|(id, ..)| *id);
        streams.stdout = stdout.as_ref().map(|(id, ..)| *id);
        streams.stderr = stderr.as_ref().map(|(id, ..)| *id);
        let fifo =
            matches!(self.stdout, Output::Outlet(_)) || matches!(self.stderr, Output::Outlet(_));
        let patience = match (self.exec, fifo) {
            (true, _) => DRAIN_EXEC,
            (false, true) => DRAIN_FIFO,
            (false, false) => DRAIN,
        };
        let (ended, ending) = watch::channel(false);
        let (hub, closer) = (self.hub, self.closer);
        let input = tokio::spawn(feed(self.stdin, hub.clone(), stdin.map(|(_, _, writer)| writer)));
        let output = tokio::spawn(carry(
            hub.clone(),
            (self.stdout, stdout.map(|(_, reader, _)| reader)),
            (self.stderr, stderr.map(|(_, reader, _)| reader)),
            Told { process, queue, ending, patience },
        ));
        (streams, Running { hub, closer, ended, output, input })
    }
}

impl Running {
    /// Joins the streams, if they go through a hub.
    pub fn attach(&self, wanted: Wanted) -> Option<Attachment> {
        self.hub.as_ref().map(|hub| hub.attach(wanted))
    }

    /// Ends the stdin after what was written to it; the future does not borrow `self`.
    pub fn close_stdin(&self) -> BoxClose {
        Box::pin(close(self.hub.clone(), Arc::clone(&self.closer)))
    }

    /// The process has ended: its output is complete soon.
    pub fn ended(&self) {
        self.ended.send_replace(true);
        self.input.abort();
        if let Some(hub) = &self.hub {
            hub.ended();
            hub.refuse_stdin();
        }
    }
}

type BoxClose = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn close(hub: Option<Arc<Hub>>, closer: Closer) {
    // With it the FIFO's reader sees the end, once the client's own end is closed.
    closer.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(hub) = hub {
        hub.stdin().close().await;
    }
}

struct Told {
    process: ProcessId,
    queue: mpsc::Sender<Input>,
    ending: watch::Receiver<bool>,
    patience: Duration,
}

impl Told {
    async fn delivered(&self, on_time: bool, lost: Loss) {
        let process = self.process.clone();
        // A queue that is gone has an actor that is gone: nobody waits for the exit.
        let _ = self.queue.send(Input::Delivered { process, on_time, lost }).await;
    }
}

async fn carry(
    hub: Option<Arc<Hub>>,
    (mut stdout, out_reader): (Output, Option<StreamReader>),
    (mut stderr, err_reader): (Output, Option<StreamReader>),
    mut told: Told,
) {
    let both = async {
        tokio::join!(
            one(hub.as_deref(), Stream::Stdout, &mut stdout, out_reader),
            one(hub.as_deref(), Stream::Stderr, &mut stderr, err_reader),
        )
    };
    {
        let mut both = std::pin::pin!(both);
        let late = async {
            // An error means that `Running` is gone, and this task with it.
            let _ = told.ending.wait_for(|ended| *ended).await;
            tokio::time::sleep(told.patience).await;
        };
        tokio::select! {
            _ = &mut both => {}
            () = late => {
                told.delivered(false, Loss::default()).await;
                both.await;
                if let Some(hub) = &hub {
                    hub.finish().await;
                }
                return;
            }
        }
    }
    let lost = match &hub {
        Some(hub) => hub.finish().await,
        None => Loss::default(),
    };
    told.delivered(true, lost).await;
    for outlet in [stdout, stderr] {
        if let Output::Outlet(outlet) = outlet
            && let Err(error) = outlet.drained().await
        {
            tracing::warn!(%error, "FIFO closed before its reader took all");
        }
    }
}

async fn one(hub: Option<&Hub>, stream: Stream, output: &mut Output, source: Option<StreamReader>) {
    let Some(mut source) = source else { return };
    let carried = match (output, hub) {
        (Output::Outlet(outlet), _) => outlet.copy(&mut source).await,
        (Output::Hub, Some(hub)) => hub.pump(stream, &mut source).await,
        _ => tokio::io::copy(&mut source, &mut tokio::io::sink()).await,
    };
    if let Err(error) = carried {
        tracing::debug!(stream = stream.name(), %error, "output ended early");
    }
}

async fn feed(input: Source, hub: Option<Arc<Hub>>, sink: Option<StreamWriter>) {
    let Some(mut sink) = sink else { return };
    let fed = match (input, hub) {
        (Source::Fifo(mut fifo), _) => {
            let copied = tokio::io::copy(&mut fifo, &mut sink).await;
            let ended = tokio::io::AsyncWriteExt::shutdown(&mut sink).await;
            copied.and(ended)
        }
        (Source::Hub, Some(hub)) => {
            let fed = hub.feed_stdin(&mut sink).await;
            hub.refuse_stdin();
            fed
        }
        _ => Ok(()),
    };
    if let Err(error) = fed {
        tracing::debug!(%error, "process takes no more input");
    }
}
