//! Containers and processes come: prepare, boot, create, start.
//!
//! ```text
//! Create ─► prepare (spec, disks, stdio, which hypervisor)
//!             ├ no guest ─────► boot with these disks ─┐
//!             ├ guest boots ──► wait for it            ├─► CreateContainer ─► answer
//!             └ guest is up ──► add the disks ─────────┘
//! ```
//! The sandbox of a pod (Kubernetes' `pause`) has neither disks nor a process: what it is there
//! for, to hold the namespaces, the guest does. It runs from its start to a signal that ends it.
//!
//! The hypervisor is probed while the disks are made, and launched with them: they are there in
//! milliseconds, but for the first container of an image that containerd unpacked, which waits for
//! the conversion. Booting without disks and adding them would save that one container the boot,
//! and cost every other one two disks added to a running guest.

use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::Hypervisor;
use hyper_link::message::{CreateContainer, Exec, ProcessId, Reply as AgentReply, Request};
use hyper_task::pod::Phases;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::actor::{Actor, Booted, GuestState, Input, answer};
use crate::boot::boot;
use crate::choose::choose;
use crate::cpu::{self, CpuWish};
use crate::exit::reserve_exit;
use crate::guest::{Guest, watch};
use crate::io::IoWish;
use crate::mounts::copy_instead;
use crate::network::{Network, wire};
use crate::pod::{CreateRequest, ExecRequest, Pod, PodEvent};
use crate::record::{Container, Process, Reply, State};
use crate::resize::MemoryWish;
use crate::rootfs::{RootDisks, prepare};
use crate::sockets::Carrying;
use crate::spec::{Spec, fit_process, read_spec};
use crate::stdio::{Channels, Running};
use crate::{PodError, Settings};

/// The guest mounts and sets up; minutes only where an emulator is slow.
const CREATE: Duration = Duration::from_secs(120);
const START: Duration = Duration::from_secs(60);

/// What a container needs before the guest is asked.
pub(crate) struct Prepared {
    pub spec: Spec,
    /// None: a sandbox.
    pub root: Option<RootDisks>,
    pub channels: Channels,
    pub listener: UnixListener,
    /// For the first container.
    pub hypervisor: Option<Arc<dyn Hypervisor>>,
    pub network: Option<Network>,
}

impl Actor {
    pub(crate) fn create(&mut self, request: CreateRequest, reply: Reply<u32>) {
        let id = request.id.clone();
        if self.containers.contains_key(&id) {
            return answer(reply, Err(PodError::Exists { what: "container", id }));
        }
        match &self.guest {
            GuestState::Dead(reason) => return answer(reply, Err(self.dead(reason))),
            GuestState::Stopping(_) => {
                return answer(reply, Err(self.dead("its guest is being stopped")));
            }
            GuestState::Empty | GuestState::Booting(_) | GuestState::Up(_) => {}
        }
        let first = matches!(self.guest, GuestState::Empty);
        let container = Container {
            bundle: request.bundle.clone(),
            init: Process::new(request.stdio.clone(), reply, None),
            execs: std::collections::BTreeMap::new(),
            phases: Phases {
                supervisor_started: Some(self.settings.started_ns),
                create_received: Some(hyper_stdio::now_ns()),
                ..Phases::default()
            },
            paused: false,
            owned: Vec::new(),
            keeps: false,
            upper: None,
            socket: None,
            carrying: Carrying::default(),
            network: Vec::new(),
            sandbox: false,
            cpu: CpuWish::default(),
            io: IoWish::default(),
            memory: MemoryWish::default(),
            in_guest: false,
            rootfs: request.rootfs.clone(),
            deleting: Vec::new(),
            last_oom: None,
        };
        self.containers.insert(id.clone(), container);
        let settings = Arc::clone(&self.settings);
        self.spawn(async move {
            let result = prepared(&settings, &request, first).await.map(Box::new);
            Input::Prepared { container: id, result }
        });
    }

    pub(crate) fn prepared(&mut self, id: String, result: Result<Box<Prepared>, PodError>) {
        let prepared = match result {
            Ok(prepared) => *prepared,
            Err(error) => return self.create_failed(&id, error),
        };
        if let Ok(container) = self.container(&id) {
            let resources = &prepared.spec.value["linux"]["resources"];
            container.cpu = std::mem::take(&mut container.cpu).changed_by(resources);
            container.io = IoWish::from_resources(resources);
            container.sandbox = prepared.spec.sandbox;
            if !container.sandbox {
                container.memory = container.memory.changed_by(resources);
            }
            if let Some(root) = &prepared.root {
                container.owned.clone_from(&root.owned);
                container.keeps = root.upper.as_ref().is_some_and(|disk| !disk.ephemeral);
                let file = root.upper.as_ref().and_then(|disk| disk.extents.first());
                container.upper = file.map(|extent| extent.path.clone());
            }
            container.keeps |= !prepared.spec.disks.is_empty() || !prepared.spec.shared.is_empty();
            container.network = prepared.spec.network.report();
        }
        match &mut self.guest {
            GuestState::Empty => {
                self.guest = GuestState::Booting(Vec::new());
                let settings = Arc::clone(&self.settings);
                self.spawn(async move {
                    let result = booted(&settings, &id, prepared).await.map(Box::new);
                    Input::Booted { container: id, result }
                });
            }
            GuestState::Booting(waiting) => waiting.push((id, prepared)),
            GuestState::Up(guest) => {
                let guest = Arc::clone(guest);
                self.bring_in(guest, id, prepared, false);
            }
            GuestState::Stopping(_) => {
                let error = self.dead("its guest is being stopped");
                self.create_failed(&id, error);
            }
            GuestState::Dead(reason) => {
                let reason = reason.clone();
                let error = self.dead(&reason);
                self.create_failed(&id, error);
            }
        }
    }

    pub(crate) fn booted(&mut self, id: String, result: Result<Box<Booted>, PodError>) {
        let waiting = match std::mem::replace(&mut self.guest, GuestState::Empty) {
            GuestState::Booting(waiting) => waiting,
            // Only a booting guest can have booted.
            other => {
                self.guest = other;
                return;
            }
        };
        let Booted { guest, events, prepared } = match result {
            Ok(booted) => *booted,
            Err(error) => {
                for (other, _) in waiting {
                    let reason = format!("no guest for container `{id}` before it");
                    let error = self.dead(&reason);
                    self.create_failed(&other, error);
                }
                return self.create_failed(&id, error);
            }
        };
        let guest = Arc::new(guest);
        self.hypervisor_pid = guest.vm.pid();
        self.guest = GuestState::Up(Arc::clone(&guest));
        self.guest_number += 1;
        let (number, queue) = (self.guest_number, self.queue.clone());
        self.tasks.spawn(watch(Arc::clone(&guest), number, events, queue));
        self.bring_in(Arc::clone(&guest), id, prepared, true);
        for (id, prepared) in waiting {
            self.bring_in(Arc::clone(&guest), id, prepared, false);
        }
    }

    fn bring_in(&mut self, guest: Arc<Guest>, id: String, prepared: Prepared, first: bool) {
        let queue = self.queue.clone();
        let pod = Pod::from_queue(queue.clone());
        if let Ok(container) = self.container(&id) {
            container.phases.hypervisor_started = Some(guest.started_ns);
            container.phases.agent_ready = Some(guest.ready_ns);
            container.phases.origin.clone_from(&guest.origin);
        }
        let Prepared { spec, root, channels, listener, .. } = prepared;
        // The container's socket closes with it: the task is aborted when it is deleted.
        let socket = self.tasks.spawn(crate::serve::serve(pod, id.clone(), listener));
        if let Ok(container) = self.container(&id) {
            container.socket = Some(socket);
        }
        let Some(root) = root else { return self.created(&id, Ok(None)) };
        self.spawn(async move {
            let result = created(&guest, &id, (spec, root, channels), first, queue).await;
            Input::Created { container: id, result: result.map(Some) }
        });
    }

    /// With what runs for it; none: a sandbox.
    pub(crate) fn created(
        &mut self,
        id: &str,
        result: Result<Option<(Running, Carrying)>, PodError>,
    ) {
        let made = match (result, &self.guest) {
            (Err(error), _) => return self.create_failed(id, error),
            (Ok(_), GuestState::Dead(reason)) => {
                let error = self.dead(reason);
                return self.create_failed(id, error);
            }
            (Ok(made), _) => made,
        };
        let pid = self.hypervisor_pid;
        let Ok(container) = self.container(id) else { return };
        container.phases.container_created = Some(hyper_stdio::now_ns());
        container.in_guest = made.is_some();
        if let Some((stdio, carrying)) = made {
            container.init.stdio = Some(stdio);
            container.carrying = carrying;
        }
        let event = PodEvent::Created {
            container: id.to_owned(),
            bundle: container.bundle.clone(),
            rootfs: container.rootfs.clone(),
            stdio: container.init.uris.clone(),
            pid,
        };
        let before = std::mem::replace(&mut container.init.state, State::Created);
        self.share_cpu();
        self.share_io();
        self.tell(event);
        if let State::Creating(reply) = before {
            answer(reply, Ok(pid));
        }
    }

    /// Takes a container back that did not come to be. The guest goes with the last one.
    fn create_failed(&mut self, id: &str, error: PodError) {
        let Some(container) = self.containers.remove(id) else { return };
        if let Some(socket) = container.socket {
            socket.abort();
        }
        let State::Creating(reply) = container.init.state else { return };
        let (owned, socket) = (container.owned, container.bundle.join(hyper_task::pod::SOCKET));
        let id = id.to_owned();
        let guest = self.stop_if_empty();
        let stopping = guest.is_some();
        let others = self.up().ok();
        let task = async move {
            if let Some(guest) = guest {
                guest.stop(false).await;
            }
            if let Some(guest) = others {
                guest.take_back_disks(&id).await;
            }
            remove(owned, socket).await;
        };
        self.spawn_stop(stopping, task, move || answer(reply, Err(error)));
    }

    pub(crate) fn exec(&mut self, request: ExecRequest, reply: Reply<u32>) {
        let ExecRequest { container: id, id: exec, mut spec, stdio } = request;
        let container = match self.container(&id) {
            Ok(container) => container,
            Err(error) => return answer(reply, Err(error)),
        };
        if container.sandbox {
            return answer(
                reply,
                Err(PodError::Unsupported(format!(
                    "pod `{id}` has no process of its own: name one of its containers"
                ))),
            );
        }
        if container.execs.contains_key(&exec) {
            return answer(reply, Err(PodError::Exists { what: "exec", id: exec }));
        }
        let state = if container.paused { "paused" } else { container.init.state_name() };
        if !matches!(container.init.state, State::Created | State::Running) || container.paused {
            let (what, action) = ("container", "run one more process in it");
            return answer(reply, Err(PodError::State { what, id, state, action }));
        }
        fit_process(&mut spec, stdio.terminal);
        container.execs.insert(exec.clone(), Process::new(stdio.clone(), reply, Some(spec)));
        let process = ProcessId { container: id, exec: Some(exec) };
        self.spawn(async move {
            let result = Channels::open(&process.container, &stdio, true).await;
            Input::Opened { process, result }
        });
    }

    pub(crate) fn opened(&mut self, id: &ProcessId, result: Result<Channels, PodError>) {
        let Some(exec) = id.exec.clone() else { return };
        let pid = self.hypervisor_pid;
        let Ok(container) = self.container(&id.container) else { return };
        match result {
            Ok(channels) => {
                let Some(process) = container.execs.get_mut(&exec) else { return };
                process.channels = Some(channels);
                let before = std::mem::replace(&mut process.state, State::Created);
                self.tell(PodEvent::ExecAdded { container: id.container.clone(), exec });
                if let State::Creating(reply) = before {
                    answer(reply, Ok(pid));
                }
            }
            Err(error) => {
                if let Some(Process { state: State::Creating(reply), .. }) =
                    container.execs.remove(&exec)
                {
                    answer(reply, Err(error));
                }
            }
        }
    }

    pub(crate) fn start(&mut self, id: ProcessId, reply: Reply<u32>) {
        let guest = self.up();
        let queue = self.queue.clone();
        let sandbox = self.container(&id.container).is_ok_and(|container| container.sandbox);
        let process = match self.process(&id) {
            Ok(process) => process,
            Err(error) => return answer(reply, Err(error)),
        };
        if !matches!(process.state, State::Created) {
            let what = if id.exec.is_some() { "exec" } else { "container" };
            let (state, action) = (process.state_name(), "start it");
            let id = id.exec.unwrap_or(id.container);
            return answer(reply, Err(PodError::State { what, id, state, action }));
        }
        let guest = match guest {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        process.state = State::Starting { reply, early: None };
        let exec = process.channels.take().zip(process.spec.take());
        if id.exec.is_none()
            && let Ok(container) = self.container(&id.container)
        {
            container.phases.start_received = Some(hyper_stdio::now_ns());
        }
        if sandbox {
            return self.started(&id, Ok((None, 0)));
        }
        self.spawn(async move {
            let result = started(&guest, &id, exec, queue).await;
            Input::Started { process: id, result }
        });
    }

    pub(crate) fn started(
        &mut self,
        id: &ProcessId,
        result: Result<(Option<Running>, u32), PodError>,
    ) {
        let pid = self.hypervisor_pid;
        let Ok(process) = self.process(id) else { return };
        let State::Starting { reply, early } =
            std::mem::replace(&mut process.state, State::Running)
        else {
            return;
        };
        match result {
            Ok((stdio, guest_pid)) => {
                if stdio.is_some() {
                    process.stdio = stdio;
                }
                process.guest_pid = guest_pid;
                let container = id.container.clone();
                if let Some(exec) = id.exec.clone() {
                    self.tell(PodEvent::ExecStarted { container, exec, pid });
                } else {
                    if let Ok(container) = self.container(&id.container) {
                        container.phases.process_started = Some(hyper_stdio::now_ns());
                    }
                    self.tell(PodEvent::Started { container, pid });
                }
                answer(reply, Ok(pid));
                if let Some(mut record) = early {
                    record.unix_ns = hyper_stdio::now_ns();
                    self.process_ended(id, record);
                }
            }
            Err(error) => {
                let record = early.unwrap_or_else(|| self.refused(&error));
                self.start_failed(id, record);
                answer(reply, Err(error));
            }
        }
    }
}

/// Everything that can be had without the guest, side by side.
async fn prepared(
    settings: &Arc<Settings>,
    request: &CreateRequest,
    first: bool,
) -> Result<Prepared, PodError> {
    let (bundle, terminal) = (request.bundle.clone(), request.stdio.terminal);
    let of = request.id.clone();
    let spec = blocking(move || {
        let spec = read_spec(&of, &bundle, terminal)?;
        reserve_exit(&bundle)?;
        Ok(spec)
    })
    .await?;
    if !first && !spec.sysctls.is_empty() {
        return Err(PodError::Unsupported(format!(
            "sysctl `{}` of container `{}`: the network belongs to the pod, whose first container \
             sets it",
            spec.sysctls[0].0, request.id
        )));
    }
    let ground = async {
        if first {
            let (hypervisor, network) = ground(settings, &spec).await?;
            Ok((Some(hypervisor), Some(network)))
        } else {
            Ok((None, None))
        }
    };
    let (of, id, mounts) = (Arc::clone(settings), request.id.clone(), request.rootfs.clone());
    let (spec_root, spec_read_only) = (spec.root.clone(), spec.read_only);
    let root = blocking(move || {
        make_private(&of.run_dir)?;
        let mut root = prepare(&of, &id, &mounts, spec_root.as_deref())
            .map_err(|source| PodError::Rootfs { container: id, source })?;
        root.read_only |= spec_read_only;
        Ok(root)
    });
    let root = async { if spec.sandbox { Ok(None) } else { root.await.map(Some) } };
    let channels = Channels::open(&request.id, &request.stdio, false);
    let (ground, root, channels) = tokio::join!(ground, root, channels);
    // The root may hold files: it is the last to fail, so that it is never dropped silently.
    let rest = ground.and_then(|(hypervisor, network)| {
        let path = request.bundle.join(hyper_task::pod::SOCKET);
        let listener =
            hyper_stdio::socket::bind(&path).map_err(PodError::file("listen on", path))?;
        Ok((hypervisor, channels?, listener, network))
    });
    match (rest, root) {
        (Ok((hypervisor, channels, listener, network)), Ok(root)) => {
            Ok(Prepared { spec, root, channels, listener, hypervisor, network })
        }
        (rest, root) => {
            let owned = root.as_ref().ok().and_then(Option::as_ref);
            let owned = owned.map(|root| root.owned.clone()).unwrap_or_default();
            remove(owned, request.bundle.join(hyper_task::pod::SOCKET)).await;
            Err(match (rest, root) {
                (Err(error), _) | (_, Err(error)) => error,
                (Ok(_), Ok(_)) => PodError::Internal("nothing failed".to_owned()),
            })
        }
    }
}

/// What a guest runs on: its hypervisor and its network. A guest with several CPUs has a pair of queues for each in each
/// of its cards, where the hypervisor can.
async fn ground(
    settings: &Settings,
    spec: &Spec,
) -> Result<(Arc<dyn Hypervisor>, Network), PodError> {
    let hypervisor = choose(settings, &spec.wishes);
    if spec.wishes.cpus(settings, u32::MAX) == 1 {
        let (hypervisor, network) = tokio::join!(hypervisor, wire(&spec.network, 1));
        return Ok((hypervisor?, network?));
    }
    let hypervisor = hypervisor.await?;
    let can = hypervisor.capabilities();
    let cpus = usize::try_from(spec.wishes.cpus(settings, can.max_vcpus)).unwrap_or(usize::MAX);
    let network = wire(&spec.network, cpus.clamp(1, can.nic_queues.max(1))).await?;
    Ok((hypervisor, network))
}

async fn booted(
    settings: &Settings,
    container: &str,
    mut prepared: Prepared,
) -> Result<Booted, PodError> {
    // A container that came second while the first one failed has not chosen.
    let (hypervisor, network) = match (&prepared.hypervisor, prepared.network.take()) {
        (Some(hypervisor), Some(network)) => (Arc::clone(hypervisor), network),
        _ => ground(settings, &prepared.spec).await?,
    };
    let root = prepared.root.iter();
    let disks = root.flat_map(|root| [Some(&root.image), root.upper.as_ref()]).flatten();
    let volumes = prepared.spec.disks.iter().map(|(_, disk)| disk);
    let disks = disks.chain(volumes).cloned().collect();
    if !hypervisor.capabilities().share {
        let name = hypervisor.name();
        prepared.spec = copied(prepared.spec, name).await?;
    }
    let (guest, events) =
        boot(settings, container, hypervisor, &prepared.spec, disks, network).await?;
    Ok(Booted { guest, events, prepared })
}

/// The container without live directories.
async fn copied(mut spec: Spec, hypervisor: &'static str) -> Result<Spec, PodError> {
    if spec.shared.is_empty() {
        return Ok(spec);
    }
    blocking(move || copy_instead(&mut spec, hypervisor).map(|()| spec)).await
}

async fn created(
    guest: &Guest,
    id: &str,
    (mut spec, root, channels): (Spec, RootDisks, Channels),
    first: bool,
    queue: mpsc::Sender<Input>,
) -> Result<(Running, Carrying), PodError> {
    if !first && !guest.hypervisor.capabilities().share {
        spec = copied(spec, guest.hypervisor.name()).await?;
    }
    if !first {
        guest.add_shared(&spec.shared).await?;
    }
    let rootfs =
        if first { guest.first_root(&root).await } else { guest.add_root(id, &root).await? };
    for (at, (place, disk)) in spec.disks.iter().enumerate() {
        let device = if first {
            guest.device(1 + usize::from(root.upper.is_some()) + at).await
        } else {
            guest.add_volume(id, disk).await?
        };
        if let Some(mount) = spec.value.pointer_mut(&format!("/mounts/{place}")) {
            mount["type"] = "ext4".into();
            mount["source"] = device.into();
        }
    }
    if let Some(resources) = spec.value.pointer_mut("/linux/resources") {
        cpu::for_guest(resources);
    }
    let process = ProcessId { container: id.to_owned(), exec: None };
    let (streams, stdio) = channels.run(&guest.link, process, queue);
    let mut carrying = Carrying::default();
    let sockets = spec.sockets.into_iter();
    let sockets = sockets.map(|socket| socket.serve(&guest.link, &mut carrying)).collect();
    let request = Request::CreateContainer(Box::new(CreateContainer {
        container: id.to_owned(),
        spec: spec.value,
        rootfs,
        files: spec.files,
        sockets,
        streams,
    }));
    guest.call(id, request, CREATE).await?;
    Ok((stdio, carrying))
}

async fn started(
    guest: &Guest,
    id: &ProcessId,
    exec: Option<(Channels, serde_json::Value)>,
    queue: mpsc::Sender<Input>,
) -> Result<(Option<Running>, u32), PodError> {
    let (stdio, request) = match exec {
        None => (None, Request::StartContainer { container: id.container.clone() }),
        Some((channels, spec)) => {
            let (streams, stdio) = channels.run(&guest.link, id.clone(), queue);
            let exec = Exec { process: id.clone(), spec, streams };
            (Some(stdio), Request::Exec(Box::new(exec)))
        }
    };
    let pid = match guest.call(&id.container, request, START).await? {
        AgentReply::Started { pid } => pid,
        _ => 0,
    };
    Ok((stdio, pid))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(PodError::Internal(error.to_string())))
}

/// Removes a container's files on the host.
pub(crate) async fn remove(owned: Vec<std::path::PathBuf>, socket: std::path::PathBuf) {
    let removed = blocking(move || {
        for dir in owned {
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                tracing::warn!(path = %dir.display(), %error, "directory not removed");
            }
        }
        // The caller may have removed the bundle already.
        let _ = std::fs::remove_file(socket);
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::warn!(%error, "files of a container not removed");
    }
}

pub(crate) fn make_private(dir: &std::path::Path) -> Result<(), PodError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(PodError::file("make directory", dir))
}
