//! Requests that ask the guest something, or the records, and change no state but "paused".

use std::sync::Arc;
use std::time::Duration;

use hyper_link::message::{FailureKind, ProcessId, Reply as AgentReply, Request, Stats};
use hyper_stdio::{Attachment, Wanted};
use hyper_task::pod::PodReport;

use crate::actor::{Actor, GuestState, Input, answer};
use crate::choose::wall_name;
use crate::create::blocking;
use crate::guest::Guest;
use crate::pod::{Command, PodEvent, ProcessReport};
use crate::record::{Container, Reply, State};
use crate::resize::{self, MemoryWish};
use crate::{PodError, cpu};

const DEADLINE: Duration = Duration::from_secs(20);

impl Actor {
    pub(crate) fn ask(&mut self, command: Command) {
        match command {
            Command::Signal { process, signal, all, reply } => {
                self.signal(process, signal, all, reply);
            }
            Command::Resize { process, rows, columns, reply } => {
                let container = process.container.clone();
                match self.live(&process, "resize its terminal") {
                    Ok(_) => {
                        self.done(container, Request::Resize { process, rows, columns }, reply);
                    }
                    Err(error) => answer(reply, Err(error)),
                }
            }
            Command::CloseStdin { process, reply } => self.close_stdin(&process, reply),
            Command::Report { process, reply } => {
                let report = self.report(&process);
                answer(reply, report);
            }
            Command::Wait { process, reply } => {
                let waiter = self.process(&process).map(|process| {
                    let (sender, receiver) = tokio::sync::oneshot::channel();
                    match process.exit() {
                        Some(exit) => _ = sender.send(exit.clone()),
                        None => process.waiters.push(sender),
                    }
                    receiver
                });
                answer(reply, waiter);
            }
            Command::SetPaused { container, paused, reply } => {
                self.set_paused(container, paused, reply);
            }
            Command::Update { container, resources, reply } => {
                self.update(container, resources, reply);
            }
            Command::Stats { container, reply } => {
                let request = Request::Stats { container: container.clone() };
                self.query(container, request, reply, |reply| match reply {
                    AgentReply::Stats(stats) => Some(*stats),
                    _ => None,
                });
            }
            Command::Processes { container, reply } => {
                let request = Request::Processes { container: container.clone() };
                self.query(container, request, reply, |reply| match reply {
                    AgentReply::Processes { processes } => Some(processes),
                    _ => None,
                });
            }
            Command::Guest { container, action, reply } => {
                let process = ProcessId { container, exec: None };
                let guest = self.live(&process, action);
                let guest = guest.and_then(|guest| match guest.is_paused() {
                    false => Ok(guest),
                    true => Err(PodError::State {
                        what: "container",
                        id: process.container,
                        state: "paused with its guest",
                        action,
                    }),
                });
                answer(reply, guest);
            }
            Command::Attach { process, wanted, reply } => {
                let attached = self.attach(&process, wanted);
                answer(reply, attached);
            }
            Command::Phases { container, reply } => {
                let phases = self.container(&container).map(|found| found.phases.clone());
                answer(reply, phases);
            }
            Command::Pod { reply } => self.pod(reply),
            // The rest is the caller's.
            Command::Create { .. }
            | Command::Exec { .. }
            | Command::Start { .. }
            | Command::Delete { .. }
            | Command::Shutdown { .. } => {}
        }
    }

    /// The guest, if this process lives in it and is not stopped by a pause.
    fn live(&mut self, id: &ProcessId, action: &'static str) -> Result<Arc<Guest>, PodError> {
        let guest = self.up();
        let process = self.process(id)?;
        let state = process.state_name();
        if matches!(process.state, State::Ended(_) | State::Exited(_)) {
            // containerd's clients take "not found" for "already finished".
            let what = if id.exec.is_some() { "running exec" } else { "running container" };
            let id = id.exec.clone().unwrap_or_else(|| id.container.clone());
            return Err(PodError::NotFound { what, id });
        }
        if matches!(process.state, State::Creating(_)) {
            let id = id.exec.clone().unwrap_or_else(|| id.container.clone());
            return Err(PodError::State { what: "process", id, state, action });
        }
        guest
    }

    fn signal(&mut self, process: ProcessId, signal: i32, all: bool, reply: Reply<()>) {
        if self.container(&process.container).is_ok_and(|found| found.sandbox) {
            return self.signal_sandbox(&process, signal, reply);
        }
        let guest = match self.live(&process, "signal it") {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        let container = process.container.clone();
        if guest.is_paused() {
            let (state, action) = ("paused", "signal it");
            let error = PodError::State { what: "container", id: container, state, action };
            return answer(reply, Err(error));
        }
        self.done(container, Request::Signal { process, signal, all }, reply);
    }

    /// What Kubernetes' own `pause` does: it ends by the signals that ask for it, others are
    /// ignored. (It runs as pid 1 there.)
    fn signal_sandbox(&mut self, process: &ProcessId, signal: i32, reply: Reply<()>) {
        const ENDING: [i32; 3] = [2, 9, 15];
        let live = self.process(process).map(|found| match found.state {
            State::Running => Ok(()),
            _ => {
                Err(PodError::NotFound { what: "running container", id: process.container.clone() })
            }
        });
        match live.flatten() {
            Err(error) => answer(reply, Err(error)),
            Ok(()) => {
                if ENDING.contains(&signal) {
                    self.process_exited(process, 128 + signal, false);
                }
                answer(reply, Ok(()));
            }
        }
    }

    fn close_stdin(&mut self, id: &ProcessId, reply: Reply<()>) {
        match self.process(id) {
            Err(error) => answer(reply, Err(error)),
            Ok(process) => {
                let close = match (&process.stdio, &process.channels) {
                    (Some(stdio), _) => Some(stdio.close_stdin()),
                    (None, Some(channels)) => Some(channels.close_stdin()),
                    (None, None) => None,
                };
                // Waits behind what clients wrote before, so not here.
                self.tasks.spawn(async move {
                    if let Some(close) = close {
                        close.await;
                    }
                    answer(reply, Ok(()));
                });
            }
        }
    }

    fn report(&mut self, id: &ProcessId) -> Result<ProcessReport, PodError> {
        let pid = self.hypervisor_pid;
        let paused = self.container(&id.container)?.paused;
        let bundle = self.container(&id.container)?.bundle.clone();
        let process = self.process(id)?;
        Ok(ProcessReport {
            bundle,
            pid,
            status: process.status(paused),
            stdio: process.uris.clone(),
            exit: process.exit().cloned(),
        })
    }

    fn attach(&mut self, id: &ProcessId, wanted: Wanted) -> Result<Attachment, PodError> {
        let process = self.process(id)?;
        let attached = match (&process.stdio, &process.channels) {
            (Some(stdio), _) => stdio.attach(wanted),
            (None, Some(channels)) => channels.attach(wanted),
            (None, None) => None,
        };
        let (what, state) = (id.exec.as_ref().unwrap_or(&id.container), process.state_name());
        attached.ok_or_else(|| {
            PodError::Unsupported(format!(
                "cannot attach to `{what}`: it is {state}, or its stdio goes to FIFOs"
            ))
        })
    }

    /// The cgroup freezer of the guest; where its kernel has none and the guest holds nothing
    /// else, all of the guest. All of the guest too when it is the pod that is paused.
    fn set_paused(&mut self, id: String, paused: bool, reply: Reply<()>) {
        let (guest, alone) = (self.up(), self.containers.len() == 1);
        let whole = self.container(&id).is_ok_and(|container| container.sandbox);
        let container = match self.container(&id) {
            Ok(container) => container,
            Err(error) => return answer(reply, Err(error)),
        };
        let running = matches!(container.init.state, State::Running);
        if !running || container.paused == paused {
            let state = if container.paused { "paused" } else { container.init.state_name() };
            let action = if paused { "pause it" } else { "resume it" };
            return answer(reply, Err(PodError::State { what: "container", id, state, action }));
        }
        let guest = match guest {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        self.spawn(async move {
            let result = if whole {
                pause_guest(&guest, paused).await
            } else {
                freeze(&guest, &id, paused, alone).await
            };
            Input::Frozen { container: id, paused, result, reply }
        });
    }

    /// Limits of a container; the sandbox's are those of all containers of its pod together.
    fn update(&mut self, id: String, resources: serde_json::Value, reply: Reply<()>) {
        let request = cpu::check(&resources);
        let request = request.and_then(|()| self.container(&id).map(|container| container.sandbox));
        let request = request.and_then(|whole| Ok((whole, self.up()?)));
        let request = request.and_then(|(whole, guest)| match guest.is_paused() {
            false => Ok((whole, guest)),
            true => Err(PodError::State {
                what: if whole { "pod" } else { "container" },
                id: id.clone(),
                state: "paused with its guest",
                action: "update it",
            }),
        });
        let request = request.and_then(|(whole, guest)| match whole {
            true => Ok((resize::sandbox(&guest, &self.settings, &resources)?, guest)),
            false => {
                let apart = |other: &&Container| other.in_guest && !other.sandbox;
                let others = self.containers.iter().filter(|(other, _)| **other != id);
                let others = others.map(|(_, other)| other).filter(apart);
                let others: Vec<MemoryWish> = others.map(|other| other.memory).collect();
                let pod = self.containers.values().find(|container| container.sandbox);
                let pod = pod.map(|pod| pod.memory).unwrap_or_default();
                let plan = resize::container(&guest, &self.settings, &id, &resources, &others, pod);
                Ok((plan, guest))
            }
        });
        let (plan, guest) = match request {
            Ok(asked) => asked,
            Err(error) => return answer(reply, Err(error)),
        };
        self.spawn(async move {
            let result = resize::carry_out(&guest, &id, plan, DEADLINE).await;
            Input::Updated { container: id, resources, result, reply }
        });
    }

    /// What the guest has taken is the host's to hold as well.
    pub(crate) fn updated(
        &mut self,
        id: &str,
        resources: &serde_json::Value,
        result: Result<(), PodError>,
        reply: Reply<()>,
    ) {
        if result.is_ok()
            && let Ok(container) = self.container(id)
        {
            container.cpu = std::mem::take(&mut container.cpu).changed_by(resources);
            container.memory = container.memory.changed_by(resources);
            self.share_cpu();
        }
        answer(reply, result);
    }

    pub(crate) fn frozen(
        &mut self,
        id: String,
        paused: bool,
        result: Result<(), PodError>,
        reply: Reply<()>,
    ) {
        if result.is_ok()
            && let Ok(container) = self.container(&id)
        {
            container.paused = paused;
            let container = id;
            self.tell(if paused {
                PodEvent::Paused { container }
            } else {
                PodEvent::Resumed { container }
            });
        }
        answer(reply, result);
    }

    /// Asks the agent for [`AgentReply::Done`].
    fn done(&mut self, container: String, request: Request, reply: Reply<()>) {
        self.query(container, request, reply, |_| Some(()));
    }

    fn query<T: Send + 'static>(
        &mut self,
        container: String,
        request: Request,
        reply: Reply<T>,
        pick: impl FnOnce(AgentReply) -> Option<T> + Send + 'static,
    ) {
        let guest = match self.container(&container).map(|_| ()).and_then(|()| self.up()) {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        self.tasks.spawn(async move {
            let result = guest.call(&container, request, DEADLINE).await.and_then(|reply| {
                let odd =
                    || PodError::Internal("agent gave another reply than asked for".to_owned());
                pick(reply).ok_or_else(odd)
            });
            answer(reply, result);
        });
    }

    fn pod(&mut self, reply: Reply<PodReport>) {
        let guest = match &self.guest {
            GuestState::Up(guest) => Some(Arc::clone(guest)),
            _ => None,
        };
        let containers: Vec<String> = self.containers.keys().cloned().collect();
        let inside = self.containers.iter().filter(|(_, found)| found.in_guest);
        let inside = inside.map(|(id, _)| id.clone()).collect();
        let networks = self.containers.values().flat_map(|found| found.network.clone()).collect();
        let mut report = PodReport {
            id: self.settings.id.clone(),
            supervisor_pid: std::process::id(),
            containers,
            networks,
            ..PodReport::default()
        };
        self.tasks.spawn(async move {
            if let Some(guest) = guest {
                describe(&guest, inside, &mut report).await;
            }
            report.supervisor_cpu_ns = own_cpu_ns();
            if let Ok((private, resident)) = blocking(own_memory).await {
                report.supervisor_private_bytes = private;
                report.supervisor_resident_bytes = resident;
            }
            answer(reply, Ok(report));
        });
    }
}

async fn pause_guest(guest: &Guest, paused: bool) -> Result<(), PodError> {
    if !guest.hypervisor.capabilities().pause {
        let name = guest.hypervisor.name();
        return Err(PodError::Unsupported(format!("hypervisor `{name}` cannot pause a guest")));
    }
    guest.set_paused(paused).await
}

async fn freeze(guest: &Guest, id: &str, frozen: bool, alone: bool) -> Result<(), PodError> {
    if guest.is_paused() {
        return guest.set_paused(frozen).await;
    }
    let request = Request::Freeze { container: id.to_owned(), frozen };
    match guest.call(id, request, DEADLINE).await {
        Ok(_) => Ok(()),
        Err(PodError::Refused { kind: FailureKind::Unsupported, .. })
            if alone && frozen && guest.hypervisor.capabilities().pause =>
        {
            guest.set_paused(true).await
        }
        Err(error) => Err(error),
    }
}

/// `inside`: the containers that the agent can be asked about.
async fn describe(guest: &Guest, inside: Vec<String>, report: &mut PodReport) {
    report.hypervisor = guest.hypervisor.name().to_owned();
    report.wall = wall_name(guest.hypervisor.capabilities().wall);
    report.origin.clone_from(&guest.origin);
    report.image.clone_from(&guest.image);
    report.guest_kernel.clone_from(&guest.link.hello().kernel);
    report.hypervisor_pid = guest.vm.pid();
    report.vcpus = guest.vcpus;
    report.memory_bytes = guest.memory.now();
    report.memory_growth = guest.hypervisor.capabilities().memory_growth;
    report.console = guest.vm.console();
    if let Ok(usage) = guest.vm.usage().await {
        report.hypervisor_cpu_ns = u64::try_from(usage.cpu.as_nanos()).unwrap_or(u64::MAX);
        report.hypervisor_private_bytes = usage.private_bytes;
        report.hypervisor_resident_bytes = usage.resident_bytes;
    }
    if guest.is_paused() {
        return;
    }
    for container in inside {
        let request = Request::Stats { container: container.clone() };
        if let Ok(AgentReply::Stats(stats)) = guest.call(&container, request, DEADLINE).await {
            let Stats {
                guest_memory_total_bytes: total,
                guest_memory_available_bytes: free,
                cpu_usage_us,
                ..
            } = *stats;
            report.guest_memory_total_bytes = total;
            report.guest_memory_used_bytes = total.saturating_sub(free);
            report.guest_cpu_ns += cpu_usage_us.saturating_mul(1000);
        }
    }
}

/// CPU time of this process, its threads together: the first field of proc(5)'s `schedstat` is one
/// thread's only, so the sum of all.
fn own_cpu_ns() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let times = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    times.sum()
}

/// Private and resident bytes of this process: proc(5), `smaps_rollup`.
fn own_memory() -> Result<(u64, u64), PodError> {
    let path = "/proc/self/smaps_rollup";
    let text = std::fs::read_to_string(path).map_err(PodError::file("read", path))?;
    let sum = |names: [&str; 2]| {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let numbers = lines
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, value)| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        numbers.sum::<u64>() * 1024
    };
    Ok((sum(["Private_Clean", "Private_Dirty"]), sum(["Rss", ""])))
}
