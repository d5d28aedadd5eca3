//! One container that another runtime's shim runs, and everything on the host that belongs to it.
//!
//! ```text
//! create: root mounted ─► config.json ─► streams ─► shim started ─► its Create ─► watched
//! watched: its Wait answers, or it is gone ─► output delivered ─► exit.json ─► announced
//! delete: its Delete ─► shim ends (or is killed) ─► root released
//! ```
//! Invariants
//! - An exit is announced once, after its output is delivered and `exit.json` is written.
//! - A create that fails leaves neither shim nor mount behind.
//! - For its files only ([`hyper_task::annotation::FILES_ONLY`]) nothing but the root is made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use hyper_shim::{Program, TaskClient, TaskError};
use hyper_task::annotation::{FILES_ONLY, NAMES};
use hyper_task::foreign::{FILE, Foreign};
use hyper_task::pod::{ExitRecord, Phases};
use hyper_task::rootfs::{RootfsImage, RootfsOptions};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Result, blocking, file};
use crate::options::options;
use crate::root::{Root, mount_root};
use crate::stdio::{Streams, Uris};
use crate::{ForeignError, host, names, place, serve, spec};

/// For a container to be made, which some runtimes take long for.
const CREATE: Duration = Duration::from_secs(120);
/// For everything else that a shim is asked.
const ASK: Duration = Duration::from_secs(30);
/// How long an ended first process's output may take to be delivered before its exit is told.
const DRAIN: Duration = Duration::from_secs(60);
/// The same for an exec, whose children may keep its output open.
const DRAIN_EXEC: Duration = Duration::from_secs(2);
/// From SIGKILL to the end.
const KILL: Duration = Duration::from_secs(10);
/// The same for what could not be started.
const QUICK: Duration = Duration::from_millis(500);
/// For a shim to end that has nothing left.
const END: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;
const KILLED: i32 = 137;

/// Where and how a container is supervised.
#[derive(Debug, Clone)]
pub struct Settings {
    pub id: String,
    pub bundle: PathBuf,
    /// Socket for the shim's events: hyperd's.
    pub events: PathBuf,
    pub debug: bool,
    /// The supervisor's first instruction, nanoseconds since the Unix epoch.
    pub started_ns: i64,
}

/// A process of the container, in its shim.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty: the first.
    pub exec: String,
    pub pid: OnceLock<u32>,
    pub streams: Streams,
    pub exit: watch::Sender<Option<ExitRecord>>,
    /// It could not be started.
    unstarted: AtomicBool,
    watching: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// See the module.
#[derive(Debug)]
pub struct Container {
    pub(crate) settings: Settings,
    pub(crate) foreign: Foreign,
    shim: OnceLock<TaskClient>,
    made: tokio::sync::Mutex<Made>,
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
    pub(crate) phases: Mutex<Phases>,
    shim_pid: OnceLock<u32>,
    oom_file: OnceLock<PathBuf>,
}

/// What was acquired for it.
#[derive(Debug, Default)]
struct Made {
    root: Option<Root>,
    socket: Option<AbortOnDropHandle<()>>,
    resolver: Option<AbortOnDropHandle<()>>,
    launched: bool,
}

impl Container {
    /// The container of a bundle; nothing is done yet.
    ///
    /// # Errors
    /// The bundle does not say which runtime it is for.
    pub fn open(settings: Settings) -> Result<Arc<Self>> {
        let path = settings.bundle.join(FILE);
        let text = std::fs::read(&path).map_err(file("read", &path))?;
        let foreign = serde_json::from_slice(&text)
            .map_err(|error| file("understand", &path)(std::io::Error::from(error)))?;
        let phases = Phases { supervisor_started: Some(settings.started_ns), ..Phases::default() };
        Ok(Arc::new(Self {
            settings,
            foreign,
            shim: OnceLock::new(),
            made: tokio::sync::Mutex::default(),
            processes: Mutex::default(),
            phases: Mutex::new(phases),
            shim_pid: OnceLock::new(),
            oom_file: OnceLock::new(),
        }))
    }

    /// Makes the container; its process does not run yet.
    pub(crate) async fn create(self: &Arc<Self>, request: &api::CreateTaskRequest) -> Result<u32> {
        self.phase(|phases| &mut phases.create_received);
        let mut made = self.made.lock().await;
        let created = self.make(&mut made, request).await;
        if created.is_err() {
            self.undo(&mut made).await;
        }
        created
    }

    async fn make(
        self: &Arc<Self>,
        made: &mut Made,
        request: &api::CreateTaskRequest,
    ) -> Result<u32> {
        let bundle = self.settings.bundle.clone();
        let place = place::of(&bundle);
        let (image, own) = rootfs(request)?;
        let (roots, at) = (self.foreign.roots.clone(), place.join(place::ROOTFS));
        let (reserved, inner) = (bundle.clone(), place.clone());
        let root = blocking(move || {
            hyper_pod::reserve_exit(&reserved)?;
            place::make(&inner)?;
            place::remember(&inner, &image)?;
            mount_root(&image, &roots, &own, &at)
        })
        .await?;
        let at = root.at.clone();
        made.root = Some(root);
        let given = read_spec(&bundle).await?;
        let listener = hyper_stdio::socket::bind(&bundle.join(hyper_task::pod::SOCKET))
            .map_err(file("listen at", bundle.join(hyper_task::pod::SOCKET)))?;
        let serving = tokio::spawn(serve::serve(Arc::downgrade(self), listener));
        made.socket = Some(AbortOnDropHandle::new(serving));
        if given["annotations"].get(FILES_ONLY).is_some() {
            return Ok(0);
        }
        let note = given["annotations"][NAMES].as_str().map(PathBuf::from);
        if let Some(namespace) = namespace(&given) {
            let names = note.filter(|_| self.foreign.runtime.shares_kernel());
            let resolver = names::prepare(&namespace, names).await?;
            made.resolver =
                resolver.map(|found| AbortOnDropHandle::new(tokio::spawn(found.serve())));
        }
        let (document, volumes) = {
            let at = at.clone();
            blocking(move || spec::for_runtime(given, &at)).await?
        };
        if !volumes.is_empty() {
            let at = at.clone();
            blocking(move || crate::volumes::fill(&at, &volumes)).await?;
        }
        let path = place.join("config.json");
        tokio::fs::write(&path, document.to_string()).await.map_err(file("write", &path))?;
        let process = self.process("", request_uris(request)).await?;
        let program = self.program();
        made.launched = true;
        self.phase(|phases| &mut phases.hypervisor_started);
        let address =
            program.start(&self.settings.id, &place).await.map_err(|why| match place::log_tail(
                &place,
            ) {
                log if log.is_empty() => self.trouble("start its shim", why),
                log => self.trouble("start its shim", format!("{why}: {log}")),
            })?;
        let client = TaskClient::connect(&address)
            .await
            .map_err(|error| self.trouble("connect to its shim", error.to_string()))?;
        let _ = self.shim.set(client);
        let connected: api::ConnectResponse = self
            .ask("Connect", &api::ConnectRequest { id: self.id(), ..Default::default() }, ASK)
            .await?;
        // The shim is to this container what agent and guest are to others.
        self.phase(|phases| &mut phases.agent_ready);
        let _ = self.shim_pid.set(connected.shim_pid);
        place::remember_shim(&place, connected.shim_pid);
        let fifos = process.streams.fifos.clone();
        let create = api::CreateTaskRequest {
            id: self.id(),
            bundle: place.display().to_string(),
            terminal: fifos.terminal,
            stdin: fifos.stdin,
            stdout: fifos.stdout,
            stderr: fifos.stderr,
            options: options(&self.foreign.runtime)?.into(),
            ..Default::default()
        };
        let created: api::CreateTaskResponse = self.ask("Create", &create, CREATE).await?;
        let _ = process.pid.set(created.pid);
        if let Some(file) = host::oom_file(created.pid) {
            let _ = self.oom_file.set(file);
        }
        self.phase(|phases| &mut phases.container_created);
        self.watch(&process);
        Ok(created.pid)
    }

    /// Lets a created process run.
    pub(crate) async fn start(&self, exec: &str) -> Result<u32> {
        self.phase(|phases| &mut phases.start_received);
        let process = self.find(exec)?;
        let request =
            api::StartRequest { id: self.id(), exec_id: exec.to_owned(), ..Default::default() };
        let started: Result<api::StartResponse> = self.ask("Start", &request, CREATE).await;
        process.streams.started();
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                // Not all shims tell the end of what never ran.
                process.unstarted.store(true, Ordering::Relaxed);
                return Err(error);
            }
        };
        let _ = process.pid.set(started.pid);
        if exec.is_empty() {
            self.phase(|phases| &mut phases.process_started);
        }
        Ok(started.pid)
    }

    /// Adds a process, not yet running.
    pub(crate) async fn exec(self: &Arc<Self>, mut request: api::ExecProcessRequest) -> Result<()> {
        let exec = request.exec_id.clone();
        if exec.is_empty() || exec.contains('/') || self.find(&exec).is_ok() {
            return Err(ForeignError::Invalid(format!("exec id `{exec}` is taken or no id")));
        }
        let wanted = request.spec.take().unwrap_or_default();
        let given: Value = serde_json::from_slice(&wanted.value)
            .map_err(|error| ForeignError::Invalid(format!("process of exec `{exec}`: {error}")))?;
        let root = self.with_root(|root| root.at.clone()).await?;
        let document = blocking(move || spec::exec(given, &root)).await?;
        let uris = Uris {
            stdin: std::mem::take(&mut request.stdin),
            stdout: std::mem::take(&mut request.stdout),
            stderr: std::mem::take(&mut request.stderr),
            terminal: request.terminal,
        };
        let process = self.process(&exec, uris).await?;
        let fifos = process.streams.fifos.clone();
        (request.stdin, request.stdout, request.stderr) = (fifos.stdin, fifos.stdout, fifos.stderr);
        let mut any = Any::new();
        any.type_url = wanted.type_url;
        any.value = document.to_string().into_bytes();
        request.spec = Some(any).into();
        let added: Result<api::Empty> = self.ask("Exec", &request, ASK).await;
        if let Err(error) = added {
            self.processes().remove(&exec);
            return Err(error);
        }
        self.watch(&process);
        Ok(())
    }

    /// Removes an exec that has ended or never ran; or with an empty id the container.
    pub(crate) async fn delete(&self, exec: &str) -> Result<(u32, ExitRecord)> {
        if !exec.is_empty() {
            let process = self.find(exec)?;
            let request = api::DeleteRequest {
                id: self.id(),
                exec_id: exec.to_owned(),
                ..Default::default()
            };
            let deleted: api::DeleteResponse = self.ask("Delete", &request, ASK).await?;
            self.processes().remove(exec);
            let exit = process.exit.borrow().clone().unwrap_or_default();
            return Ok((deleted.pid, exit));
        }
        let mut made = self.made.lock().await;
        if let Ok(process) = self.find("")
            && self.shim.get().is_some()
            && process.exit.borrow().is_none()
        {
            let kill = api::KillRequest {
                id: self.id(),
                signal: SIGKILL,
                all: true,
                ..Default::default()
            };
            let _: Result<api::Empty> = self.ask("Kill", &kill, ASK).await;
            let mut exit = process.exit.subscribe();
            let patience = if process.unstarted.load(Ordering::Relaxed) { QUICK } else { KILL };
            let _ = tokio::time::timeout(patience, exit.wait_for(Option::is_some)).await;
        }
        let ended = self.find("").ok();
        let exit = ended.as_ref().and_then(|process| process.exit.borrow().clone());
        let pid = ended.and_then(|process| process.pid.get().copied()).unwrap_or_default();
        self.undo(&mut made).await;
        Ok((pid, exit.unwrap_or_default()))
    }

    /// Nothing is left that this supervisor is for.
    pub(crate) async fn is_empty(&self) -> bool {
        let made = self.made.lock().await;
        made.root.is_none() && !made.launched
    }

    /// Ends and releases whatever there is.
    async fn undo(&self, made: &mut Made) {
        let place = place::of(&self.settings.bundle);
        if made.launched {
            let deleted: Result<api::DeleteResponse> = match self.shim.get() {
                Some(_) => {
                    let request = api::DeleteRequest { id: self.id(), ..Default::default() };
                    self.ask("Delete", &request, ASK).await
                }
                None => Err(self.trouble("delete", "it never answered".to_owned())),
            };
            if let Err(error) = deleted {
                tracing::info!(%error, "the shim is told to clean up");
                if let Err(why) = self.program().delete(&self.settings.id, &place).await {
                    tracing::warn!(why, "clean up after the shim");
                }
            }
            self.end_shim().await;
            made.launched = false;
        }
        // No process, no streams: their FIFOs go with them.
        self.processes().clear();
        made.resolver = None;
        if let Some(root) = made.root.take() {
            let released = blocking(move || {
                root.release();
                Ok(())
            });
            if let Err(error) = released.await {
                tracing::error!(%error, "root not released");
            }
        }
        self.phase(|phases| &mut phases.guest_gone);
    }

    async fn end_shim(&self) {
        if let Some(client) = self.shim.get() {
            let request = api::ShutdownRequest { id: self.id(), now: true, ..Default::default() };
            let _: Result<api::Empty> = self.ask("Shutdown", &request, ASK).await;
            if tokio::time::timeout(END, client.closed()).await.is_ok() {
                return;
            }
        }
        let place = place::of(&self.settings.bundle);
        let program = self.foreign.runtime.shim.clone();
        let _ = blocking(move || {
            place::kill_shim(&place, &program);
            Ok(())
        })
        .await;
    }

    async fn process(self: &Arc<Self>, exec: &str, uris: Uris) -> Result<Arc<Process>> {
        let dir = place::of(&self.settings.bundle);
        let name = if exec.is_empty() { "init" } else { exec };
        let (weak, own) = (Arc::downgrade(self), exec.to_owned());
        let closing = async move {
            let Some(container) = weak.upgrade() else { return };
            let request = api::CloseIORequest {
                id: container.id(),
                exec_id: own,
                stdin: true,
                ..Default::default()
            };
            let closed: Result<api::Empty> = container.ask("CloseIO", &request, ASK).await;
            if let Err(error) = closed {
                tracing::debug!(%error, "close stdin");
            }
        };
        let streams = Streams::open(&dir, name, &uris, closing).await?;
        let process = Arc::new(Process {
            exec: exec.to_owned(),
            pid: OnceLock::new(),
            streams,
            exit: watch::Sender::new(None),
            unstarted: AtomicBool::new(false),
            watching: Mutex::default(),
        });
        self.processes().insert(exec.to_owned(), process.clone());
        Ok(process)
    }

    /// Waits for the process's end and announces it.
    fn watch(self: &Arc<Self>, process: &Arc<Process>) {
        let (container, own) = (Arc::downgrade(self), Arc::downgrade(process));
        let watching = tokio::spawn(async move {
            let (Some(container), Some(process)) = (container.upgrade(), own.upgrade()) else {
                return;
            };
            let record = container.ended(&process).await;
            process.exit.send_replace(Some(record));
        });
        *process.watching.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(AbortOnDropHandle::new(watching));
    }

    async fn ended(&self, process: &Process) -> ExitRecord {
        let request =
            api::WaitRequest { id: self.id(), exec_id: process.exec.clone(), ..Default::default() };
        let first = process.exec.is_empty();
        let answer: Result<api::WaitResponse, TaskError> = match self.shim.get() {
            Some(client) => client.call("Wait", &request, None).await,
            None => Err(TaskError::Gone("it was never there".to_owned())),
        };
        let mut record = ExitRecord { unix_ns: hyper_stdio::now_ns(), ..ExitRecord::default() };
        match answer {
            Ok(ended) => {
                record.code = i32::try_from(ended.exit_status).unwrap_or(255);
                if let Some(at) = ended.exited_at.as_ref() {
                    record.unix_ns = at.seconds.saturating_mul(1_000_000_000) + i64::from(at.nanos);
                }
                record.oom_killed =
                    first && self.oom_file.get().is_some_and(|file| host::oom_killed(file));
            }
            Err(error) => {
                record.code = KILLED;
                record.reason = Some(format!(
                    "the shim of runtime `{}` ({}) is gone: {error}",
                    self.foreign.runtime.name,
                    self.foreign.runtime.shim.display()
                ));
                if first {
                    // The container's processes do not end with it.
                    let place = place::of(&self.settings.bundle);
                    if let Err(why) = self.program().delete(&self.settings.id, &place).await {
                        tracing::warn!(why, "clean up after the shim");
                    }
                }
            }
        }
        let patience = if first { DRAIN } else { DRAIN_EXEC };
        let lost = process.streams.ended(patience).await;
        if !first {
            return record;
        }
        self.phase(|phases| &mut phases.process_exited);
        record.note = lost.told();
        let (bundle, told) = (self.settings.bundle.clone(), record.clone());
        let written = blocking(move || Ok(hyper_pod::write_exit(&bundle, &told)?)).await;
        if let Err(error) = written {
            tracing::error!(%error, "exit record");
        }
        record
    }

    /// Asks the shim.
    pub(crate) async fn ask<Q: Message, R: Message>(
        &self,
        method: &'static str,
        request: &Q,
        within: Duration,
    ) -> Result<R> {
        let Some(client) = self.shim.get() else {
            return Err(ForeignError::NotFound { what: "container", id: self.id() });
        };
        client.call(method, request, Some(within)).await.map_err(|error| match error {
            TaskError::Refused { message } => ForeignError::Refused(in_short(&message)),
            other => self.trouble(method, other.to_string()),
        })
    }

    /// The same in general.
    pub(crate) async fn pass<Q: Message, R: Message>(
        &self,
        method: &'static str,
        request: &Q,
    ) -> Result<R> {
        self.ask(method, request, ASK).await
    }

    pub(crate) fn id(&self) -> String {
        self.settings.id.clone()
    }

    pub(crate) fn find(&self, exec: &str) -> Result<Arc<Process>> {
        self.processes().get(exec).cloned().ok_or_else(|| ForeignError::NotFound {
            what: "process",
            id: if exec.is_empty() { self.id() } else { exec.to_owned() },
        })
    }

    /// What is to be known of the mounted root.
    pub(crate) async fn with_root<T>(&self, look: impl FnOnce(&Root) -> T) -> Result<T> {
        let made = self.made.lock().await;
        let seen = made.root.as_ref().map(look);
        seen.ok_or_else(|| ForeignError::NotFound { what: "root of container", id: self.id() })
    }

    /// The first process, while it runs.
    pub(crate) fn running(&self) -> Option<u32> {
        let process = self.find("").ok()?;
        let ended = process.exit.borrow().is_some();
        process.pid.get().copied().filter(|pid| *pid > 0 && !ended)
    }

    pub(crate) fn shim_pid(&self) -> u32 {
        self.shim_pid.get().copied().unwrap_or_default()
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self, which: impl FnOnce(&mut Phases) -> &mut Option<i64>) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        which(&mut phases).get_or_insert_with(hyper_stdio::now_ns);
    }

    fn program(&self) -> Program {
        Program {
            path: self.foreign.runtime.shim.clone(),
            // Not hyperd's: under that name listens this supervisor.
            address: place::of(&self.settings.bundle),
            events: self.settings.events.clone(),
            debug: self.settings.debug,
        }
    }

    fn trouble(&self, what: &'static str, why: String) -> ForeignError {
        ForeignError::Shim { runtime: self.foreign.runtime.name.clone(), what, why }
    }
}

/// The rootfs mount that hyperd sends: the image, and the directory for the container's writes.
fn rootfs(request: &api::CreateTaskRequest) -> Result<(RootfsImage, PathBuf)> {
    let invalid = |why: String| ForeignError::Invalid(format!("rootfs: {why}"));
    let [mount] = &request.rootfs[..] else {
        return Err(invalid("one mount is wanted".to_owned()));
    };
    let options =
        RootfsOptions::from_options(&mount.options).map_err(|e| invalid(e.to_string()))?;
    let own = options.upper.ok_or_else(|| invalid("option upper=PATH is missing".to_owned()))?;
    let text = std::fs::read(&mount.source).map_err(file("read", &mount.source))?;
    let image = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
    Ok((image, own))
}

async fn read_spec(bundle: &std::path::Path) -> Result<Value> {
    let path = bundle.join("config.json");
    let text = tokio::fs::read(&path).await.map_err(file("read", &path))?;
    serde_json::from_slice(&text)
        .map_err(|error| file("understand", &path)(std::io::Error::from(error)))
}

/// The network namespace that the document names.
fn namespace(spec: &Value) -> Option<PathBuf> {
    let all = spec["linux"]["namespaces"].as_array()?;
    let network = all.iter().find(|namespace| namespace["type"] == "network")?;
    network["path"].as_str().map(PathBuf::from)
}

fn request_uris(request: &api::CreateTaskRequest) -> Uris {
    Uris {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    }
}

/// Without what every layer of runtimes writes before the reason, and containerd after it.
fn in_short(message: &str) -> String {
    let why = message.rsplit_once("unable to start container process: ");
    let why = why.map_or(message, |(_, why)| why);
    why.trim_end_matches(": unknown").trim().to_owned()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn reasons_are_what_is_left() {
        let text = "failed to create shim task: OCI runtime create failed: runc create failed: \
                    unable to start container process: exec: \"x\": executable file not found in \
                    $PATH: unknown";
        assert_eq!(in_short(text), "exec: \"x\": executable file not found in $PATH");
        assert_eq!(in_short("no such container"), "no such container");
    }
}
