//! The one task that changes a container.
//!
//! Requests come through a queue, one at a time; what takes long (start, the wait for the end,
//! cleaning) is a future beside the queue, so that a container being started can be killed.
//!
//! ```text
//!   Idle ──Start──▶ Starting ──ok──▶ Up ──ended──▶ Cleaning ──▶ Idle
//!     ▲                │ failed                        │
//!     └────────────────┘ (already cleaned)             └─ auto-remove, forced removal ─▶ gone
//! ```
//! With a restart policy: `Cleaning ──▶ Resting ──back-off over──▶ Starting`, see
//! [`super::restart`]; while a container is up, its health is looked at beside it.
//!
//! Beside these, `Idle ──Borrow──▶ Opening ──▶ Lent ──▶ Closing ──▶ Idle`: a pod for its files, see
//! [`super::lending`]; a start or removal waits for it.
//!
//! Every change is stored before it is published. Dropping a request's reply does not undo it.

mod after;
mod change;
mod network;
mod policies;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::View;
use super::health::{Health, HealthStatus, Probe};
use super::lending::{self, Lent, Loan};
use super::restart::Backoff;
use super::secrets;
use super::spec::{HealthCheck, Spec};
use super::start::{self, Started};
use super::state::{Event, Exit, State, Status};
pub(crate) use after::attributes;
use after::{clean, refuse};
pub use change::Change;

use crate::attach::Slot;
use crate::core::Core;
use crate::event::Kind;
use crate::phases::{self, Record};
use crate::supervisor::Pod;
use crate::{Error, Result, volume};

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// Requests to one container.
#[derive(Debug)]
pub(crate) enum Command {
    Start(Reply<()>),
    Kill {
        signal: i32,
        /// To stop it, whatever the signal is.
        stop: bool,
        reply: Reply<()>,
    },
    Pause(Reply<()>),
    Unpause(Reply<()>),
    Rename {
        name: String,
        reply: Reply<()>,
    },
    Update {
        change: Box<Change>,
        reply: Reply<()>,
    },
    /// Into a network of that name, or out of it.
    Network {
        change: (String, Option<crate::network::spec::Wish>),
        reply: Reply<()>,
    },
    Remove {
        force: bool,
        reply: Reply<()>,
    },
    /// A pod to reach its files through.
    Borrow(Reply<Loan>),
    /// The next end is followed by a start: `--rm` is to wait.
    HoldRemoval,
}

/// Requests that may wait for one container.
pub(crate) const QUEUE: usize = 64;
/// From SIGKILL to the end; then the supervisor itself is killed.
const KILL: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Work {
    Idle,
    Starting {
        done: Boxed<Result<Started>>,
        replies: Vec<Reply<()>>,
        /// By its restart policy.
        place: Option<OwnedSemaphorePermit>,
    },
    Up {
        pod: Arc<Pod>,
        ended: AbortOnDropHandle<Exit>,
        probe: Option<Boxed<Probe>>,
    },
    Resting(Boxed<Option<OwnedSemaphorePermit>>),
    Cleaning {
        done: Boxed<Record>,
        hurry: Arc<Notify>,
    },
    Opening {
        done: Boxed<Result<Arc<Pod>>>,
        replies: Vec<Reply<Loan>>,
    },
    Lent(Lent),
    Closing(Boxed<()>),
}

enum Done {
    Started(Result<Started>),
    Ended(Exit),
    Probed(Probe),
    Rested(Option<OwnedSemaphorePermit>),
    Cleaned(Record),
    Opened(Result<Arc<Pod>>),
    Returned,
    Closed,
}

impl Work {
    /// The next thing that happens without being asked for. Safe to cancel.
    async fn next(&mut self) -> Done {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Starting { done, .. } => Done::Started(done.await),
            Self::Up { ended, probe, .. } => {
                let probed = async {
                    match probe {
                        Some(probe) => probe.await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    ended = ended => Done::Ended(ended.unwrap_or_else(|error| Exit {
                        code: 255,
                        unix_ns: hyper_stdio::now_ns(),
                        reason: format!("hyperd lost the pod: {error}"),
                        ..Exit::default()
                    })),
                    probe = probed => Done::Probed(probe),
                }
            }
            Self::Resting(done) => Done::Rested(done.await),
            Self::Cleaning { done, .. } => Done::Cleaned(done.await),
            Self::Opening { done, .. } => Done::Opened(done.await),
            Self::Lent(lent) => {
                lent.returned().await;
                Done::Returned
            }
            Self::Closing(done) => {
                done.await;
                Done::Closed
            }
        }
    }
}

pub(crate) struct Actor {
    core: Arc<Core>,
    spec: Arc<Spec>,
    name: String,
    state: State,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<View>,
    slot: Arc<Slot>,
    work: Work,
    /// Wait until the work in hand is done.
    deferred: VecDeque<Command>,
    /// Removals asked for while the container was up.
    removals: Vec<Reply<()>>,
    hold_removal: bool,
    backoff: Backoff,
    phases: Record,
}

/// What an actor begins with.
pub(crate) struct Begin {
    pub core: Arc<Core>,
    pub spec: Arc<Spec>,
    pub name: String,
    pub state: State,
    pub commands: mpsc::Receiver<Command>,
    pub view: watch::Sender<View>,
    pub slot: Arc<Slot>,
    /// A pod that runs already, found after a restart of hyperd.
    pub pod: Option<Arc<Pod>>,
    pub phases: Record,
}

impl Actor {
    pub fn new(begin: Begin) -> Self {
        let Begin { core, spec, name, state, commands, view, slot, pod, phases } = begin;
        let mut actor = Self {
            core,
            spec,
            name,
            state,
            commands,
            view,
            slot,
            work: Work::Idle,
            deferred: VecDeque::new(),
            removals: Vec::new(),
            hold_removal: false,
            backoff: Backoff::default(),
            phases,
        };
        match pod {
            Some(pod) => {
                let waiting = pod.clone();
                let ended = tokio::spawn(async move { waiting.wait().await });
                let probe = actor.next_probe(&pod);
                actor.work = Work::Up { pod, ended: AbortOnDropHandle::new(ended), probe };
            }
            None => actor.settle(Duration::ZERO),
        }
        actor
    }

    /// Runs until the container is removed or the engine is dropped.
    pub async fn run(mut self) {
        loop {
            if matches!(self.work, Work::Idle | Work::Up { .. } | Work::Resting(_))
                && let Some(command) = self.deferred.pop_front()
            {
                if self.command(command).await {
                    return;
                }
                continue;
            }
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => if self.command(command).await { return },
                    None => return,
                },
                done = self.work.next() => match done {
                    Done::Started(result) => self.started(result).await,
                    Done::Ended(exit) => self.ended(exit).await,
                    Done::Probed(probe) => self.probed(probe).await,
                    Done::Rested(place) => self.rested(place),
                    Done::Cleaned(phases) => if self.cleaned(phases).await { return },
                    Done::Opened(result) => self.opened(result),
                    Done::Returned => self.returned(),
                    Done::Closed => self.settle(Duration::ZERO),
                },
            }
        }
    }

    /// True: the container is gone.
    async fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Start(reply) => self.start(reply),
            Command::Kill { signal, stop, reply } => self.kill(signal, stop, reply).await,
            Command::Pause(reply) => {
                let result = self.pause().await;
                let _ = reply.send(result);
            }
            Command::Unpause(reply) => {
                let result = self.unpause().await;
                let _ = reply.send(result);
            }
            Command::Rename { name, reply } => {
                let result = self.rename(name).await;
                let _ = reply.send(result);
            }
            Command::Update { change, reply } => {
                let result = self.update(*change).await;
                let _ = reply.send(result);
            }
            Command::Network { change: (name, wish), reply } => {
                let result = self.network(&name, wish).await;
                let _ = reply.send(result);
            }
            Command::Remove { force, reply } => return self.remove(force, reply).await,
            Command::Borrow(reply) => self.borrow(reply),
            Command::HoldRemoval => self.hold_removal = true,
        }
        false
    }

    fn start(&mut self, reply: Reply<()>) {
        match &mut self.work {
            Work::Idle | Work::Resting(_) => {
                self.backoff.reset();
                self.begin(Event::StartAsked, vec![reply], None);
            }
            Work::Starting { replies, .. } => replies.push(reply),
            Work::Up { .. } => {
                let what = format!("container {} is already running", self.name);
                let _ = reply.send(match self.state.status {
                    Status::Paused => Err(Error::Conflict(format!(
                        "cannot start container {}: it is paused: unpause it instead",
                        self.name
                    ))),
                    _ => Err(Error::NotModified(what)),
                });
            }
            Work::Cleaning { hurry, .. } => {
                hurry.notify_one();
                self.deferred.push_back(Command::Start(reply));
            }
            Work::Opening { .. } | Work::Lent(_) | Work::Closing(_) => {
                self.wait_for_files(Command::Start(reply));
            }
        }
    }

    fn begin(&mut self, why: Event, replies: Vec<Reply<()>>, place: Option<OwnedSemaphorePermit>) {
        self.hold_removal = false;
        if let Err(error) = self.state.apply(why) {
            self.work = Work::Idle;
            for reply in replies {
                let _ = reply.send(Err(Error::Conflict(error.to_string())));
            }
            return;
        }
        self.phases = Record {
            id: self.spec.id.clone(),
            name: self.name.clone(),
            image: self.spec.image.clone(),
            runtime: self.core.runtime(&self.spec.host.runtime),
            create_accepted: self.phases.create_accepted,
            create_done: self.phases.create_done,
            start_accepted: phases::now(),
            ..Record::default()
        };
        self.publish(None);
        let (core, spec) = (self.core.clone(), self.spec.clone());
        let done = start::start(core, spec, self.slot.clone(), self.phases.clone());
        self.work = Work::Starting { done: Box::pin(done), replies, place };
    }

    /// Lends a pod to reach the container's files through.
    fn borrow(&mut self, reply: Reply<Loan>) {
        match &mut self.work {
            Work::Up { pod, .. } => {
                let _ = reply.send(Ok(Loan::free(pod.clone())));
            }
            // Somebody waits to start or remove it: they come first.
            Work::Lent(_) | Work::Opening { .. } if !self.deferred.is_empty() => {
                self.deferred.push_back(Command::Borrow(reply));
            }
            Work::Lent(lent) => {
                let _ = reply.send(Ok(lent.lend()));
            }
            Work::Opening { replies, .. } => replies.push(reply),
            Work::Idle | Work::Resting(_) => {
                let done = lending::open(self.core.clone(), self.spec.clone());
                self.work = Work::Opening { done: Box::pin(done), replies: vec![reply] };
            }
            Work::Cleaning { hurry, .. } => {
                hurry.notify_one();
                self.deferred.push_back(Command::Borrow(reply));
            }
            Work::Starting { .. } | Work::Closing(_) => {
                self.deferred.push_back(Command::Borrow(reply));
            }
        }
    }

    fn opened(&mut self, result: Result<Arc<Pod>>) {
        let Work::Opening { replies, .. } = std::mem::replace(&mut self.work, Work::Idle) else {
            return;
        };
        self.settle(Duration::ZERO);
        match result {
            Ok(pod) => {
                let lent = Lent::new(pod);
                for reply in replies {
                    // A client that is gone gives its loan back by that.
                    let _ = reply.send(Ok(lent.lend()));
                }
                if !self.deferred.is_empty() {
                    lent.hurry();
                }
                self.work = Work::Lent(lent);
            }
            Err(error) => {
                let why = error.chain();
                let mut error = Some(error);
                for reply in replies {
                    let again = || Error::Conflict(why.clone());
                    let _ = reply.send(Err(error.take().unwrap_or_else(again)));
                }
            }
        }
    }

    fn returned(&mut self) {
        if let Work::Lent(lent) = std::mem::replace(&mut self.work, Work::Idle) {
            self.work = Work::Closing(Box::pin(lent.close(self.core.clone())));
        }
    }

    /// Does it once the pod for the container's files is gone.
    fn wait_for_files(&mut self, command: Command) {
        if let Work::Lent(lent) = &self.work {
            lent.hurry();
        }
        self.deferred.push_back(command);
    }

    async fn started(&mut self, result: Result<Started>) {
        let Work::Starting { replies, place, .. } = std::mem::replace(&mut self.work, Work::Idle)
        else {
            return;
        };
        match result {
            Ok(Started { pod, pid, unix_ns, ended, phases }) => {
                self.phases = phases;
                let checked = self.spec.health.as_ref().is_some_and(HealthCheck::is_on);
                self.state.health = checked.then(Health::default);
                self.change(Event::Started { pid, unix_ns }, Some(pod.clone())).await;
                let probe = self.next_probe(&pod);
                self.work = Work::Up { pod, ended, probe };
                self.event("start", []);
                for reply in replies {
                    let _ = reply.send(Ok(()));
                }
            }
            Err(error) => self.start_failed(error, replies, place.is_some()).await,
        }
    }

    async fn start_failed(&mut self, error: Error, replies: Vec<Reply<()>>, by_policy: bool) {
        let exit_code = match &error {
            Error::Program { fault, .. } => fault.exit_code(),
            _ => 128,
        };
        let why = error.chain();
        if let Err(error) = self.state.apply(Event::StartFailed { exit_code, why: why.clone() }) {
            tracing::error!(container = self.spec.id, %error, "state");
        }
        // A program that cannot be run will not be better for trying again.
        if by_policy && !matches!(error, Error::Program { .. }) {
            tracing::warn!(container = self.spec.id, why, "restart");
            self.plan_restart();
        }
        self.keep(None).await;
        self.event("die", [("exitCode", exit_code.to_string())]);
        let wait = self.backoff.after(Duration::ZERO);
        self.settle(wait);
        let tell = move || {
            let mut error = Some(error);
            for reply in replies {
                let error = error.take().unwrap_or_else(|| Error::Conflict(why.clone()));
                let _ = reply.send(Err(error));
            }
        };
        if self.spec.host.auto_remove {
            let (reply, removed) = oneshot::channel();
            self.deferred.push_back(Command::Remove { force: true, reply });
            // Who hears of it may take the name again. It is answered, or dropped with this actor.
            tokio::spawn(async move {
                let _ = removed.await;
                tell();
            });
        } else {
            tell();
        }
    }

    async fn ended(&mut self, exit: Exit) {
        self.phases.exit_seen = phases::now();
        let code = exit.code;
        if !exit.note.is_empty() {
            tracing::warn!(container = self.spec.id, code, note = exit.note, "container ended");
        }
        if !exit.reason.is_empty() {
            tracing::warn!(container = self.spec.id, code, reason = exit.reason, "container ended");
        }
        let ran = exit.unix_ns.saturating_sub(self.state.started_ns.unwrap_or(exit.unix_ns));
        if let Some(health) = &mut self.state.health {
            // As Docker: nobody looks any more.
            health.status = HealthStatus::Unhealthy;
        }
        if let Err(error) = self.state.apply(Event::Ended(exit)) {
            tracing::error!(container = self.spec.id, %error, "state");
        }
        self.plan_restart();
        // Before anybody hears of the end, who may want them next; reading the rest of the output takes its time.
        self.core.networks.unpublish(&self.spec.id).await;
        self.keep(None).await;
        self.slot.reset();
        let seconds = ran.max(0) / 1_000_000_000;
        self.event("die", [("exitCode", code.to_string()), ("execDuration", seconds.to_string())]);
        let Work::Up { pod, .. } = std::mem::replace(&mut self.work, Work::Idle) else { return };
        self.core.end_execs(&self.spec.id);
        let hurry = Arc::new(Notify::new());
        if !self.removals.is_empty() || self.state.status == Status::Restarting {
            hurry.notify_one();
        }
        let done = clean(self.core.clone(), pod, self.phases.clone(), hurry.clone());
        self.work = Work::Cleaning { done: Box::pin(done), hurry };
    }

    /// True: the container is gone.
    async fn cleaned(&mut self, phases: Record) -> bool {
        self.work = Work::Idle;
        self.phases = phases;
        let auto = self.spec.host.auto_remove && !self.hold_removal;
        if auto || !self.removals.is_empty() {
            self.gone().await;
            return true;
        }
        self.core.finished.push(self.phases.clone());
        let wait = self.next_backoff();
        self.settle(wait);
        false
    }

    async fn kill(&mut self, signal: i32, stop: bool, reply: Reply<()>) {
        let ends = stop || signal == SIGKILL || signal == crate::signal::of(&self.spec.stop_signal);
        if ends && self.state.status == Status::Restarting {
            // No process to signal: not starting it again is all there is to do.
            self.change(Event::StopAsked, None).await;
            if matches!(self.work, Work::Resting(_)) {
                self.work = Work::Idle;
            }
            let _ = reply.send(Ok(()));
            return;
        }
        if ends && matches!(self.work, Work::Up { .. } | Work::Starting { .. }) {
            // Kept before the signal is sent: whatever ends first, its policy must know.
            let pod = self.pod();
            self.change(Event::StopAsked, pod).await;
        }
        let result = match &mut self.work {
            Work::Up { pod, .. } => {
                let pod = pod.clone();
                self.signal(&pod, signal, ends).await
            }
            Work::Starting { .. } if signal == SIGKILL => {
                self.cancel_start("it was killed while it was started").await;
                Ok(())
            }
            Work::Starting { .. } => {
                self.deferred.push_back(Command::Kill { signal, stop, reply });
                return;
            }
            Work::Idle
            | Work::Resting(_)
            | Work::Cleaning { .. }
            | Work::Opening { .. }
            | Work::Lent(_)
            | Work::Closing(_) => Err(Error::Conflict(format!(
                "cannot kill container: {}: container {} is not running",
                self.name, self.spec.id
            ))),
        };
        let _ = reply.send(result);
    }

    async fn signal(&mut self, pod: &Arc<Pod>, signal: i32, ends: bool) -> Result<()> {
        // A frozen process does not see its stop signal, and a frozen guest cannot be told.
        if ends && self.state.status == Status::Paused {
            pod.resume().await?;
            self.change(Event::Unpaused, Some(pod.clone())).await;
        }
        pod.kill(None, signal, false).await?;
        self.event("kill", [("signal", signal.to_string())]);
        Ok(())
    }

    async fn cancel_start(&mut self, why: &str) {
        let Work::Starting { done, replies, place } = std::mem::replace(&mut self.work, Work::Idle)
        else {
            return;
        };
        drop(done);
        self.slot.reset();
        start::discard(&self.core, &self.spec.id).await;
        let error = Error::Conflict(format!("container {}: {why}", self.name));
        self.start_failed(error, replies, place.is_some()).await;
    }

    async fn pause(&mut self) -> Result<()> {
        match (&self.work, self.state.status) {
            (Work::Up { pod, .. }, Status::Running) => {
                let pod = pod.clone();
                pod.pause().await?;
                self.change(Event::Paused, Some(pod)).await;
                self.look_again();
                self.event("pause", []);
                Ok(())
            }
            (_, Status::Paused) => {
                Err(Error::Conflict(format!("Container {} is already paused", self.spec.id)))
            }
            _ => Err(Error::Conflict(format!("Container {} is not running", self.spec.id))),
        }
    }

    async fn unpause(&mut self) -> Result<()> {
        match (&self.work, self.state.status) {
            (Work::Up { pod, .. }, Status::Paused) => {
                let pod = pod.clone();
                pod.resume().await?;
                self.change(Event::Unpaused, Some(pod)).await;
                self.look_again();
                self.event("unpause", []);
                Ok(())
            }
            _ => Err(Error::Conflict(format!("Container {} is not paused", self.spec.id))),
        }
    }

    /// True: the container is gone.
    async fn remove(&mut self, force: bool, reply: Reply<()>) -> bool {
        if !force && self.state.status == Status::Restarting {
            let _ = reply.send(Err(Error::Conflict(format!(
                "cannot remove container \"/{}\": container is restarting: stop the container \
                 before removing or force remove",
                self.name
            ))));
            return false;
        }
        match &self.work {
            Work::Idle | Work::Resting(_) => {
                self.removals.push(reply);
                self.gone().await;
                return true;
            }
            Work::Cleaning { hurry, .. } => {
                hurry.notify_one();
                self.removals.push(reply);
            }
            Work::Lent(_) if force => {
                // Whoever is at its files loses them.
                self.returned();
                self.deferred.push_back(Command::Remove { force, reply });
            }
            Work::Opening { .. } | Work::Lent(_) | Work::Closing(_) => {
                self.wait_for_files(Command::Remove { force, reply });
            }
            Work::Up { .. } | Work::Starting { .. } if !force => {
                let _ = reply.send(Err(Error::Conflict(format!(
                    "cannot remove container \"/{}\": container is running: stop the container \
                     before removing or force remove",
                    self.name
                ))));
            }
            Work::Starting { .. } => {
                self.change(Event::StopAsked, None).await;
                self.cancel_start("it was removed while it was started").await;
                self.removals.push(reply);
                self.gone().await;
                return true;
            }
            Work::Up { pod, .. } => {
                let pod = pod.clone();
                self.removals.push(reply);
                self.change(Event::StopAsked, Some(pod.clone())).await;
                if let Err(error) = self.signal(&pod, SIGKILL, true).await {
                    tracing::warn!(container = self.spec.id, %error, "kill for removal");
                }
                self.core.tasks.spawn(async move {
                    if tokio::time::timeout(KILL, pod.wait()).await.is_err() {
                        pod.kill_supervisor();
                    }
                });
            }
        }
        false
    }

    /// Removes the record, then the directory; a crash in between leaves a directory without
    /// record, which the next start of hyperd removes.
    async fn gone(&mut self) {
        let id = &self.spec.id;
        if let Err(error) = self.core.store.delete(id).await {
            tracing::error!(container = id, error = error.chain(), "remove the record");
        }
        let directory = self.core.layout.container(id);
        if let Err(error) = tokio::fs::remove_dir_all(&directory).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %directory.display(), %error, "remove");
        }
        secrets::forget(&self.core, id).await;
        self.core.forget(id, &self.name);
        if self.spec.host.auto_remove {
            let own = volume::anonymous(&self.spec.host.mounts);
            volume::remove_orphans(&self.core, own).await;
        }
        self.event("destroy", []);
        self.phases.removed = phases::now();
        if self.phases.start_accepted.is_some() {
            self.core.finished.push(self.phases.clone());
        }
        self.view.send_modify(|view| view.removed = true);
        for reply in self.removals.drain(..) {
            let _ = reply.send(Ok(()));
        }
        for command in self.deferred.drain(..) {
            refuse(command, id);
        }
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            refuse(command, id);
        }
    }

    /// Applies an event that the diagram allows here, stores and publishes the result.
    async fn change(&mut self, event: Event, pod: Option<Arc<Pod>>) {
        if let Err(error) = self.state.apply(event) {
            tracing::error!(container = self.spec.id, %error, "state");
            return;
        }
        self.keep(pod).await;
    }

    /// Stores and publishes the state as it is.
    async fn keep(&mut self, pod: Option<Arc<Pod>>) {
        // The pod is as it is, whatever the disk says: go on, and tell.
        if let Err(error) = self.core.store.set_state(&self.spec.id, &self.state).await {
            tracing::error!(container = self.spec.id, error = error.chain(), "store the state");
        }
        self.publish(pod);
    }

    fn pod(&self) -> Option<Arc<Pod>> {
        match &self.work {
            Work::Up { pod, .. } => Some(pod.clone()),
            _ => None,
        }
    }

    fn publish(&self, pod: Option<Arc<Pod>>) {
        self.view.send_replace(View {
            spec: self.spec.clone(),
            name: self.name.clone(),
            state: self.state.clone(),
            removed: false,
            pod,
        });
    }

    fn event<const N: usize>(&self, action: &str, extra: [(&str, String); N]) {
        let mut attributes = attributes(&self.spec, &self.name);
        attributes.extend(extra.map(|(key, value)| (key.to_owned(), value)));
        self.core.events.publish(Kind::Container, action, &self.spec.id, attributes);
    }
}
