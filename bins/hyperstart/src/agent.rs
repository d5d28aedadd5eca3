//! The requests of the supervisor, each carried out in a task of its own.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use hyper_link::{
    AgentLink, Replier,
    message::{CreateContainer, Exec, Failure, FailureKind, ProcessId, Reply, Request},
    sockets::carry,
};
use serde::Deserialize as _;

use crate::{
    cgroup,
    container::{Container, aside, check_id, let_go},
    failure::{Doing as _, Outcome, failure},
    files, localhost, names,
    oci::spec::Resources,
    pod, power, processes,
    reaper::Reaper,
};

/// How long the ends of processes may take to be reported when the pod ends.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);
/// How long the last reply may take to leave.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// What is behind a container's id.
#[derive(Debug)]
enum Slot {
    /// Being made or removed.
    Busy,
    Here(Rc<Container>),
}

/// The agent's state while one link lasts.
#[derive(Debug)]
pub(crate) struct Agent {
    link: AgentLink,
    reaper: Rc<Reaper>,
    containers: RefCell<BTreeMap<String, Slot>>,
}

impl Agent {
    pub(crate) fn new(link: AgentLink, reaper: Rc<Reaper>) -> Self {
        Self { link, reaper, containers: RefCell::default() }
    }

    pub(crate) fn has_containers(&self) -> bool {
        !self.containers.borrow().is_empty()
    }

    /// Carries out `request` and answers it.
    pub(crate) async fn answer(&self, request: Request, replier: Replier) {
        let reply = match request {
            Request::StartContainer { container } => match self.container(&container) {
                Ok(container) => {
                    let _voice = container.first.voice.lock().await;
                    let outcome = container.start().await;
                    replier.send(started(outcome.map(|()| container.first.pid())));
                    return;
                }
                Err(failure) => Reply::Error(failure),
            },
            Request::Exec(exec) => return self.exec(&exec, replier).await,
            Request::Shutdown => return self.shut_down(replier).await,
            Request::CreateContainer(create) => started(self.create(&create).await),
            Request::Processes { container } => {
                match self.container(&container).and_then(|known| known.cgroup.processes()) {
                    Ok(pids) => Reply::Processes { processes: processes::describe(&pids) },
                    Err(failure) => Reply::Error(failure),
                }
            }
            Request::StatPath { container, path } => {
                let first = self.container(&container).and_then(|known| known.first.living());
                match async { files::stat(first?, &path).await }.await {
                    Ok(stat) => Reply::Path(stat),
                    Err(failure) => Reply::Error(failure),
                }
            }
            Request::ReadFiles { container, what, stream } => {
                let reading = async {
                    let known = self.container(&container)?;
                    let first = known.first.living()?;
                    files::read(&self.link, &known.directories(), first, &what, stream).await
                };
                match reading.await {
                    Ok(None) => Reply::Done,
                    Ok(Some(note)) => Reply::Noted { note },
                    Err(failure) => Reply::Error(failure),
                }
            }
            Request::Stats { container } => match self.container(&container) {
                Ok(known) => Reply::Stats(Box::new(known.cgroup.stats())),
                Err(failure) => Reply::Error(failure),
            },
            other => match self.carry_out(other).await {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Error(failure),
            },
        };
        replier.send(reply);
    }

    /// The requests that are answered with `Done`.
    async fn carry_out(&self, request: Request) -> Outcome<()> {
        match request {
            Request::ConfigurePod(config) => {
                pod::configure(&config).await?;
                self.resolve(config.names).await
            }
            Request::SetTime { unix_ns } => pod::set_time(unix_ns),
            Request::Signal { process, signal, all } => self.signal(&process, signal, all),
            Request::Resize { process, rows, columns } => {
                self.container(&process.container)?.process(&process)?.resize(rows, columns)
            }
            Request::Freeze { container, frozen } => {
                self.container(&container)?.cgroup.freeze(frozen).await
            }
            Request::Update { container, resources } => {
                let cgroup = self.container(&container)?.cgroup.clone();
                let resources = Resources::deserialize(resources)
                    .doing_as(FailureKind::InvalidArgument, || "read linux.resources".to_owned())?;
                aside(move || cgroup.apply(&resources)).await
            }
            Request::LimitContainers { memory_bytes } => {
                aside(move || cgroup::limit_containers(memory_bytes)).await
            }
            Request::ChangeNetwork { gone, interfaces, routes } => {
                pod::change_network(&gone, &interfaces, &routes).await
            }
            Request::ChangeHosts { container, gone, new } => {
                let hosts = self.container(&container)?.hosts()?;
                aside(move || hyper_files::hosts::change(&hosts, &gone, &new)).await
            }
            Request::Connect { port, stream } => {
                let socket = localhost::connect(port).await?;
                let (reader, writer) = self
                    .link
                    .open(stream)
                    .doing_as(FailureKind::InvalidArgument, || format!("take stream {stream}"))?;
                tokio::task::spawn_local(carry(socket, reader, writer));
                Ok(())
            }
            Request::ReleaseDisks { devices } => aside(move || let_go(&devices)).await,
            Request::DeleteContainer { container } => self.delete(&container).await,
            Request::DeleteExec { process } => {
                self.container(&process.container)?.forget_exec(&process)
            }
            Request::WriteFiles(request) => {
                let first = self.container(&request.container)?.first.living()?;
                files::write(&self.link, first, &request).await
            }
            // The others are answered above.
            _ => Ok(()),
        }
    }

    /// Starts the pod's resolver.
    async fn resolve(&self, stream: Option<u32>) -> Outcome<()> {
        let Some(id) = stream else { return Ok(()) };
        let ends = names::listen().await.doing(|| "listen on 127.0.0.11:53".to_owned())?;
        let open = self.link.open(id);
        let (answers, questions) =
            open.doing_as(FailureKind::InvalidArgument, || "take the resolver's stream".into())?;
        // It ends with the link, and so does the agent's work.
        tokio::task::spawn_local(names::serve(ends, answers, questions));
        Ok(())
    }

    fn container(&self, id: &str) -> Outcome<Rc<Container>> {
        match self.containers.borrow().get(id) {
            Some(Slot::Here(container)) => Ok(Rc::clone(container)),
            Some(Slot::Busy) => Err(busy(id)),
            None => Err(failure(FailureKind::NotFound, format!("container {id} does not exist"))),
        }
    }

    async fn create(&self, request: &CreateContainer) -> Outcome<u32> {
        let id = &request.container;
        check_id(id)?;
        if self.containers.borrow().contains_key(id) {
            let message = format!("container {id} exists already");
            return Err(failure(FailureKind::Conflict, message));
        }
        self.containers.borrow_mut().insert(id.clone(), Slot::Busy);
        let made = Container::create(&self.link, &self.reaper, request).await;
        let mut containers = self.containers.borrow_mut();
        match made {
            Ok(container) => {
                let pid = container.first.pid();
                containers.insert(id.clone(), Slot::Here(container));
                Ok(pid)
            }
            Err(failure) => {
                containers.remove(id);
                Err(failure)
            }
        }
    }

    async fn exec(&self, request: &Exec, replier: Replier) {
        let made = async {
            let container = self.container(&request.process.container)?;
            let process = container.exec(&self.link, &self.reaper, request).await?;
            Ok((container, process))
        };
        match made.await {
            Ok((container, process)) => {
                let _voice = process.voice.lock().await;
                let outcome = container.go(&process).await;
                replier.send(started(outcome.map(|()| process.pid())));
            }
            Err(failure) => replier.send(Reply::Error(failure)),
        }
    }

    fn signal(&self, id: &ProcessId, signal: i32, all: bool) -> Outcome<()> {
        let container = self.container(&id.container)?;
        match (all, signal) {
            (true, libc::SIGKILL) => container.cgroup.kill(),
            (true, _) => container.cgroup.signal(signal),
            (false, _) => container.process(id)?.signal(signal),
        }
    }

    async fn delete(&self, id: &str) -> Outcome<()> {
        let container = self.container(id)?;
        if !container.first.has_ended() {
            let message = format!("container {id} has not exited");
            return Err(failure(FailureKind::Conflict, message));
        }
        self.containers.borrow_mut().insert(id.to_owned(), Slot::Busy);
        let outcome = container.remove().await;
        let mut containers = self.containers.borrow_mut();
        match outcome {
            Ok(()) => drop(containers.remove(id)),
            Err(_) => drop(containers.insert(id.to_owned(), Slot::Here(container))),
        }
        outcome
    }

    /// Ends everything, answers, and does not come back.
    async fn shut_down(&self, replier: Replier) {
        let here: Vec<_> = self
            .containers
            .borrow()
            .values()
            .filter_map(|slot| match slot {
                Slot::Here(container) => Some(Rc::clone(container)),
                Slot::Busy => None,
            })
            .collect();
        let mut outcome = Ok(());
        for container in &here {
            // All are ended and unmounted, whatever becomes of one.
            outcome = outcome.and(container.cgroup.kill());
        }
        let reported = async {
            for container in &here {
                container.ended().await;
            }
        };
        // Whose output is not read any more cannot be reported; it ends all the same.
        let _unread = tokio::time::timeout(REPORT_DEADLINE, reported).await;
        for container in &here {
            outcome = outcome.and(container.remove_here());
        }
        replier.send(match outcome {
            Ok(()) => Reply::Done,
            Err(failure) => Reply::Error(failure),
        });
        // Lost with the link, if that is what happens.
        let _late = tokio::time::timeout(FLUSH_DEADLINE, self.link.flushed()).await;
        power::off();
    }
}

fn started(outcome: Outcome<u32>) -> Reply {
    match outcome {
        Ok(pid) => Reply::Started { pid },
        Err(failure) => Reply::Error(failure),
    }
}

fn busy(id: &str) -> Failure {
    failure(FailureKind::Conflict, format!("container {id} is being made or removed"))
}
