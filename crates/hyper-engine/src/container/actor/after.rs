//! What is left to do when a container has ended or is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Command;
use crate::Error;
use crate::container::spec::Spec;
use crate::container::start;
use crate::core::Core;
use crate::engine::pods;
use crate::phases::{self, Record};
use crate::supervisor::Pod;

/// How long attached clients may take to read the rest of the output.
const DRAIN: Duration = Duration::from_secs(3600);
/// The same, once somebody waits for the container to be cleaned.
const HURRIED_DRAIN: Duration = Duration::from_secs(2);

/// Docker's attributes of every event of a container.
pub(crate) fn attributes(spec: &Spec, name: &str) -> BTreeMap<String, String> {
    let mut attributes = spec.labels.clone();
    attributes.insert("image".to_owned(), spec.image.clone());
    attributes.insert("name".to_owned(), name.to_owned());
    attributes
}

/// Answers what was asked of a container that is gone.
pub(super) fn refuse(command: Command, id: &str) {
    let gone = || Err(Error::NoSuchContainer(id.to_owned()));
    match command {
        Command::Start(reply)
        | Command::Pause(reply)
        | Command::Unpause(reply)
        | Command::Kill { reply, .. }
        | Command::Rename { reply, .. }
        | Command::Network { reply, .. }
        | Command::Update { reply, .. } => drop(reply.send(gone())),
        // It is gone, as asked.
        Command::Remove { reply, .. } => drop(reply.send(Ok(()))),
        Command::Borrow(reply) => drop(reply.send(Err(Error::NoSuchContainer(id.to_owned())))),
        Command::HoldRemoval => {}
    }
}

/// After the end: lets the clients read, then ends the pod and removes its bundle.
pub(super) async fn clean(
    core: Arc<Core>,
    pod: Arc<Pod>,
    mut phases: Record,
    hurry: Arc<Notify>,
) -> Record {
    tokio::select! {
        () = pod.drained() => {}
        () = tokio::time::sleep(DRAIN) => {}
        () = async { hurry.notified().await; tokio::time::sleep(HURRIED_DRAIN).await } => {}
    }
    phases.supervisor = pod.phases().await.unwrap_or_default();
    let guest_gone = pod.end(pods::others_up(&core, pod.id())).await;
    if guest_gone.is_none() {
        core.launcher.clean(pod.id(), pod.bundle()).await;
    }
    phases.supervisor.guest_gone = phases.supervisor.guest_gone.or(guest_gone);
    core.tasks.spawn(core.networks.release(pod.id()).await.remove());
    start::remove_bundle(pod.bundle()).await;
    phases.cleaned = phases::now();
    phases
}
