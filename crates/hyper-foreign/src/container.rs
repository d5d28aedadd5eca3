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

mod make;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use hyper_shim::{TaskClient, TaskError};
use hyper_task::foreign::{FILE, Foreign};
use hyper_task::pod::{ExitRecord, Phases};
use serde_json::Value;

use crate::error::{Result, blocking, file};
use crate::root::Root;
use crate::stdio::Uris;
use crate::{ForeignError, spec};
use make::Made;
use process::Process;

/// For a container to be made, which some runtimes take long for.
const CREATE: Duration = Duration::from_secs(120);
/// For everything else that a shim is asked.
const ASK: Duration = Duration::from_secs(30);
/// From SIGKILL to the end.
const KILL: Duration = Duration::from_secs(10);
/// The same for what could not be started.
const QUICK: Duration = Duration::from_millis(500);
const SIGKILL: u32 = 9;

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
            TaskError::Refused { message, .. } => ForeignError::Refused(in_short(&message)),
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

    fn trouble(&self, what: &'static str, why: String) -> ForeignError {
        ForeignError::Shim { runtime: self.foreign.runtime.name.clone(), what, why }
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
