//! One running guest: its shares, and the watch over it. Its disks are in `disks`.
//!
//! ```text
//! boot.rs ─► up ──watch──► ended (exactly one Ended)
//!                │ events of the agent, in order
//!                └ ends: VM exit, link closed, link silent
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_hypervisor::{Hypervisor, Vm, VmExit};
use hyper_link::message::{Event, Reply, Request};
use hyper_link::{CallError, EventReceiver, Link};
use hyper_network::Wiring;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::PodError;
use crate::actor::Input;
use crate::disks::Given;
use crate::resize::GuestMemory;
use crate::share::{Shared, Sharer};
use crate::silence::silence;

/// How long a guest may take to sync its disks before it is killed.
const SYNC: Duration = Duration::from_secs(10);
/// How long a resumed guest may take to set its clock before the resume is told.
const CLOCK: Duration = Duration::from_secs(2);
/// How long a guest whose link closed may take to end by itself and say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A booted guest.
pub(crate) struct Guest {
    pub hypervisor: Arc<dyn Hypervisor>,
    pub vm: Arc<dyn Vm>,
    pub link: Link,
    pub vcpus: u32,
    pub memory: GuestMemory,
    /// When the hypervisor was started and the agent was ready.
    pub started_ns: i64,
    pub ready_ns: i64,
    /// How it came to be, for people.
    pub origin: String,
    /// As [`PodReport::image`](hyper_task::pod::PodReport::image).
    pub image: String,
    pub disks: Mutex<Given>,
    pub paused: AtomicBool,
    /// Serves directories of the host to it.
    pub sharer: Option<Sharer>,
    pub shared: Mutex<Vec<Shared>>,
    /// Of its network namespace, if it has one.
    pub wiring: Mutex<Option<Wiring>>,
    /// Serves the guest's localhost in that namespace.
    pub _localhost: JoinSet<()>,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub reason: String,
    /// Exit code of containers that were running.
    pub code: i32,
    pub oom: bool,
}

impl Guest {
    /// Asks the agent.
    pub async fn call(
        &self,
        container: &str,
        request: Request,
        deadline: Duration,
    ) -> Result<Reply, PodError> {
        match self.link.call(request, deadline).await {
            Ok(reply) => Ok(reply),
            Err(source @ CallError::Link { .. }) => {
                // How the guest ended says more than that its link did.
                let exit = tokio::time::timeout(LAST_WORDS, self.vm.wait()).await;
                let end = exit.map(|exit| end_of(&exit).reason);
                let reason = end.unwrap_or_else(|_| crate::error::chain(&source));
                let container = container.to_owned();
                Err(PodError::Ended { container, reason, console: tail(&*self.vm) })
            }
            Err(error) => Err(PodError::call(container, error)),
        }
    }

    /// Shares what a later container mounts.
    pub async fn add_shared(&self, shared: &[Shared]) -> Result<(), PodError> {
        let mut known = self.shared.lock().await;
        // A container that comes back has been given its directories before.
        let new: Vec<Shared> = shared.iter().filter(|one| !known.contains(one)).cloned().collect();
        match (&self.sharer, new.first()) {
            (_, None) => Ok(()),
            (Some(sharer), _) => {
                sharer.add(&new).await?;
                known.extend(new);
                Ok(())
            }
            (None, Some(first)) => Err(PodError::Unsupported(format!(
                "directory `{}` cannot be shared with a pod that runs already and was started \
                 without any shared directory: give its first container one",
                first.source.display()
            ))),
        }
    }

    /// Stops all vCPUs, or lets them go on. The watch does not mind a paused guest's silence.
    pub async fn set_paused(&self, paused: bool) -> Result<(), PodError> {
        let action = if paused { "pause guest" } else { "resume guest" };
        let fail = |source| PodError::Vm { action: action.to_owned(), source };
        if paused {
            self.paused.store(true, Ordering::Release);
            self.vm.pause().await.map_err(fail).inspect_err(|_| {
                self.paused.store(false, Ordering::Release);
            })
        } else {
            self.vm.resume().await.map_err(fail)?;
            self.paused.store(false, Ordering::Release);
            // A guest's clock may have stood still with it. One that does not answer now is the
            // watch's to judge.
            let now = Request::SetTime { unix_ns: hyper_stdio::now_ns() };
            let _ = self.link.call(now, CLOCK).await;
            Ok(())
        }
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Powers the guest off: gently when something on its disks is to stay, then by force.
    pub async fn stop(&self, gently: bool) {
        if gently && !self.is_paused() {
            // The agent answers when its disks are synced, so there is no need to wait for the
            // power to go; but that may win over the answer.
            tokio::select! {
                asked = self.link.call(Request::Shutdown, SYNC) => if let Err(error) = asked {
                    tracing::warn!(error = crate::error::chain(&error), "guest did not sync; killed");
                },
                _ = self.vm.wait() => {}
            }
        }
        self.end().await;
    }

    /// Ends it by force, and what serves it.
    pub async fn end(&self) {
        self.vm.kill().await;
        if let Some(sharer) = &self.sharer {
            sharer.stop().await;
        }
    }

    /// Resolves, with the reason, when its shared directories are not served any more.
    async fn unshared(&self) -> String {
        match &self.sharer {
            Some(sharer) => sharer.ended().await,
            None => std::future::pending().await,
        }
    }
}

/// What [`watch`] reports.
#[derive(Debug)]
pub(crate) enum Sign {
    Event(Event),
    Ended(Ended),
}

/// Reports the agent's events and, last and once, the guest's end. The guest is dead then.
pub(crate) async fn watch(
    guest: Arc<Guest>,
    number: u64,
    mut events: EventReceiver,
    queue: mpsc::Sender<Input>,
) {
    // A queue that is gone has an actor that is gone: nobody is left to tell.
    let sign = async |sign| _ = queue.send(Input::Guest(number, sign)).await;
    let mut exited = std::pin::pin!(guest.vm.wait());
    let mut silent = std::pin::pin!(silence(&guest));
    let mut unshared = std::pin::pin!(guest.unshared());
    let ended = loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => sign(Sign::Event(event)).await,
                None => break match tokio::time::timeout(LAST_WORDS, &mut exited).await {
                    Ok(exit) => end_of(&exit),
                    Err(_) => {
                        let error = guest.link.closed().await;
                        guest.vm.kill().await;
                        died(format!("link to the agent ended: {}", crate::error::chain(&error)))
                    }
                },
            },
            exit = &mut exited => {
                // What the agent said before is still in the link.
                while let Ok(Some(event)) = tokio::time::timeout(LAST_WORDS, events.recv()).await {
                    sign(Sign::Event(event)).await;
                }
                break end_of(&exit);
            }
            reason = &mut unshared => {
                // It goes with its guest, too: then the guest's own end is the reason.
                match tokio::time::timeout(LAST_WORDS, &mut exited).await {
                    Ok(exit) => break end_of(&exit),
                    Err(_) => {
                        guest.vm.kill().await;
                        break died(reason);
                    }
                }
            }
            asked = &mut silent => {
                guest.vm.kill().await;
                break died(format!(
                    "guest does not answer: its agent was silent for {} s; end of its console: {}",
                    asked.as_secs(),
                    tail(&*guest.vm)
                ));
            }
        }
    };
    sign(Sign::Ended(ended)).await;
}

fn died(reason: String) -> Ended {
    Ended { reason, code: 137, oom: false }
}

/// The end of a guest in words, and the exit code of what ran in it.
pub(crate) fn end_of(exit: &VmExit) -> Ended {
    let (reason, code, oom) = match exit {
        VmExit::PoweredOff => ("guest powered off".to_owned(), 255, false),
        VmExit::Panicked { message } => (format!("guest panicked: {message}"), 255, false),
        VmExit::Killed => ("guest was ended by its supervisor".to_owned(), 137, false),
        VmExit::Signaled { oom: true, .. } => {
            ("hypervisor was ended by the host's OOM killer".to_owned(), 137, true)
        }
        VmExit::Signaled { signal, .. } => {
            (format!("hypervisor was killed by signal {signal}"), 128 + signal, false)
        }
        VmExit::Failed { code, detail } => {
            (format!("hypervisor failed with code {code}: {detail}"), 255, false)
        }
    };
    Ended { reason, code, oom }
}

/// The last lines of the console.
pub(crate) fn tail(vm: &dyn Vm) -> String {
    let console = vm.console();
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
