//! The processes of a container, until their ends are told.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api;
use hyper_shim::TaskError;
use hyper_task::pod::ExitRecord;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{ASK, Container};
use crate::error::{Result, blocking};
use crate::stdio::{Streams, Uris};
use crate::{host, place};

/// How long an ended first process's output may take to be delivered before its exit is told.
const DRAIN: Duration = Duration::from_secs(60);
/// The same for an exec, whose children may keep its output open.
const DRAIN_EXEC: Duration = Duration::from_secs(2);
/// The exit code of a container whose shim is gone.
const KILLED: i32 = 137;

/// A process of the container, in its shim.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty: the first.
    pub exec: String,
    pub pid: OnceLock<u32>,
    pub streams: Streams,
    pub exit: watch::Sender<Option<ExitRecord>>,
    /// It could not be started.
    pub unstarted: AtomicBool,
    watching: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Container {
    /// A process that is not known to the shim yet.
    pub(super) async fn process(self: &Arc<Self>, exec: &str, uris: Uris) -> Result<Arc<Process>> {
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
    pub(super) fn watch(self: &Arc<Self>, process: &Arc<Process>) {
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
}
