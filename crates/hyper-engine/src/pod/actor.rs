//! The one task that changes a pod.
//!
//! ```text
//!   Idle ──Start──▶ Starting ──ok──▶ Up ──Stop, or the guest is gone──▶ Ending ──▶ Idle
//!     ▲                │ failed                                            │ removal
//!     └────────────────┘ (already cleaned)                                 └──▶ gone
//! ```
//! What comes while a pod starts or ends waits, but for a removal, which ends a start.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::registry::PodHandle;
use super::services::ServiceChange;
use super::spec::{PodChange, PodSpec, PodState, PodStatus};
use super::{PodView, life};
use crate::container::start;
use crate::container::state::Exit;
use crate::core::Core;
use crate::event::Kind;
use crate::supervisor::Pod;
use crate::{Error, Result};

type Reply = oneshot::Sender<Result<()>>;

/// Requests to one pod. Its containers are the caller's to start and stop.
#[derive(Debug)]
pub(crate) enum Command {
    Start(Reply),
    Stop(Reply),
    Pause(Reply),
    Unpause(Reply),
    Update {
        change: Box<PodChange>,
        reply: Reply,
    },
    Services {
        change: Box<ServiceChange>,
        reply: Reply,
    },
    /// Of a pod that is not up; with `force` of any.
    Remove {
        force: bool,
        reply: Reply,
    },
}

/// Requests that may wait for one pod.
const QUEUE: usize = 64;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Work {
    Idle,
    Starting { done: Boxed<Result<life::Up>>, replies: Vec<Reply> },
    Up { pod: Arc<Pod>, ended: AbortOnDropHandle<Exit> },
    Ending { done: Boxed<()>, replies: Vec<Reply> },
}

enum Done {
    Started(Result<life::Up>),
    Ended(Exit),
    Cleaned,
}

impl Work {
    /// The next thing that happens without being asked for. Safe to cancel.
    async fn next(&mut self) -> Done {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Starting { done, .. } => Done::Started(done.await),
            Self::Up { ended, .. } => Done::Ended(ended.await.unwrap_or_else(|error| Exit {
                reason: format!("hyperd lost the pod: {error}"),
                ..Exit::default()
            })),
            Self::Ending { done, .. } => {
                done.await;
                Done::Cleaned
            }
        }
    }
}

struct Actor {
    core: Arc<Core>,
    spec: Arc<PodSpec>,
    name: String,
    state: PodState,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<PodView>,
    work: Work,
    deferred: VecDeque<Command>,
    removals: Vec<Reply>,
}

/// Starts the task of a pod and makes it known; `up` is one that runs already.
pub(crate) fn enlist(
    core: &Arc<Core>,
    spec: Arc<PodSpec>,
    name: String,
    state: PodState,
    up: Option<Arc<Pod>>,
) {
    let (commands, queue) = mpsc::channel(QUEUE);
    let (publish, view) = watch::channel(PodView {
        spec: spec.clone(),
        name: name.clone(),
        state: state.clone(),
        removed: false,
        supervisor: up.clone(),
    });
    core.pods.insert(spec.id.clone(), name.clone(), PodHandle { commands, view });
    let work = match up {
        Some(pod) => Work::Up { ended: life::watch(&pod), pod },
        None => Work::Idle,
    };
    let actor = Actor {
        core: core.clone(),
        spec,
        name,
        state,
        commands: queue,
        view: publish,
        work,
        deferred: VecDeque::new(),
        removals: Vec::new(),
    };
    // Ends when the pod is removed or the registry is cleared.
    tokio::spawn(actor.run());
}

impl Actor {
    async fn run(mut self) {
        loop {
            if matches!(self.work, Work::Idle | Work::Up { .. })
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
                    Done::Cleaned => if self.cleaned().await { return },
                },
            }
        }
    }

    /// True: the pod is gone.
    async fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Start(reply) => self.start(reply),
            Command::Stop(reply) => self.stop(reply).await,
            Command::Pause(reply) => {
                let done = self.pause(true).await;
                let _ = reply.send(done);
            }
            Command::Unpause(reply) => {
                let done = self.pause(false).await;
                let _ = reply.send(done);
            }
            Command::Update { change, reply } => self.update(*change, reply).await,
            Command::Services { change, reply } => self.services(*change, reply).await,
            Command::Remove { force, reply } => return self.remove(force, reply).await,
        }
        false
    }

    async fn update(&mut self, change: PodChange, reply: Reply) {
        if matches!(self.work, Work::Starting { .. } | Work::Ending { .. }) {
            self.deferred.push_back(Command::Update { change: Box::new(change), reply });
            return;
        }
        let _ = reply.send(self.change(change).await);
    }

    /// The guest first: what it refuses is not stored.
    async fn change(&mut self, change: PodChange) -> Result<()> {
        if let Work::Up { pod, .. } = &self.work
            && let Some(resources) = change.resources()
        {
            pod.update(&resources).await?;
        }
        self.keep(change.over(&self.spec)).await
    }

    /// Stores a spec, and then makes it true for the network of a pod that is up, or leaves all as
    /// it was.
    async fn keep(&mut self, spec: PodSpec) -> Result<()> {
        // First: a hyperd that is killed in between makes the rules by it when it comes back.
        self.core.store.set_pod_spec(&spec).await?;
        if matches!(self.work, Work::Up { .. })
            && let Err(error) = life::renew_network(&self.core, &spec).await
        {
            let restored = self.core.store.set_pod_spec(&self.spec).await;
            // Policy, rates and services change one after the other: some may have.
            let renewed = life::renew_network(&self.core, &self.spec).await;
            for again in [restored, renewed].into_iter().filter_map(Result::err) {
                tracing::warn!(pod = spec.id, error = again.chain(), "undo an update");
            }
            return Err(error);
        }
        self.spec = Arc::new(spec);
        self.publish(self.supervisor());
        self.event("update");
        Ok(())
    }

    async fn services(&mut self, change: ServiceChange, reply: Reply) {
        if matches!(self.work, Work::Starting { .. } | Work::Ending { .. }) {
            self.deferred.push_back(Command::Services { change: Box::new(change), reply });
            return;
        }
        let done = self.change_services(change).await;
        let _ = reply.send(done);
    }

    async fn change_services(&mut self, change: ServiceChange) -> Result<()> {
        let services = change.over(&self.spec)?;
        let networks = &self.core.networks;
        networks.check_services(&self.spec.network, &services)?;
        self.keep(PodSpec { services, ..(*self.spec).clone() }).await
    }

    fn start(&mut self, reply: Reply) {
        match &mut self.work {
            Work::Idle => {
                self.state.status = PodStatus::Starting;
                self.publish(None);
                let done = life::boot(self.core.clone(), self.spec.clone(), self.name.clone());
                self.work = Work::Starting { done: Box::pin(done), replies: vec![reply] };
            }
            Work::Starting { replies, .. } => replies.push(reply),
            Work::Up { .. } => {
                let done = match self.state.status {
                    PodStatus::Paused => Err(self.conflict("is paused: unpause it instead")),
                    _ => Ok(()),
                };
                let _ = reply.send(done);
            }
            Work::Ending { .. } => self.deferred.push_back(Command::Start(reply)),
        }
    }

    async fn started(&mut self, result: Result<life::Up>) {
        let Work::Starting { replies, .. } = std::mem::replace(&mut self.work, Work::Idle) else {
            return;
        };
        match result {
            Ok((pod, ended)) => {
                self.work = Work::Up { pod, ended };
                self.state.status = PodStatus::Running;
                self.state.started_ns = Some(hyper_stdio::now_ns());
                self.state.finished_ns = None;
                self.state.reason.clear();
                self.changed("start").await;
                for reply in replies {
                    let _ = reply.send(Ok(()));
                }
            }
            Err(error) => self.start_failed(error, replies).await,
        }
    }

    async fn start_failed(&mut self, error: Error, replies: Vec<Reply>) {
        let why = error.chain();
        self.state.status = match self.state.started_ns {
            Some(_) => PodStatus::Stopped,
            None => PodStatus::Created,
        };
        self.state.reason.clone_from(&why);
        self.changed("die").await;
        let mut error = Some(error);
        for reply in replies {
            let _ = reply.send(Err(error.take().unwrap_or_else(|| Error::Conflict(why.clone()))));
        }
    }

    async fn stop(&mut self, reply: Reply) {
        match &mut self.work {
            Work::Up { .. } => {
                self.end(String::new()).await;
                if let Work::Ending { replies, .. } = &mut self.work {
                    replies.push(reply);
                }
            }
            Work::Starting { .. } => self.deferred.push_back(Command::Stop(reply)),
            Work::Ending { replies, .. } => replies.push(reply),
            Work::Idle => {
                let why = Error::NotModified(format!("pod {} is not running", self.name));
                let _ = reply.send(Err(why));
            }
        }
    }

    async fn ended(&mut self, exit: Exit) {
        let reason = match exit.reason.is_empty() {
            true => format!("its sandbox ended with exit code {}", exit.code),
            false => exit.reason,
        };
        tracing::warn!(pod = self.spec.id, reason, "pod ended");
        self.end(reason).await;
    }

    async fn end(&mut self, reason: String) {
        let Work::Up { pod, ended } = std::mem::replace(&mut self.work, Work::Idle) else { return };
        drop(ended);
        let done = life::end(self.core.clone(), pod);
        self.work = Work::Ending { done: Box::pin(done), replies: Vec::new() };
        self.state.status = PodStatus::Stopped;
        self.state.finished_ns = Some(hyper_stdio::now_ns());
        self.state.reason = reason;
        self.changed("stop").await;
    }

    /// True: the pod is gone.
    async fn cleaned(&mut self) -> bool {
        let Work::Ending { replies, .. } = std::mem::replace(&mut self.work, Work::Idle) else {
            return false;
        };
        for reply in replies {
            let _ = reply.send(Ok(()));
        }
        if self.removals.is_empty() {
            return false;
        }
        self.gone().await;
        true
    }

    async fn pause(&mut self, paused: bool) -> Result<()> {
        let (from, to, action) = match paused {
            true => (PodStatus::Running, PodStatus::Paused, "pause"),
            false => (PodStatus::Paused, PodStatus::Running, "unpause"),
        };
        let Work::Up { pod, .. } = &self.work else {
            return Err(self.conflict("is not running: start it first"));
        };
        if self.state.status != from {
            return Err(self.conflict(match paused {
                true => "is paused already",
                false => "is not paused",
            }));
        }
        if paused {
            pod.pause().await?;
        } else {
            pod.resume().await?;
        }
        self.state.status = to;
        self.changed(action).await;
        Ok(())
    }

    /// True: the pod is gone.
    async fn remove(&mut self, force: bool, reply: Reply) -> bool {
        match &mut self.work {
            Work::Idle => {
                self.removals.push(reply);
                self.gone().await;
                return true;
            }
            Work::Up { .. } | Work::Starting { .. } if !force => {
                let _ = reply.send(Err(self.conflict("is running: stop it first, or use --force")));
            }
            Work::Starting { .. } => {
                if let Work::Starting { done, replies } =
                    std::mem::replace(&mut self.work, Work::Idle)
                {
                    drop(done);
                    start::discard(&self.core, &self.spec.id).await;
                    let why = self.conflict("was removed while it was started");
                    self.start_failed(why, replies).await;
                }
                self.removals.push(reply);
                self.gone().await;
                return true;
            }
            Work::Up { .. } => {
                self.removals.push(reply);
                self.end(String::new()).await;
            }
            Work::Ending { .. } => self.removals.push(reply),
        }
        false
    }

    async fn gone(&mut self) {
        let id = &self.spec.id;
        if let Err(error) = self.core.store.delete_pod(id).await {
            tracing::error!(pod = id, error = error.chain(), "remove the record");
        }
        self.core.pods.forget(id, &self.name);
        self.event("destroy");
        self.view.send_modify(|view| view.removed = true);
        for reply in self.removals.drain(..) {
            let _ = reply.send(Ok(()));
        }
        self.commands.close();
        let missing = || Err(Error::NoSuchPod(self.name.clone()));
        let mut rest: Vec<Command> = self.deferred.drain(..).collect();
        while let Ok(command) = self.commands.try_recv() {
            rest.push(command);
        }
        for command in rest {
            match command {
                Command::Start(reply)
                | Command::Stop(reply)
                | Command::Pause(reply)
                | Command::Unpause(reply)
                | Command::Update { reply, .. }
                | Command::Services { reply, .. } => drop(reply.send(missing())),
                // It is gone, as asked.
                Command::Remove { reply, .. } => drop(reply.send(Ok(()))),
            }
        }
    }

    /// Stores and tells what it is doing now.
    async fn changed(&mut self, action: &str) {
        if let Err(error) = self.core.store.set_pod_state(&self.spec.id, &self.state).await {
            tracing::error!(pod = self.spec.id, error = error.chain(), "store the state");
        }
        self.publish(self.supervisor());
        self.event(action);
    }

    fn supervisor(&self) -> Option<Arc<Pod>> {
        match &self.work {
            Work::Up { pod, .. } => Some(pod.clone()),
            _ => None,
        }
    }

    fn publish(&self, supervisor: Option<Arc<Pod>>) {
        self.view.send_replace(PodView {
            spec: self.spec.clone(),
            name: self.name.clone(),
            state: self.state.clone(),
            removed: false,
            supervisor,
        });
    }

    fn event(&self, action: &str) {
        self.core.events.publish(
            Kind::Pod,
            action,
            &self.spec.id,
            attributes(&self.spec, &self.name),
        );
    }

    fn conflict(&self, what: &str) -> Error {
        Error::Conflict(format!("pod {} {what}", self.name))
    }
}

/// Attributes of every event of a pod.
pub(crate) fn attributes(spec: &PodSpec, name: &str) -> BTreeMap<String, String> {
    let mut attributes = spec.labels.clone();
    attributes.insert("name".to_owned(), name.to_owned());
    attributes
}
