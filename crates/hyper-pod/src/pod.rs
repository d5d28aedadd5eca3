//! The handle to a pod: what can be asked of it.

use std::path::PathBuf;
use std::sync::Arc;

use hyper_link::message::{ProcessId, ProcessInfo, Stats};
use hyper_stdio::{Attachment, Wanted};
use hyper_task::pod::{ExitRecord, Phases, PodReport};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::actor::{Actor, Input};
use crate::guest::Guest;
use crate::record::{Reply, Status};
use crate::{PodError, RootfsMount, Settings, Uris};

/// Inputs that may wait for the actor; more make callers wait.
const QUEUE: usize = 256;

/// A container to make.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    pub id: String,
    /// Directory with `config.json`; the socket and the exit record go there.
    pub bundle: PathBuf,
    pub rootfs: Vec<RootfsMount>,
    pub stdio: Uris,
}

/// One more process, to be started by [`Pod::start`].
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub container: String,
    pub id: String,
    /// OCI `process` object.
    pub spec: Value,
    pub stdio: Uris,
}

/// A process as its callers see it.
#[derive(Debug, Clone)]
pub struct ProcessReport {
    pub bundle: PathBuf,
    /// The hypervisor's: a process of a guest has no other id on the host.
    pub pid: u32,
    pub status: Status,
    pub stdio: Uris,
    pub exit: Option<ExitRecord>,
}

/// What happened, in order.
#[derive(Debug, Clone)]
pub enum PodEvent {
    Created { container: String, bundle: PathBuf, rootfs: Vec<RootfsMount>, stdio: Uris, pid: u32 },
    Started { container: String, pid: u32 },
    ExecAdded { container: String, exec: String },
    ExecStarted { container: String, exec: String, pid: u32 },
    Exited { process: ProcessId, pid: u32, exit: ExitRecord },
    Deleted { process: ProcessId, pid: u32, exit: ExitRecord },
    Paused { container: String },
    Resumed { container: String },
    Oom { container: String },
}

pub(crate) enum Command {
    Create { request: CreateRequest, reply: Reply<u32> },
    Exec { request: ExecRequest, reply: Reply<u32> },
    Start { process: ProcessId, reply: Reply<u32> },
    Signal { process: ProcessId, signal: i32, all: bool, reply: Reply<()> },
    Resize { process: ProcessId, rows: u16, columns: u16, reply: Reply<()> },
    CloseStdin { process: ProcessId, reply: Reply<()> },
    Report { process: ProcessId, reply: Reply<ProcessReport> },
    Wait { process: ProcessId, reply: Reply<oneshot::Receiver<ExitRecord>> },
    Delete { process: ProcessId, reply: Reply<(u32, ExitRecord)> },
    SetPaused { container: String, paused: bool, reply: Reply<()> },
    Update { container: String, resources: Value, reply: Reply<()> },
    Stats { container: String, reply: Reply<Stats> },
    Processes { container: String, reply: Reply<Vec<ProcessInfo>> },
    Guest { container: String, action: &'static str, reply: Reply<Arc<Guest>> },
    Attach { process: ProcessId, wanted: Wanted, reply: Reply<Attachment> },
    Phases { container: String, reply: Reply<Phases> },
    Pod { reply: Reply<PodReport> },
    Shutdown { now: bool, reply: Reply<bool> },
}

/// A pod. Clones share it. It ends with [`Pod::shutdown`].
#[derive(Debug, Clone)]
pub struct Pod {
    queue: mpsc::Sender<Input>,
}

impl Pod {
    /// A pod without guest or containers, and what happens in it. Within a tokio runtime.
    pub fn new(settings: Settings) -> (Self, mpsc::UnboundedReceiver<PodEvent>) {
        let (queue, inputs) = mpsc::channel(QUEUE);
        let (events, receiver) = mpsc::unbounded_channel();
        let pod = Self { queue: queue.clone() };
        // The task ends with `shutdown`; the runtime owns it.
        tokio::spawn(Actor::new(settings, queue, events).run(inputs));
        (pod, receiver)
    }

    /// Makes a container, and the guest with the first; its process does not run yet. Returns
    /// the hypervisor's process id.
    ///
    /// # Errors
    /// [`PodError`]; the pod is then as it was.
    pub async fn create(&self, request: CreateRequest) -> Result<u32, PodError> {
        self.ask(|reply| Command::Create { request, reply }).await
    }

    /// Adds a process to a running container.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn exec(&self, request: ExecRequest) -> Result<u32, PodError> {
        self.ask(|reply| Command::Exec { request, reply }).await
    }

    /// Lets a created process run. Returns the hypervisor's process id.
    ///
    /// # Errors
    /// [`PodError`]; the process has then exited.
    pub async fn start(&self, process: ProcessId) -> Result<u32, PodError> {
        self.ask(|reply| Command::Start { process, reply }).await
    }

    /// Sends a signal to a process, or with `all` to every process of its container.
    ///
    /// # Errors
    /// [`PodError`]; `NotFound` for a process that has ended.
    pub async fn signal(&self, process: ProcessId, signal: i32, all: bool) -> Result<(), PodError> {
        self.ask(|reply| Command::Signal { process, signal, all, reply }).await
    }

    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn resize(
        &self,
        process: ProcessId,
        rows: u16,
        columns: u16,
    ) -> Result<(), PodError> {
        self.ask(|reply| Command::Resize { process, rows, columns, reply }).await
    }

    /// Ends a process's stdin after what was written to it.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn close_stdin(&self, process: ProcessId) -> Result<(), PodError> {
        self.ask(|reply| Command::CloseStdin { process, reply }).await
    }

    /// What has become of a process.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn process(&self, process: ProcessId) -> Result<ProcessReport, PodError> {
        self.ask(|reply| Command::Report { process, reply }).await
    }

    /// Waits until a process's exit is announced.
    ///
    /// # Errors
    /// `NotFound`, also when it is deleted meanwhile.
    pub async fn wait(&self, process: ProcessId) -> Result<ExitRecord, PodError> {
        let id = process.container.clone();
        let waiter = self.ask(|reply| Command::Wait { process, reply }).await?;
        waiter.await.map_err(|_| PodError::NotFound { what: "container", id })
    }

    /// Removes an exited (or never started) process. With the last container the guest goes.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn delete(&self, process: ProcessId) -> Result<(u32, ExitRecord), PodError> {
        self.ask(|reply| Command::Delete { process, reply }).await
    }

    /// Stops a container's processes where they are, or lets them go on.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn set_paused(&self, container: &str, paused: bool) -> Result<(), PodError> {
        let container = container.to_owned();
        self.ask(|reply| Command::SetPaused { container, paused, reply }).await
    }

    /// Changes limits: the OCI `linux.resources` object.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn update(&self, container: &str, resources: Value) -> Result<(), PodError> {
        let container = container.to_owned();
        self.ask(|reply| Command::Update { container, resources, reply }).await
    }

    /// Counters of a container.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn stats(&self, container: &str) -> Result<Stats, PodError> {
        let container = container.to_owned();
        self.ask(|reply| Command::Stats { container, reply }).await
    }

    /// Processes, with their ids in the guest.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn processes(&self, container: &str) -> Result<Vec<ProcessInfo>, PodError> {
        let container = container.to_owned();
        self.ask(|reply| Command::Processes { container, reply }).await
    }

    /// Joins a process's streams from now on.
    ///
    /// # Errors
    /// [`PodError`]; `Unsupported` when they go to FIFOs.
    pub async fn attach(&self, process: ProcessId, wanted: Wanted) -> Result<Attachment, PodError> {
        self.ask(|reply| Command::Attach { process, wanted, reply }).await
    }

    /// The guest of a container that runs, for an `action` that a paused one cannot do.
    pub(crate) async fn guest(
        &self,
        container: &str,
        action: &'static str,
    ) -> Result<Arc<Guest>, PodError> {
        let container = container.to_owned();
        self.ask(|reply| Command::Guest { container, action, reply }).await
    }

    /// When things happened to a container.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn phases(&self, container: &str) -> Result<Phases, PodError> {
        let container = container.to_owned();
        self.ask(|reply| Command::Phases { container, reply }).await
    }

    /// The pod as a whole.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn report(&self) -> Result<PodReport, PodError> {
        self.ask(|reply| Command::Pod { reply }).await
    }

    /// Ends the pod if it has no containers, or `now` in any case; `false`: it goes on.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn shutdown(&self, now: bool) -> Result<bool, PodError> {
        match self.ask(|reply| Command::Shutdown { now, reply }).await {
            // It had ended.
            Err(PodError::Dead { .. }) => Ok(true),
            other => other,
        }
    }

    pub(crate) fn from_queue(queue: mpsc::Sender<Input>) -> Self {
        Self { queue }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, PodError> {
        let (reply, answer) = oneshot::channel();
        let gone = || PodError::Dead { pod: String::new(), reason: "it was shut down".to_owned() };
        self.queue.send(Input::Command(command(reply))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
