//! Finding everything again after hyperd was stopped, killed, or the host rebooted.
//!
//! | database | bundle | supervisor | becomes |
//! | --- | --- | --- | --- |
//! | up | there | answers, process runs | as it is |
//! | up | there | answers, process ended | exited, with its code and time |
//! | up | there | gone | exited: the record it left, or 255 and why |
//! | up | missing, or another boot's | | exited, 255 and why |
//! | not up | there | any | as in the database; the pod is discarded |
//! | no record | there | any | the pod is discarded |
//!
//! Then restart policies have their say: what they want to run is started, a few at a time.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::container::actor::Command;
use crate::container::state::{Event, Exit, Status};
use crate::container::{create, restart, secrets, start};
use crate::core::Core;
use crate::phases;
use crate::pod::spec::PodStatus;
use crate::store::{PodRecord, Record};
use crate::supervisor::{self, Found, Pod};
use crate::{Error, Result};

/// Brings the database and the world together. Pods are asked all at once.
pub(crate) async fn run(core: &Arc<Core>) -> Result<()> {
    let records = core.store.containers().await?;
    let boot = boot_id().await;
    // Bundles of another boot name sockets and processes that are somebody else's by now.
    let rebooted = match boot.is_empty() {
        true => false,
        false => core.store.rebooted(boot).await?,
    };
    if rebooted {
        tracing::info!("the host was restarted: its pods are gone");
    }
    let mut known: HashSet<String> = records.iter().map(|record| record.spec.id.clone()).collect();
    let pods = core.store.pods().await?;
    known.extend(pods.iter().map(|record| record.spec.id.clone()));
    // First, since containers ask for their pods.
    let mut work = JoinSet::new();
    for record in pods {
        let core = core.clone();
        work.spawn(async move { pod(&core, record, rebooted).await });
    }
    while let Some(done) = work.join_next().await {
        done.map_err(|_| Error::ShuttingDown)??;
    }
    let mut work = JoinSet::new();
    for record in records {
        let core = core.clone();
        work.spawn(async move { one(&core, record, rebooted).await });
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
    secrets::sweep(core, |id| known.contains(id)).await;
    while let Some(done) = work.join_next().await {
        done.map_err(|_| Error::ShuttingDown)??;
    }
    let views = core.views();
    let up = views.into_iter().filter(|view| view.state.status.is_up());
    let mut pods = core.pods.views();
    pods.retain(|view| view.state.status.is_up());
    let ids = pods.iter().map(|view| view.spec.id.clone());
    let live = up.map(|view| view.spec.id.clone()).chain(ids).collect();
    if let Err(error) = core.networks.reconcile(&live).await {
        // Pods run on; starts will say what is wrong.
        tracing::error!(error = error.chain(), "networks are not as they should be");
    }
    for view in core.views() {
        if let Some(pod) = view.pod.clone().filter(|_| view.spec.host.pod.is_empty()) {
            if let Err(error) = core.networks.settle(&view.spec, &view.name, &pod).await {
                tracing::error!(container = view.name, error = error.chain(), "networks");
            }
            start::renew_hosts(core, &view.spec.id).await;
        }
    }
    for view in pods {
        // As they were asked for last, however far that had come.
        if let Err(error) = crate::pod::renew_network(core, &view.spec).await {
            tracing::error!(pod = view.name, error = error.chain(), "policy and services");
        }
    }
    Ok(())
}

async fn pod(core: &Arc<Core>, mut record: PodRecord, rebooted: bool) -> Result<()> {
    let id = &record.spec.id;
    if rebooted {
        forget_address(core, id).await;
    }
    let mut up = None;
    if record.state.status.is_up() {
        match crate::pod::adopt(core, id).await {
            Ok((pod, paused)) => {
                record.state.status = if paused { PodStatus::Paused } else { PodStatus::Running };
                up = Some(pod);
            }
            Err(why) => {
                tracing::info!(pod = id, why, "ended");
                record.state.status = PodStatus::Stopped;
                record.state.finished_ns = Some(hyper_stdio::now_ns());
                record.state.reason = format!("the pod was lost while hyperd was away: {why}");
                core.store.set_pod_state(id, &record.state).await?;
            }
        }
    }
    if up.is_none() {
        start::discard(core, id).await;
    }
    let (spec, name) = (Arc::new(record.spec), record.name);
    crate::pod::actor::enlist(core, spec, name, record.state, up);
    Ok(())
}

async fn one(core: &Arc<Core>, mut record: Record, rebooted: bool) -> Result<()> {
    let id = record.spec.id.clone();
    if rebooted {
        forget_address(core, &id).await;
    }
    let pod = if record.state.status.is_up() {
        match adopt(core, &id, rebooted).await {
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
    again(core, &mut record, pod.is_some()).await?;
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

/// What its restart policy says of a container that does not run.
async fn again(core: &Core, record: &mut Record, up: bool) -> Result<()> {
    let state = &mut record.state;
    let wanted = !up
        && !record.spec.host.auto_remove
        && restart::wanted_at_boot(record.spec.host.restart, state);
    let event = match (wanted, state.status) {
        (true, Status::Exited) => Event::RestartPlanned { counted: false },
        (false, Status::Restarting) => Event::StopAsked,
        _ => return Ok(()),
    };
    state.apply(event).map_err(|e| Error::Conflict(e.to_string()))?;
    core.store.set_state(&record.spec.id, state).await
}

/// The kernel's name for this boot; empty where it has none.
async fn boot_id() -> String {
    let text = tokio::fs::read_to_string("/proc/sys/kernel/random/boot_id").await;
    text.unwrap_or_default().trim().to_owned()
}

/// After a reboot: nobody answers there; only what the pod left on disk is to be cleaned.
async fn forget_address(core: &Core, id: &str) {
    let address = core.layout.bundle(id).join(supervisor::ADDRESS_FILE);
    let _ = tokio::fs::remove_file(address).await;
}

enum Adopted {
    /// Runs, or has ended in a way that its supervisor still tells: pod, pid, paused.
    Up(Arc<Pod>, u32, bool),
    Ended(Exit),
}

async fn adopt(core: &Core, id: &str, rebooted: bool) -> Adopted {
    let bundle = core.layout.bundle(id);
    let why = match supervisor::read_address(&bundle).await {
        _ if rebooted => "the host was restarted".to_owned(),
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
