//! Processes beside a container's first one.
//!
//! ```text
//!   created ──start──▶ running ──ended──▶ ended (kept for a while, for `inspect`)
//!               └───────── failed ────────▶
//! ```
//! An exec lives as long as hyperd: after a restart its process runs on, but its id is unknown.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hyper_stdio::Wanted;
use tokio::sync::{oneshot, watch};

use crate::attach::Attached;
use crate::container::View;
use crate::container::actor::attributes;
use crate::container::secrets;
use crate::container::state::Status;
use crate::core::Core;
use crate::engine::pods::members;
use crate::event::Kind;
use crate::oci::{self, ExecSpec};
use crate::supervisor::Pod;
use crate::{Error, Result, id};

/// How long an ended exec can be inspected.
const KEPT: Duration = Duration::from_secs(300);
/// How long its client may take to read the rest of the output.
const DRAIN: Duration = Duration::from_secs(3600);

/// One exec.
#[derive(Debug)]
pub struct Exec {
    pub id: String,
    /// Id of the container.
    pub container: String,
    pub spec: ExecSpec,
    state: watch::Sender<ExecState>,
}

/// What an exec is doing.
#[derive(Debug, Clone, Default)]
pub struct ExecState {
    pub started: bool,
    pub running: bool,
    /// `None`: has not ended.
    pub exit_code: Option<i32>,
    /// In the guest.
    pub pid: u32,
    ended: Option<Instant>,
}

impl Exec {
    #[must_use]
    pub fn state(&self) -> ExecState {
        self.state.borrow().clone()
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> ExecState {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| state.exit_code.is_some()).await {
            Ok(state) => state.clone(),
            // The sender lives in `self`.
            Err(_) => self.state(),
        }
    }

    fn end(&self, code: i32) {
        self.state.send_modify(|state| {
            state.running = false;
            state.exit_code.get_or_insert(code);
            state.ended.get_or_insert_with(Instant::now);
        });
    }

    /// The container has ended, and the exec with it.
    pub(crate) fn lost(&self) {
        if self.state.borrow().running {
            self.end(137);
        }
    }
}

pub(crate) fn create(core: &Core, reference: &str, spec: ExecSpec) -> Result<Arc<Exec>> {
    let (view, _) = running(core, reference)?;
    if spec.args.is_empty() {
        return Err(Error::Invalid("no exec command specified".to_owned()));
    }
    oci::check_environment(&spec.env)?;
    oci::exec_process(&view.spec, &spec)?;
    let runtime = &view.spec.host.runtime;
    if spec.in_guest && core.config.runtimes.foreign(runtime).is_some() {
        return Err(Error::Invalid(format!(
            "runtime {runtime} cannot honour an exec in the guest: {} has none, outside of it is the \
             host itself",
            view.name
        )));
    }
    if spec.privileged && core.config.runtimes.foreign(runtime).is_some() {
        return Err(Error::Invalid(format!(
            "runtime {runtime} cannot honour exec --privileged: outside of a guest that is the host \
             itself: make the container with --cap-add"
        )));
    }
    let exec = Arc::new(Exec {
        id: id::fresh(),
        container: view.spec.id.clone(),
        spec,
        state: watch::Sender::default(),
    });
    let mut execs = core.execs.lock().unwrap_or_else(PoisonError::into_inner);
    execs.retain(|_, exec| exec.state().ended.is_none_or(|ended| ended.elapsed() < KEPT));
    execs.insert(exec.id.clone(), exec.clone());
    drop(execs);
    publish(core, &exec, "exec_create", None);
    Ok(exec)
}

/// In the guest of `pod`, with the programs of one of its containers.
pub(crate) fn create_in_guest(
    core: &Core,
    pod: &str,
    container: Option<&str>,
    spec: ExecSpec,
) -> Result<Arc<Exec>> {
    let (name, candidates) = match core.pods.find(pod) {
        Ok(handle) => {
            let view = handle.view.borrow().clone();
            (view.name, members(core, &view.spec.id))
        }
        // A container that has a pod to itself, and those that joined it.
        Err(missing) => {
            let owner = core.find(pod).map_err(|_| missing)?.view.borrow().clone();
            let joined = members(core, &owner.spec.id);
            (owner.name.clone(), [owner].into_iter().chain(joined).collect())
        }
    };
    let chosen = match container {
        Some(wanted) => {
            // A manifest's containers are called POD-CONTAINER.
            let long = format!("{name}-{wanted}");
            let meant = |view: &&View| {
                view.name == wanted || view.name == long || view.spec.id.starts_with(wanted)
            };
            candidates.iter().find(meant).ok_or_else(|| {
                Error::NoSuchContainer(format!("{wanted}: pod {name} has no such container"))
            })?
        }
        None => candidates.iter().find(|view| view.state.status == Status::Running).ok_or_else(
            || {
                Error::Conflict(format!(
                    "pod {name}: no container runs in it, and the guest has no programs of its own"
                ))
            },
        )?,
    };
    create(core, &chosen.spec.id, ExecSpec { in_guest: true, ..spec })
}

pub(crate) fn find(core: &Core, id: &str) -> Result<Arc<Exec>> {
    let execs = core.execs.lock().unwrap_or_else(PoisonError::into_inner);
    execs.get(id).cloned().ok_or_else(|| Error::NoSuchExec(id.to_owned()))
}

/// Runs the process; with its streams unless `detached`.
///
/// A program that cannot be run leaves the exec ended with its code (126, 127).
pub(crate) async fn start(
    core: &Arc<Core>,
    exec: &Arc<Exec>,
    detached: bool,
) -> Result<Option<Attached>> {
    let (view, pod) = running(core, &exec.container)?;
    let spec = secrets::with_environment(core, &view.spec).await?;
    let process = oci::exec_process(&spec, &exec.spec)?;
    drop(spec);
    let mut first = false;
    exec.state.send_if_modified(|state| {
        first = !state.started;
        state.started = true;
        first
    });
    if !first {
        return Err(Error::Conflict(format!("exec {} has already been started", exec.id)));
    }
    match run(&pod, exec, &process, detached).await {
        Ok((mut attached, pid)) => {
            let over = attached.as_mut().map(Attached::over);
            exec.state.send_modify(|state| {
                state.running = true;
                state.pid = pid;
            });
            publish(core, exec, "exec_start", None);
            let (watching, exec) = (core.clone(), exec.clone());
            core.tasks.spawn(async move { watch_end(&watching, &pod, &exec, over).await });
            Ok(attached)
        }
        Err(error) => {
            let code = match &error {
                Error::Program { fault, .. } => fault.exit_code(),
                _ => 126,
            };
            exec.end(code);
            // It may exist there without having run.
            let _ = pod.delete_exec(&exec.id).await;
            Err(error)
        }
    }
}

pub(crate) async fn resize(core: &Core, exec: &Exec, rows: u16, columns: u16) -> Result<()> {
    let (_, pod) = running(core, &exec.container)?;
    pod.resize(Some(&exec.id), rows, columns).await
}

async fn run(
    pod: &Pod,
    exec: &Exec,
    process: &serde_json::Value,
    detached: bool,
) -> Result<(Option<Attached>, u32)> {
    let spec = &exec.spec;
    let stdin = spec.attach_stdin && !detached;
    pod.exec(&exec.id, process, spec.tty, stdin).await?;
    let attached = if detached {
        None
    } else {
        let wanted =
            Wanted { stdin, stdout: spec.attach_stdout, stderr: spec.attach_stderr && !spec.tty };
        let (streams, guard) = pod.attach(Some(exec.id.clone()), wanted).await?;
        Some(Attached::new(streams, guard))
    };
    let pid = pod.start(Some(&exec.id)).await?;
    Ok((attached, pid))
}

async fn watch_end(
    core: &Core,
    pod: &Pod,
    exec: &Exec,
    over: Option<oneshot::Receiver<Infallible>>,
) {
    match pod.wait_process(Some(&exec.id)).await {
        Ok((code, _)) => exec.end(code),
        Err(error) => {
            tracing::debug!(exec = exec.id, %error, "wait for exec");
            exec.lost();
        }
    }
    let code = exec.state().exit_code.unwrap_or_default();
    publish(core, exec, "exec_die", Some(code));
    if let Some(over) = over {
        // Its client reads the rest first.
        let _ = tokio::time::timeout(DRAIN, over).await;
    }
    if let Err(error) = pod.delete_exec(&exec.id).await {
        tracing::debug!(exec = exec.id, %error, "delete exec");
    }
}

fn running(core: &Core, reference: &str) -> Result<(View, Arc<Pod>)> {
    let view = core.find(reference)?.view.borrow().clone();
    match (&view.pod, view.state.status) {
        (_, Status::Paused) => Err(Error::Conflict(format!(
            "container {} is paused, unpause the container before exec",
            view.name
        ))),
        (_, Status::Restarting) => Err(Error::Conflict(format!(
            "Container {} is restarting, wait until the container is running",
            view.spec.id
        ))),
        (Some(pod), Status::Running) => {
            let pod = pod.clone();
            Ok((view, pod))
        }
        _ => Err(Error::Conflict(format!("container {} is not running", view.spec.id))),
    }
}

fn publish(core: &Core, exec: &Exec, action: &str, exit_code: Option<i32>) {
    let Ok(handle) = core.find(&exec.container) else { return };
    let view = handle.view.borrow().clone();
    let mut attributes = attributes(&view.spec, &view.name);
    attributes.insert("execID".to_owned(), exec.id.clone());
    let action = match exit_code {
        Some(code) => {
            attributes.insert("exitCode".to_owned(), code.to_string());
            action.to_owned()
        }
        None => format!("{action}: {}", exec.spec.args.join(" ")),
    };
    core.events.publish(Kind::Container, action, &exec.container, attributes);
}
