//! The actor: the pod's state and the one loop that changes it.
//!
//! The transitions are in `create` (containers and guests come), `exits` (processes end, guests
//! die, containers go) and `ops` (requests that change nothing here). States: `record` for
//! processes, [`GuestState`] for the guest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_hypervisor::CpuShare;
use hyper_link::EventReceiver;
use hyper_link::message::{Event, ProcessId};
use hyper_stdio::Loss;
use hyper_task::pod::ExitRecord;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::create::Prepared;
use crate::guest::{Guest, Sign};
use crate::pod::{Command, PodEvent};
use crate::record::{Container, Process, Reply};
use crate::sockets::Carrying;
use crate::stdio::{Channels, Running};
use crate::{PodError, Settings};

/// Everything that can happen to a pod.
pub(crate) enum Input {
    Command(Command),
    /// A container's disks and stdio are there, or not.
    Prepared {
        container: String,
        result: Result<Box<Prepared>, PodError>,
    },
    /// The guest for a container is there, or not.
    Booted {
        container: String,
        result: Result<Box<Booted>, PodError>,
    },
    /// A container is in the guest, or not; for a sandbox nothing runs.
    Created {
        container: String,
        result: Result<Option<(Running, Carrying)>, PodError>,
    },
    /// An exec's stdio is open, or not.
    Opened {
        process: ProcessId,
        result: Result<Channels, PodError>,
    },
    /// A process runs, or not.
    Started {
        process: ProcessId,
        result: Result<(Option<Running>, u32), PodError>,
    },
    /// A process's output is where it goes, or has taken too long.
    Delivered {
        process: ProcessId,
        on_time: bool,
        /// What the log could not take.
        lost: Loss,
    },
    /// `exit.json` is written (or cannot be).
    Recorded {
        container: String,
        record: ExitRecord,
    },
    /// The guest took a container's new limits, or not.
    Updated {
        container: String,
        resources: serde_json::Value,
        result: Result<(), PodError>,
        reply: Reply<()>,
    },
    Frozen {
        container: String,
        paused: bool,
        result: Result<(), PodError>,
        reply: Reply<()>,
    },
    /// From a guest, by its number: what one says that is gone is not about the next.
    Guest(u64, Sign),
    /// The guest we ended is gone; then somebody is told.
    Stopped(Box<dyn FnOnce() + Send>),
}

pub(crate) struct Booted {
    pub guest: Guest,
    pub events: EventReceiver,
    pub prepared: Prepared,
}

pub(crate) enum GuestState {
    Empty,
    /// Containers that came meanwhile.
    Booting(Vec<(String, Prepared)>),
    Up(Arc<Guest>),
    Stopping(Arc<Guest>),
    Dead(String),
}

pub(crate) struct Actor {
    pub settings: Arc<Settings>,
    pub queue: mpsc::Sender<Input>,
    pub events: mpsc::UnboundedSender<PodEvent>,
    pub guest: GuestState,
    /// Counts guests: those that run, and those that are gone.
    pub guest_number: u64,
    pub containers: BTreeMap<String, Container>,
    /// Whatever takes time. They end with the actor.
    pub tasks: JoinSet<()>,
    pub shutdown: Option<Reply<bool>>,
    /// Last known, for containers that outlive their guest.
    pub hypervisor_pid: u32,
    /// What the hypervisor has been given.
    pub cpu: CpuShare,
    /// What its disks are held to on the host.
    pub io: BTreeMap<(u32, u32), [Option<u64>; 4]>,
}

impl Actor {
    pub fn new(
        settings: Settings,
        queue: mpsc::Sender<Input>,
        events: mpsc::UnboundedSender<PodEvent>,
    ) -> Self {
        Self {
            settings: Arc::new(settings),
            queue,
            events,
            guest: GuestState::Empty,
            guest_number: 0,
            containers: BTreeMap::new(),
            tasks: JoinSet::new(),
            shutdown: None,
            hypervisor_pid: 0,
            cpu: CpuShare::default(),
            io: BTreeMap::new(),
        }
    }

    /// Runs until [`Command::Shutdown`] is done.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        while let Some(input) = inputs.recv().await {
            while let Some(ended) = self.tasks.try_join_next() {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(%error, "a task of the pod failed");
                }
            }
            self.input(input);
            if self.shutdown.is_some() && !matches!(self.guest, GuestState::Stopping(_)) {
                break;
            }
        }
        inputs.close();
        self.tasks.shutdown().await;
        self.leave().await;
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Command(command) => self.command(command),
            Input::Prepared { container, result } => self.prepared(container, result),
            Input::Booted { container, result } => self.booted(container, result),
            Input::Created { container, result } => self.created(&container, result),
            Input::Opened { process, result } => self.opened(&process, result),
            Input::Started { process, result } => self.started(&process, result),
            Input::Delivered { process, on_time, lost } => {
                self.delivered(&process, on_time, &lost);
            }
            Input::Recorded { container, record } => self.recorded(&container, record),
            Input::Updated { container, resources, result, reply } => {
                self.updated(&container, &resources, result, reply);
            }
            Input::Frozen { container, paused, result, reply } => {
                self.frozen(container, paused, result, reply);
            }
            Input::Guest(guest, sign) if guest != self.guest_number => {
                tracing::debug!(guest, ?sign, "late word of a guest that is gone");
            }
            Input::Guest(_, Sign::Event(Event::Exited { process, code, oom_killed, .. })) => {
                self.process_exited(&process, code, oom_killed);
            }
            Input::Guest(_, Sign::Event(Event::Oom { container })) => {
                // A guest can say so as often as it likes; the host hears it once a second.
                let Ok(found) = self.container(&container) else { return };
                let now = Instant::now();
                if found.last_oom.is_none_or(|last| now - last >= Duration::from_secs(1)) {
                    found.last_oom = Some(now);
                    self.tell(PodEvent::Oom { container });
                }
            }
            Input::Guest(_, Sign::Ended(ended)) => self.guest_ended(&ended),
            Input::Stopped(told) => {
                self.guest = GuestState::Empty;
                self.guest_number += 1;
                told();
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Create { request, reply } => self.create(request, reply),
            Command::Exec { request, reply } => self.exec(request, reply),
            Command::Start { process, reply } => self.start(process, reply),
            Command::Delete { process, reply } => self.delete(&process, reply),
            Command::Shutdown { now, reply } => self.shut_down(now, reply),
            other => self.ask(other),
        }
    }

    pub fn tell(&self, event: PodEvent) {
        // The receiver goes when the program ends.
        let _ = self.events.send(event);
    }

    /// Runs `task` and puts its outcome into the queue.
    pub fn spawn(&mut self, task: impl Future<Output = Input> + Send + 'static) {
        let queue = self.queue.clone();
        self.tasks.spawn(async move {
            let input = task.await;
            // The actor owns this task: the queue is there as long as it runs.
            let _ = queue.send(input).await;
        });
    }

    pub fn container(&mut self, id: &str) -> Result<&mut Container, PodError> {
        let missing = || PodError::NotFound { what: "container", id: id.to_owned() };
        self.containers.get_mut(id).ok_or_else(missing)
    }

    pub fn process(&mut self, id: &ProcessId) -> Result<&mut Process, PodError> {
        let container = self.container(&id.container)?;
        let exec = id.exec.as_deref();
        let missing =
            || PodError::NotFound { what: "exec", id: exec.unwrap_or_default().to_owned() };
        container.process(exec).ok_or_else(missing)
    }

    /// The guest, if requests to its agent make sense.
    pub fn up(&self) -> Result<Arc<Guest>, PodError> {
        match &self.guest {
            GuestState::Up(guest) => Ok(Arc::clone(guest)),
            GuestState::Dead(reason) => Err(self.dead(reason)),
            GuestState::Empty | GuestState::Booting(_) => Err(self.dead("no guest runs yet")),
            GuestState::Stopping(_) => Err(self.dead("its guest is being stopped")),
        }
    }

    pub fn dead(&self, reason: &str) -> PodError {
        PodError::Dead { pod: self.settings.id.clone(), reason: reason.to_owned() }
    }

    /// Removes what the pod had on the host and answers the shutdown.
    async fn leave(mut self) {
        if let GuestState::Up(guest) | GuestState::Stopping(guest) = &self.guest {
            guest.end().await;
        }
        self.guest = GuestState::Empty;
        self.containers.clear();
        let settings = Arc::clone(&self.settings);
        let removed = tokio::task::spawn_blocking(move || {
            for dir in [&settings.run_dir, &settings.disk_dir] {
                match std::fs::remove_dir_all(dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!(path = %dir.display(), %error, "directory not removed");
                    }
                    _ => {}
                }
            }
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "directories not removed");
        }
        if let Some(reply) = self.shutdown.take() {
            let _ = reply.send(Ok(true));
        }
    }
}

/// Answers a caller, who may have gone.
pub(crate) fn answer<T>(reply: Reply<T>, result: Result<T, PodError>) {
    let _ = reply.send(result);
}
