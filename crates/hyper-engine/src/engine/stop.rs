//! Ending a container: its stop signal, a grace, SIGKILL, and at last the supervisor itself.

use std::time::Duration;

use tokio::sync::watch;

use super::{KILLED, SIGKILL, ask};
use crate::container::actor::{Command, attributes};
use crate::container::state::Status;
use crate::core::{Core, Handle};
use crate::event::Kind;
use crate::{Error, Result, View, signal};

/// From the end of a process to its being known here.
pub(super) const NEWS: Duration = Duration::from_secs(3);
/// How long a stop waits for the container to leave its networks, so that whoever removes one next finds it empty.
/// A client that does not read the output keeps it there longer: nobody waits for that.
const RELEASED: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);
/// Docker's grace between the stop signal and SIGKILL, in seconds.
pub(crate) const STOP_GRACE: i64 = 10;

pub(super) async fn stop(
    core: &Core,
    handle: &Handle,
    signal: Option<i32>,
    grace: Option<i64>,
) -> Result<()> {
    let view = handle.view.borrow().clone();
    let stoppable = matches!(view.state.status, Status::Starting | Status::Restarting);
    if !view.state.status.is_up() && !stoppable {
        return Err(Error::NotModified(format!("container {} is not running", view.name)));
    }
    let signal = signal.unwrap_or_else(|| signal::of(&view.spec.stop_signal));
    let grace = grace.or(view.spec.host.stop_timeout).unwrap_or(STOP_GRACE);
    kill_if_up(handle, signal).await?;
    let over = not_up(handle.view.clone());
    match u64::try_from(grace) {
        Err(_) => over.await,
        Ok(seconds) => {
            if tokio::time::timeout(Duration::from_secs(seconds), over).await.is_err() {
                kill_if_up(handle, SIGKILL).await?;
                if tokio::time::timeout(KILLED, not_up(handle.view.clone())).await.is_err() {
                    if let Some(pod) = &handle.view.borrow().pod {
                        pod.kill_supervisor();
                    }
                    not_up(handle.view.clone()).await;
                }
            }
        }
    }
    let _late = tokio::time::timeout(RELEASED, released(core, &view.spec.id)).await;
    let labels = attributes(&view.spec, &view.name);
    core.events.publish(Kind::Container, "stop", &view.spec.id, labels);
    Ok(())
}

async fn released(core: &Core, container: &str) {
    while !core.networks.endpoints(container).is_empty() {
        tokio::time::sleep(POLL).await;
    }
}

/// It may end at any moment by itself, which is as good.
async fn kill_if_up(handle: &Handle, signal: i32) -> Result<()> {
    match ask(handle, |reply| Command::Kill { signal, stop: true, reply }).await {
        // Its pod may know of the end before we do.
        Err(error) => match tokio::time::timeout(NEWS, not_up(handle.view.clone())).await {
            Ok(()) => Ok(()),
            Err(_) => Err(error),
        },
        Ok(()) => Ok(()),
    }
}

/// Waits until it is not up.
pub(super) async fn not_up(mut view: watch::Receiver<View>) {
    let _ = view.wait_for(|view| view.removed || !view.state.status.is_up()).await;
}
