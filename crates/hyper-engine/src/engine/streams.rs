//! What goes on inside a container: streams, logs, execs, counters.

use std::sync::Arc;

use hyper_stdio::{LogReader, Wanted};
use hyper_task::pod::PodReport;

use super::Engine;
use crate::attach::{Attached, Attaching};
use crate::container::actor::attributes;
use crate::container::state::Status;
use crate::event::Kind;
use crate::exec::{self, Exec};
use crate::logs::{self, LogQuery};
use crate::oci::ExecSpec;
use crate::phases::Record;
use crate::stats::{self, Stats};
use crate::supervisor::Pod;
use crate::{Error, ProcessInfo, Result, View};

impl Engine {
    /// Joins its streams, now or when it is started.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::Conflict`] when it is paused.
    pub async fn attach(&self, reference: &str, wanted: Wanted) -> Result<Attaching> {
        let handle = self.core.find(reference)?;
        let view = handle.view.borrow().clone();
        if view.state.status == Status::Paused {
            return Err(Error::Conflict(format!(
                "container {} is paused, unpause the container before attach",
                view.spec.id
            )));
        }
        if view.state.status == Status::Restarting {
            return Err(Error::Conflict(format!(
                "container {} is restarting, wait until the container is running",
                view.spec.id
            )));
        }
        let attaching = handle.slot.join(wanted).await?;
        let labels = attributes(&view.spec, &view.name);
        self.core.events.publish(Kind::Container, "attach", &view.spec.id, labels);
        Ok(attaching)
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it does not run.
    pub async fn resize(&self, reference: &str, rows: u16, columns: u16) -> Result<()> {
        let view = self.container(reference)?;
        running(&view)?.resize(None, rows, columns).await?;
        let mut labels = attributes(&view.spec, &view.name);
        labels.insert("height".to_owned(), rows.to_string());
        labels.insert("width".to_owned(), columns.to_string());
        self.core.events.publish(Kind::Container, "resize", &view.spec.id, labels);
        Ok(())
    }

    /// Reads its log.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it has none.
    pub async fn logs(&self, reference: &str, query: LogQuery) -> Result<LogReader> {
        logs::read(&self.core, &self.core.find(reference)?, query).await
    }

    /// Its processes, with their ids in the guest.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it does not run.
    pub async fn processes(&self, reference: &str) -> Result<Vec<ProcessInfo>> {
        let view = self.container(reference)?;
        running(&view)?.processes().await
    }

    /// Its counters; `None` when it does not run.
    ///
    /// # Errors
    /// [`Error::Supervisor`].
    pub async fn stats(&self, reference: &str) -> Result<Option<Stats>> {
        let view = self.container(reference)?;
        let Some(pod) = &view.pod else { return Ok(None) };
        // A guest that stands still cannot be asked; nor does it use anything but its memory.
        let any = match (pod.stats().await, view.state.status) {
            (Ok(any), _) => any,
            (Err(_), Status::Paused) => return Ok(Some(Stats::default())),
            // It may have ended meanwhile.
            (Err(error), _) => match self.container(reference)?.pod {
                Some(_) => return Err(error),
                None => return Ok(None),
            },
        };
        let mut stats = stats::read(&any).ok_or_else(|| Error::Supervisor {
            id: view.spec.id.clone(),
            what: "read counters",
            why: format!("`{}` is not understood", any.type_url),
        })?;
        // A supervisor of an older version knows of none.
        stats.networks = pod.networks().await.unwrap_or_default();
        Ok(Some(stats))
    }

    /// Its pod, as the supervisor sees it.
    pub(super) async fn container_report(&self, reference: &str) -> Result<PodReport> {
        let view = self.container(reference)?;
        running(&view)?.report().await
    }

    /// Where the time of its last run went.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`] when it is not among the last runs either.
    pub fn phases(&self, reference: &str) -> Result<Record> {
        if let Some(record) = self.core.finished.find(reference) {
            return Ok(record);
        }
        let view = self.container(reference)?;
        Err(Error::Conflict(format!("container {} has not ended a run", view.name)))
    }

    /// The last ended runs, oldest first.
    #[must_use]
    pub fn all_phases(&self) -> Vec<Record> {
        self.core.finished.all()
    }

    /// Prepares a process in a running container.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it does not run; [`Error::Invalid`].
    pub fn exec_create(&self, reference: &str, spec: ExecSpec) -> Result<Arc<Exec>> {
        exec::create(&self.core, reference, spec)
    }

    /// As [`Engine::exec_create`], outside of all containers, in the guest of `pod` (or of a
    /// container that has one to itself), with the programs of `container`, else of its first
    /// that runs.
    ///
    /// # Errors
    /// [`Error::NoSuchPod`]; [`Error::NoSuchContainer`]; [`Error::Conflict`] when none runs;
    /// [`Error::Invalid`], also for a runtime without guests.
    pub fn exec_in_guest(
        &self,
        pod: &str,
        container: Option<&str>,
        spec: ExecSpec,
    ) -> Result<Arc<Exec>> {
        exec::create_in_guest(&self.core, pod, container, spec)
    }

    /// # Errors
    /// [`Error::NoSuchExec`].
    pub fn exec(&self, id: &str) -> Result<Arc<Exec>> {
        exec::find(&self.core, id)
    }

    /// Runs the prepared process; with its streams unless `detached`.
    ///
    /// # Errors
    /// [`Error::Program`] when it cannot be run; the exec has ended then, with its code.
    pub async fn exec_start(&self, exec: &Arc<Exec>, detached: bool) -> Result<Option<Attached>> {
        let (core, exec) = (self.core.clone(), exec.clone());
        self.detached(async move { exec::start(&core, &exec, detached).await }).await
    }

    /// # Errors
    /// [`Error::Conflict`] when it does not run.
    pub async fn exec_resize(&self, exec: &Exec, rows: u16, columns: u16) -> Result<()> {
        exec::resize(&self.core, exec, rows, columns).await
    }

    /// Ids of the execs of a container that have not ended.
    #[must_use]
    pub fn execs(&self, container: &str) -> Vec<String> {
        let execs = self.core.execs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let live = |exec: &&Arc<Exec>| exec.container == container && exec.state().running;
        execs.values().filter(live).map(|exec| exec.id.clone()).collect()
    }
}

fn running(view: &View) -> Result<&Pod> {
    view.pod
        .as_deref()
        .ok_or_else(|| Error::Conflict(format!("container {} is not running", view.spec.id)))
}
