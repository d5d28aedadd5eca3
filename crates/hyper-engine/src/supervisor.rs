//! The supervisor of one pod, as hyperd drives it.
//!
//! containerd's Task API over ttrpc, and `hyper.pod.v1` on `BUNDLE/pod.sock`. hyperd is a client
//! like containerd: it starts the supervisor program, asks, and may go away at any time. What it
//! needs to come back is in the bundle: [`ADDRESS_FILE`].
//!
//! - [`files`]: files and processes of the container.
//! - [`launch`]: starts the program and learns its address.
//! - [`publish`]: the service that supervisors send their events to.
//! - [`Pod`]: one connected supervisor with one container.

pub(crate) mod files;
pub(crate) mod launch;
pub(crate) mod publish;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use hyper_shim::{Refusal, TaskClient, TaskError};
use hyper_stdio::Wanted;
use hyper_stdio::attach::{FrameReader, FrameWriter};
use hyper_task::pod::{Answer, Call, ExitRecord, NetworkCounters, Phases, PodReport};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::container::state::Exit;
use crate::{Error, ProgramFault, Result};

/// Where hyperd keeps [`Address`] in the bundle.
pub(crate) const ADDRESS_FILE: &str = "hyperd-address.json";
/// The call that changes limits.
const UPDATE: &str = "Update";
/// For answers that need no work in the guest.
const QUICK: Duration = Duration::from_secs(10);
/// For a guest to boot under emulation on a busy host.
const BOOT: Duration = Duration::from_secs(180);
/// Between two questions whether a pod is empty.
const AGAIN: Duration = Duration::from_millis(100);
/// For a guest to go away.
const END: Duration = Duration::from_secs(30);

/// How to reach a supervisor again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    /// `unix:///…`
    pub address: String,
    /// Major version of the Task API it speaks.
    pub version: u32,
    /// The supervisor is another's: it is to outlive this container.
    #[serde(default)]
    pub joined: bool,
}

/// Streams of an attached process.
pub type PodStreams = (FrameReader<OwnedReadHalf>, FrameWriter<OwnedWriteHalf>);

/// One connected supervisor and its container.
#[derive(Debug)]
pub(crate) struct Pod {
    id: String,
    bundle: PathBuf,
    task: TaskClient,
    joined: bool,
    /// The supervisor, once it has told its number.
    process: OnceLock<Arc<OwnedFd>>,
    attached: watch::Sender<usize>,
}

/// What the supervisor knows of the container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Up {
        pid: u32,
        paused: bool,
    },
    Ended,
    /// Created and never started.
    Unstarted,
}

/// What a container is made from; see Task `Create`.
#[derive(Debug, Clone)]
pub(crate) struct CreateTask {
    /// JSON of `hyper_task::rootfs::RootfsImage`.
    pub rootfs: PathBuf,
    pub options: Vec<String>,
    pub terminal: bool,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// While it lives, the supervisor keeps what this client has not read yet.
#[derive(Debug)]
pub(crate) struct AttachGuard(watch::Sender<usize>);

impl Drop for AttachGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Pod {
    /// Connects to a supervisor that was launched for `id`.
    pub async fn connect(id: &str, bundle: &Path, address: &Address) -> Result<Self> {
        let at = hyper_shim::Address { address: address.address.clone(), version: address.version };
        let task = tokio::time::timeout(QUICK, TaskClient::connect(&at))
            .await
            .map_err(|_| deadline(id, "connect to the supervisor", QUICK))?
            .map_err(|e| failure(id, "connect to the supervisor", e.to_string()))?;
        Ok(Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            task,
            joined: address.joined,
            process: OnceLock::new(),
            attached: watch::Sender::new(0),
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Learns which process the supervisor is. (The socket's peer is the program that bound it,
    /// and that has ended.)
    pub async fn identify(&self) {
        let request = api::ConnectRequest { id: self.id.clone(), ..Default::default() };
        let answer: Result<api::ConnectResponse> = self.ask("Connect", &request, Some(QUICK)).await;
        let opened = answer.map(|answer| {
            let pid = Pid::from_raw(answer.shim_pid.cast_signed())?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        });
        match opened {
            // It has answered and still listens, so the number was its own when it was opened.
            Ok(Some(process)) if !self.task.is_closed() => _ = self.process.set(Arc::new(process)),
            Ok(_) => tracing::debug!(container = self.id, "supervisor's process is not known"),
            Err(error) => tracing::debug!(container = self.id, %error, "connect"),
        }
    }

    /// Boots the guest of a pod without containers.
    pub async fn create_sandbox(&self) -> Result<()> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            ..Default::default()
        };
        let _: api::CreateTaskResponse = self.ask("Create", &request, Some(BOOT)).await?;
        Ok(())
    }

    /// Boots the guest, if it is the pod's first, and makes the container in it.
    pub async fn create(&self, create: CreateTask) -> Result<()> {
        let mount = containerd_shim_protos::types::mount::Mount {
            type_: hyper_task::rootfs::MOUNT_TYPE.to_owned(),
            source: create.rootfs.display().to_string(),
            options: create.options,
            ..Default::default()
        };
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs: vec![mount],
            terminal: create.terminal,
            stdin: create.stdin,
            stdout: create.stdout,
            stderr: create.stderr,
            ..Default::default()
        };
        let _: api::CreateTaskResponse = self.ask("Create", &request, Some(BOOT)).await?;
        Ok(())
    }

    /// Lets the first process (or an exec) run; its process id in the guest.
    pub async fn start(&self, exec: Option<&str>) -> Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec.unwrap_or_default().to_owned(),
            ..Default::default()
        };
        let started: api::StartResponse = self.ask("Start", &request, Some(BOOT)).await?;
        Ok(started.pid)
    }

    /// Waits until the first process has ended, however that becomes known.
    pub async fn wait(&self) -> Exit {
        let answer = self.wait_process(None).await;
        // Written before the exit is announced, and knows more than the answer.
        if let Some(exit) = read_exit(&self.bundle).await {
            return exit;
        }
        match answer {
            Ok((code, unix_ns)) => Exit { code, unix_ns, ..Exit::default() },
            Err(error) => Exit {
                code: 255,
                unix_ns: hyper_stdio::now_ns(),
                reason: format!("the pod's supervisor is gone: {error}"),
                ..Exit::default()
            },
        }
    }

    /// Exit code and time of a process.
    pub async fn wait_process(&self, exec: Option<&str>) -> Result<(i32, i64)> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec.unwrap_or_default().to_owned(),
            ..Default::default()
        };
        let ended: api::WaitResponse = self.ask("Wait", &request, None).await?;
        Ok((exit_code(ended.exit_status), unix_ns(ended.exited_at.as_ref())))
    }

    /// What has become of the container.
    pub async fn state(&self) -> Result<Found> {
        use containerd_shim_protos::api::Status;
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        let state: api::StateResponse = self.ask("State", &request, Some(QUICK)).await?;
        Ok(match state.status.enum_value_or_default() {
            Status::RUNNING => Found::Up { pid: state.pid, paused: false },
            Status::PAUSED | Status::PAUSING => Found::Up { pid: state.pid, paused: true },
            Status::STOPPED => Found::Ended,
            Status::CREATED | Status::UNKNOWN => Found::Unstarted,
        })
    }

    pub async fn kill(&self, exec: Option<&str>, signal: i32, all: bool) -> Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec.unwrap_or_default().to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        self.tell("Kill", &request, QUICK).await
    }

    pub async fn pause(&self) -> Result<()> {
        let request = api::PauseRequest { id: self.id.clone(), ..Default::default() };
        self.tell("Pause", &request, QUICK).await
    }

    pub async fn resume(&self) -> Result<()> {
        let request = api::ResumeRequest { id: self.id.clone(), ..Default::default() };
        self.tell("Resume", &request, QUICK).await
    }

    pub async fn resize(&self, exec: Option<&str>, rows: u16, columns: u16) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.unwrap_or_default().to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        self.tell("ResizePty", &request, QUICK).await
    }

    /// Counters, as the supervisor packs them.
    pub async fn stats(&self) -> Result<Any> {
        let request = api::StatsRequest { id: self.id.clone(), ..Default::default() };
        let stats: api::StatsResponse = self.ask("Stats", &request, Some(QUICK)).await?;
        Ok(stats.stats.unwrap_or_default())
    }

    /// Changes limits; `resources` is the OCI `linux.resources` object.
    pub async fn update(&self, resources: &serde_json::Value) -> Result<()> {
        let mut any = Any::new();
        any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into();
        any.value = resources.to_string().into_bytes();
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(any).into(),
            ..Default::default()
        };
        self.tell(UPDATE, &request, QUICK).await
    }

    /// Adds a process, not yet running; `process` is the OCI `process` object.
    pub async fn exec(
        &self,
        exec: &str,
        process: &serde_json::Value,
        terminal: bool,
        stdin: bool,
    ) -> Result<()> {
        let hub = hyper_task::stdio::HUB;
        let mut any = Any::new();
        any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".into();
        any.value = process.to_string().into_bytes();
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal,
            stdin: if stdin { hub.to_owned() } else { String::new() },
            stdout: hub.to_owned(),
            stderr: if terminal { String::new() } else { hub.to_owned() },
            spec: Some(any).into(),
            ..Default::default()
        };
        self.tell("Exec", &request, QUICK).await
    }

    /// Forgets an exec that has ended.
    pub async fn delete_exec(&self, exec: &str) -> Result<()> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let _: api::DeleteResponse = self.ask("Delete", &request, Some(QUICK)).await?;
        Ok(())
    }

    /// Joins a process's streams. The guard is to live as long as the client reads.
    pub async fn attach(
        &self,
        exec: Option<String>,
        wanted: Wanted,
    ) -> Result<(PodStreams, AttachGuard)> {
        self.attached.send_modify(|count| *count += 1);
        let guard = AttachGuard(self.attached.clone());
        let socket = self.bundle.join(hyper_task::pod::SOCKET);
        let streams = hyper_stdio::attach::attach(&socket, exec, wanted)
            .await
            .map_err(|e| failure(&self.id, "attach", chain(&e)))?;
        Ok((streams, guard))
    }

    /// Waits until every attached client has read everything or is gone.
    pub async fn drained(&self) {
        let mut attached = self.attached.subscribe();
        // The sender lives in `self`.
        let _ = attached.wait_for(|count| *count == 0).await;
    }

    pub async fn phases(&self) -> Result<Phases> {
        match self.call(&Call::Phases).await? {
            Answer::Phases(phases) => Ok(phases),
            _ => Err(failure(&self.id, "ask for phases", "another answer came".to_owned())),
        }
    }

    /// Counters of the pod's interfaces.
    pub async fn networks(&self) -> Result<Vec<NetworkCounters>> {
        match self.call(&Call::Networks).await? {
            Answer::Networks { networks } => Ok(networks),
            _ => Err(failure(&self.id, "ask for networks", "another answer came".to_owned())),
        }
    }

    /// Brings the guest's interfaces to what is in the pod's network namespace now.
    pub async fn rewire(&self) -> Result<()> {
        match self.call(&Call::Rewire).await? {
            Answer::Done => Ok(()),
            _ => Err(failure(&self.id, "change its networks", "another answer came".to_owned())),
        }
    }

    /// Takes lines out of the container's `/etc/hosts` and adds others.
    pub async fn change_hosts(&self, gone: Vec<String>, new: Vec<String>) -> Result<()> {
        match self.call(&Call::Hosts { gone, new }).await? {
            Answer::Done => Ok(()),
            _ => Err(failure(&self.id, "change its /etc/hosts", "another answer came".to_owned())),
        }
    }

    pub async fn report(&self) -> Result<PodReport> {
        match self.call(&Call::Pod).await? {
            Answer::Pod(report) => Ok(*report),
            _ => Err(failure(&self.id, "ask for a report", "another answer came".to_owned())),
        }
    }

    /// Ends the pod: the container's remains and its guest, then the supervisor. Returns when the
    /// guest was gone, or `None` if the pod did not end in order: then something may be left.
    /// What does not go by asking is killed. The supervisor of a pod that the container joined, or
    /// that `others` are still in, goes on.
    pub async fn end(&self, others: bool) -> Option<i64> {
        let guest_gone = self.delete().await;
        if self.joined || others {
            // Ends it when nothing is left in it.
            self.shut_down(false).await;
            return guest_gone;
        }
        self.shut_down(true).await;
        self.gone_or_killed().await;
        guest_gone
    }

    /// The same for a sandbox: what is still in the pod may tell the rest of its output first.
    pub async fn end_last(&self) -> Option<i64> {
        let guest_gone = self.delete().await;
        let emptied = async {
            loop {
                self.shut_down(false).await;
                if tokio::time::timeout(AGAIN, self.ended()).await.is_ok() {
                    return;
                }
            }
        };
        if tokio::time::timeout(END, emptied).await.is_err() {
            self.shut_down(true).await;
            self.gone_or_killed().await;
        }
        guest_gone
    }

    async fn delete(&self) -> Option<i64> {
        let request = api::DeleteRequest { id: self.id.clone(), ..Default::default() };
        let deleted: Result<api::DeleteResponse> = self.ask("Delete", &request, Some(END)).await;
        if let Err(error) = &deleted {
            tracing::debug!(container = self.id, %error, "delete");
        }
        deleted.is_ok().then(hyper_stdio::now_ns)
    }

    async fn shut_down(&self, now: bool) {
        let request = api::ShutdownRequest { id: self.id.clone(), now, ..Default::default() };
        if let Err(error) = self.tell("Shutdown", &request, QUICK).await {
            tracing::debug!(container = self.id, %error, "shutdown");
        }
    }

    async fn gone_or_killed(&self) {
        if tokio::time::timeout(END, self.ended()).await.is_err() {
            tracing::warn!(container = self.id, "supervisor does not end: it is killed");
            self.kill_supervisor();
        }
    }

    /// Waits until the supervisor is gone. Its socket is too then: it removes it when it ends.
    async fn ended(&self) {
        match self.process.get().cloned() {
            // Readable once the process has ended; pidfd_open(2). On a thread of its own: tokio
            // has no safe way to wait for a descriptor that is not one of its own kinds.
            Some(process) => {
                let wait = move || {
                    let mut fds = [PollFd::new(&process, PollFlags::IN)];
                    let within = Timespec { tv_sec: END.as_secs().cast_signed(), tv_nsec: 0 };
                    rustix::event::poll(&mut fds, Some(&within))
                };
                // Not to be had is as good as over: the connection is closed too.
                let _ = tokio::task::spawn_blocking(wait).await;
            }
            None => self.task.closed().await,
        }
    }

    /// Kills everything at once: for a supervisor that no longer does what it is asked.
    pub fn kill_supervisor(&self) {
        if let Some(process) = self.process.get()
            && let Err(error) = pidfd_send_signal(process, Signal::KILL)
        {
            tracing::warn!(container = self.id, %error, "kill the supervisor");
        }
    }

    async fn call(&self, call: &Call) -> Result<Answer> {
        let socket = self.bundle.join(hyper_task::pod::SOCKET);
        hyper_stdio::attach::call(&socket, call)
            .await
            .map_err(|e| failure(&self.id, "ask the supervisor", chain(&e)))
    }

    async fn tell<Q>(&self, method: &'static str, request: &Q, within: Duration) -> Result<()>
    where
        Q: containerd_shim_protos::protobuf::Message,
    {
        let _: api::Empty = self.ask(method, request, Some(within)).await?;
        Ok(())
    }

    async fn ask<Q, R>(
        &self,
        method: &'static str,
        request: &Q,
        within: Option<Duration>,
    ) -> Result<R>
    where
        Q: containerd_shim_protos::protobuf::Message,
        R: containerd_shim_protos::protobuf::Message,
    {
        self.task.call(method, request, within).await.map_err(|error| match error {
            TaskError::Deadline(within) => deadline(&self.id, method, within),
            TaskError::Refused { why, message } => match (program_fault(&message), why) {
                (Some(fault), _) => Error::Program { fault, message },
                (None, Refusal::Argument) => Error::Invalid(message),
                (None, Refusal::Unsupported) => Error::Unsupported(message),
                // Whoever asks for a change is told the state; others look for themselves.
                (None, Refusal::State) if method == UPDATE => Error::Conflict(message),
                (None, _) => failure(&self.id, method, message),
            },
            TaskError::Gone(why) => failure(&self.id, method, why),
        })
    }
}

/// The exit record that a supervisor left in its bundle.
pub(crate) async fn read_exit(bundle: &Path) -> Option<Exit> {
    let text = tokio::fs::read(bundle.join(hyper_task::pod::EXIT_FILE)).await.ok()?;
    let record: ExitRecord = serde_json::from_slice(&text).ok()?;
    Some(Exit {
        code: record.code,
        unix_ns: record.unix_ns,
        oom_killed: record.oom_killed,
        reason: record.reason.unwrap_or_default(),
        note: record.note.unwrap_or_default(),
    })
}

/// The address that an earlier hyperd left in the bundle.
pub(crate) async fn read_address(bundle: &Path) -> Option<Address> {
    let text = tokio::fs::read(bundle.join(ADDRESS_FILE)).await.ok()?;
    serde_json::from_slice(&text).ok()
}

/// Tells a program that cannot be run from a failure of ours, by the words runtimes use for it.
fn program_fault(message: &str) -> Option<ProgramFault> {
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if has(&["unable to find user", "unable to find group", "no matching entries", "unknown user"])
    {
        Some(ProgramFault::UnknownUser)
    } else if has(&["executable file not found", "no such file or directory"]) {
        Some(ProgramFault::NotFound)
    } else if has(&["permission denied", "is a directory", "exec format error"]) {
        Some(ProgramFault::NotExecutable)
    } else {
        None
    }
}

fn exit_code(status: u32) -> i32 {
    i32::try_from(status).unwrap_or(255)
}

fn unix_ns(time: Option<&Timestamp>) -> i64 {
    time.map_or_else(hyper_stdio::now_ns, |time| {
        time.seconds.saturating_mul(1_000_000_000).saturating_add(time.nanos.into())
    })
}

/// A failure that is neither the program's nor the caller's.
pub(crate) fn trouble(id: &str, what: &'static str, why: String) -> Error {
    failure(id, what, why)
}

fn failure(id: &str, what: &'static str, why: String) -> Error {
    Error::Supervisor { id: crate::id::short(id).to_owned(), what, why }
}

fn deadline(id: &str, what: &'static str, within: Duration) -> Error {
    Error::Deadline { id: crate::id::short(id).to_owned(), what, seconds: within.as_secs() }
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
