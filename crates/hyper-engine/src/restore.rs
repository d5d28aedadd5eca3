//! Finding everything again after hyperd was stopped, killed, or the host rebooted.
//!
//! | database | bundle | supervisor | becomes |
//! | --- | --- | --- | --- |
//! | up | there | answers, process runs | as it is |
//! | up | there | answers, process ended | exited, with its code and time |
//! | up | there | gone | exited: the record it left, or 255 and why |
//! | up | missing (reboot) | | exited, 255 and why |
//! | not up | there | any | as in the database; the pod is discarded |
//! | no record | there | any | the pod is discarded |

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::container::actor::Command;
use crate::container::state::{Event, Exit, Status};
use crate::container::{create, start};
use crate::core::Core;
use crate::phases;
use crate::store::Record;
use crate::supervisor::{self, Found, Pod};
use crate::{Error, Result};

/// Brings the database and the world together. Pods are asked all at once.
pub(crate) async fn run(core: &Arc<Core>) -> Result<()> {
    let records = core.store.containers().await?;
    let known: HashSet<String> = records.iter().map(|record| record.spec.id.clone()).collect();
    let mut work = JoinSet::new();
    for record in records {
        let core = core.clone();
        work.spawn(async move { one(&core, record).await });
    }
    for id in entries(&core.layout.pods()).await? {
        if !known.contains(&id) {
            let core = core.clone();
            work.spawn(async move {
                tracing::info!(pod = id, "discard a pod without container");
                start::discard(&core, &id).await;
                Ok(())
            });
        }
    }
    for id in entries(&core.layout.containers()).await? {
        if !known.contains(&id) {
            let directory = core.layout.container(&id);
            tokio::fs::remove_dir_all(&directory)
                .await
                .map_err(Error::file("remove", directory))?;
        }
    }
    while let Some(done) = work.join_next().await {
        done.map_err(|_| Error::ShuttingDown)??;
    }
    Ok(())
}

async fn one(core: &Arc<Core>, mut record: Record) -> Result<()> {
    let id = record.spec.id.clone();
    let pod = if record.state.status.is_up() {
        match adopt(core, &id).await {
            Adopted::Up(pod, pid, paused) => {
                record.state.pid = pid;
                record.state.status = if paused { Status::Paused } else { Status::Running };
                Some(pod)
            }
            Adopted::Ended(exit) => {
                tracing::info!(container = id, code = exit.code, reason = exit.reason, "ended");
                record
                    .state
                    .apply(Event::Ended(exit))
                    .map_err(|e| Error::Conflict(e.to_string()))?;
                core.store.set_state(&id, &record.state).await?;
                start::discard(core, &id).await;
                None
            }
        }
    } else {
        start::discard(core, &id).await;
        None
    };
    let removable = pod.is_none() && record.spec.host.auto_remove && record.state.exits > 0;
    let handle = create::enlist(
        core,
        Arc::new(record.spec),
        record.name,
        record.state,
        pod.clone(),
        phases::Record::default(),
    );
    if let Some(pod) = pod {
        handle.slot.ready(&pod).await?;
    }
    if removable {
        let (reply, _) = oneshot::channel();
        // A full queue cannot be: the actor is new.
        let _ = handle.commands.try_send(Command::Remove { force: true, reply });
    }
    Ok(())
}

enum Adopted {
    /// Runs, or has ended in a way that its supervisor still tells: pod, pid, paused.
    Up(Arc<Pod>, u32, bool),
    Ended(Exit),
}

async fn adopt(core: &Core, id: &str) -> Adopted {
    let bundle = core.layout.bundle(id);
    let why = match supervisor::read_address(&bundle).await {
        None => "the host was restarted, or its runtime files were removed".to_owned(),
        Some(address) => match Pod::connect(id, &bundle, &address).await {
            Err(error) => error.chain(),
            Ok(pod) => {
                pod.identify().await;
                match pod.state().await {
                    Ok(Found::Up { pid, paused }) => {
                        return Adopted::Up(Arc::new(pod), pid, paused);
                    }
                    // The supervisor tells the rest when it is asked to wait.
                    Ok(Found::Ended) => return Adopted::Up(Arc::new(pod), 0, false),
                    Ok(Found::Unstarted) => "the container does not run in its pod".to_owned(),
                    Err(error) => error.chain(),
                }
            }
        },
    };
    Adopted::Ended(supervisor::read_exit(&bundle).await.unwrap_or_else(|| Exit {
        code: 255,
        unix_ns: hyper_stdio::now_ns(),
        reason: format!("the pod was lost while hyperd was away: {why}"),
        ..Exit::default()
    }))
}

async fn entries(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut entries =
        tokio::fs::read_dir(directory).await.map_err(Error::file("read", directory))?;
    while let Some(entry) = entries.next_entry().await.map_err(Error::file("read", directory))? {
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}
