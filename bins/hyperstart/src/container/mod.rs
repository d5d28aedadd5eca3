//! Containers and their processes, as the agent knows them.
//!
//! ```text
//!  process:  Waiting ── start ──► Running ── reaped ──► Exited
//!               └────────────── reaped (killed) ─────────┘
//! ```
//!
//! - [`maker`]: the children that make them. [`talk`]: how those report.
//! - [`rootfs`]: the root from disks. [`inside`]: paths in it. [`mounts`]: what else is seen.
//! - [`program`]: from a forked child to the program.
//! - [`outside`]: processes beside the containers. [`sockets`]: those of the host.

mod inside;
mod maker;
mod memory;
mod mounts;
mod nfs;
mod outside;
mod program;
mod rootfs;
mod sockets;
mod talk;
mod volume;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
};

use hyper_link::{
    AgentLink,
    message::{CreateContainer, Event, Exec, Failure, FailureKind, ProcessId},
};
use rustix::process::Pid;
use serde::Deserialize as _;
use tokio::{
    io::Interest,
    sync::{Mutex, watch},
};

pub(crate) use self::maker::{Helper, aside, no_streams};
pub(crate) use self::program::winsize;
pub(crate) use self::rootfs::{Directories, let_go};
use self::{maker::Waiting, sockets::Sockets};
use crate::{
    cgroup::Cgroup,
    failure::{Doing as _, Outcome, failure, invalid},
    oci::spec::{Process as ProcessSpec, Seccomp, Spec},
    reaper::Reaper,
    stdio::Prepared,
};

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    id: ProcessId,
    pid: Pid,
    terminal: Option<OwnedFd>,
    waiting: RefCell<Option<Waiting>>,
    /// Becomes true when the process has been reaped: its id may belong to another one then.
    reaped: Cell<bool>,
    /// Becomes true when its end has been reported.
    ended: watch::Sender<bool>,
    /// Held while a reply about the process is due: its end is reported after that.
    pub(crate) voice: Mutex<()>,
}

impl Process {
    /// Id in the guest.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The pid, if the process has not ended.
    pub(crate) fn living(&self) -> Outcome<Pid> {
        if self.reaped.get() {
            let name = name(&self.id);
            return Err(failure(FailureKind::NotFound, format!("{name} has exited")));
        }
        Ok(self.pid)
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Resolves when the end has been reported.
    pub(crate) async fn ended(&self) {
        // The sender lives as long as this process.
        let mut ended = self.ended.subscribe();
        let _never_closed = ended.wait_for(|ended| *ended).await;
    }

    pub(crate) fn signal(&self, number: i32) -> Outcome<()> {
        let pid = self.living()?.as_raw_nonzero().get();
        crate::sys::kill(pid, number).doing_as(FailureKind::InvalidArgument, || {
            format!("send signal {number} to {}", name(&self.id))
        })
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Outcome<()> {
        let Some(terminal) = &self.terminal else {
            return Err(failure(
                FailureKind::Conflict,
                format!("{} has no terminal", name(&self.id)),
            ));
        };
        rustix::termios::tcsetwinsize(terminal, winsize(rows, columns))
            .doing(|| format!("set the terminal of {} to {rows}x{columns}", name(&self.id)))
    }

    /// Lets the process become its program.
    async fn go(&self) -> Outcome<()> {
        let waiting = self.waiting.borrow_mut().take();
        match waiting {
            Some(waiting) => waiting.go().await,
            None => Err(failure(
                FailureKind::Conflict,
                format!("{} was started already", name(&self.id)),
            )),
        }
    }
}

/// A container and its processes.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) cgroup: Cgroup,
    pub(crate) first: Rc<Process>,
    execs: RefCell<BTreeMap<String, Rc<Process>>>,
    seccomp: Option<Seccomp>,
    strikes: Rc<Strikes>,
    /// Which of the files that it was given is its `/etc/hosts`.
    hosts: Option<usize>,
    /// Gone with the container's files, not with the last who knows it: the next one may have its id.
    sockets: RefCell<Option<Sockets>>,
}

impl Container {
    /// Makes the container; its first process waits to be started.
    ///
    /// A failure leaves nothing behind.
    pub(crate) async fn create(
        link: &AgentLink,
        reaper: &Reaper,
        request: &CreateContainer,
    ) -> Outcome<Rc<Self>> {
        let mut spec = Spec::parse(&request.spec)?;
        spec.check()?;
        let id = request.container.clone();
        let streams = Prepared::new(link, request.streams, spec.process.terminal)?;
        memory::prepare(&spec.mounts)?;
        let sockets = Sockets::listen(link, &id, &request.sockets)?;
        let cgroup = Cgroup::create(&id)?;
        let expecting = reaper.expecting();
        let made = maker::make_container(request, &spec, &cgroup, &streams.ends).await;
        let made = made.and_then(|waiting| {
            // Only now, so that little memory or CPU does not hold the setting up itself up.
            cgroup.apply(&spec.linux.resources)?;
            cgroup.restrict_devices(&spec.linux.resources)?;
            cgroup.throttle(&spec.linux.resources, disks(request, &spec))?;
            let process = ProcessId { container: id.clone(), exec: None };
            let strikes = Rc::new(Strikes {
                container: id.clone(),
                cgroup: cgroup.clone(),
                link: link.clone(),
                known: Cell::new(0),
            });
            let first = adopt(reaper, process, waiting, streams, Rc::clone(&strikes))?;
            Rc::clone(&strikes).watch(Rc::clone(&first));
            Ok((first, strikes))
        });
        drop(expecting);
        match made {
            Ok((first, strikes)) => {
                let seccomp = spec.linux.seccomp.take();
                let hosts = request.files.iter().position(|file| file.path == "/etc/hosts");
                Ok(Rc::new(Self {
                    id,
                    cgroup,
                    first,
                    execs: RefCell::default(),
                    seccomp,
                    strikes,
                    hosts,
                    sockets: RefCell::new(Some(sockets)),
                }))
            }
            Err(failure) => {
                // The reason for the failure is what counts, not what cleaning up brings.
                let _left = release(&id, &cgroup).await;
                Err(failure)
            }
        }
    }

    /// Lets the first process run.
    pub(crate) async fn start(&self) -> Outcome<()> {
        self.first.go().await
    }

    /// Makes one more process, not yet running; [`Self::go`] starts it.
    pub(crate) async fn exec(
        &self,
        link: &AgentLink,
        reaper: &Reaper,
        request: &Exec,
    ) -> Outcome<Rc<Process>> {
        let Some(exec) = request.process.exec.clone() else {
            return Err(invalid(format!("exec in {} without an id", self.id)));
        };
        let first = self.first.living()?;
        if self.first.waiting.borrow().is_some() {
            let message = format!("container {} is not running", self.id);
            return Err(failure(FailureKind::Conflict, message));
        }
        if self.cgroup.is_frozen() {
            let message = format!("container {} is frozen", self.id);
            return Err(failure(FailureKind::Conflict, message));
        }
        if self.execs.borrow().contains_key(&exec) {
            let message = format!("{} exists already", name(&request.process));
            return Err(failure(FailureKind::Conflict, message));
        }
        let spec = ProcessSpec::deserialize(&request.spec)
            .doing_as(FailureKind::InvalidArgument, || {
                format!("spec of {}", name(&request.process))
            })?;
        let streams = Prepared::new(link, request.streams, spec.terminal)?;
        let expecting = reaper.expecting();
        let waiting = if spec.in_guest {
            outside::make(&self.id, &spec, &streams.ends).await?
        } else {
            maker::make_exec(first, &spec, self.seccomp.as_ref(), &streams.ends).await?
        };
        let process =
            adopt(reaper, request.process.clone(), waiting, streams, Rc::clone(&self.strikes))?;
        drop(expecting);
        self.execs.borrow_mut().insert(exec, Rc::clone(&process));
        Ok(process)
    }

    /// Starts what [`Self::exec`] made.
    pub(crate) async fn go(&self, process: &Process) -> Outcome<()> {
        let outcome = process.go().await;
        if outcome.is_err() {
            self.execs.borrow_mut().retain(|_, known| !std::ptr::eq(&**known, process));
        }
        outcome
    }

    pub(crate) fn process(&self, id: &ProcessId) -> Outcome<Rc<Process>> {
        match &id.exec {
            None => Ok(Rc::clone(&self.first)),
            Some(exec) => self.execs.borrow().get(exec).cloned().ok_or_else(|| {
                failure(FailureKind::NotFound, format!("{} does not exist", name(id)))
            }),
        }
    }

    pub(crate) fn forget_exec(&self, id: &ProcessId) -> Outcome<()> {
        if !self.process(id)?.has_ended() || id.exec.is_none() {
            let message = format!("{} has not exited", name(id));
            return Err(failure(FailureKind::Conflict, message));
        }
        self.execs.borrow_mut().retain(|exec, _| Some(exec) != id.exec.as_ref());
        Ok(())
    }

    /// Resolves when the ends of all its processes have been reported.
    pub(crate) async fn ended(&self) {
        self.first.ended().await;
        let execs: Vec<_> = self.execs.borrow().values().cloned().collect();
        for exec in execs {
            exec.ended().await;
        }
    }

    /// Where its root file system is put together.
    pub(crate) fn directories(&self) -> Directories {
        Directories::of(&self.id)
    }

    /// The file behind its `/etc/hosts`.
    pub(crate) fn hosts(&self) -> Outcome<PathBuf> {
        let number = self.hosts.ok_or_else(|| {
            let message = format!("container {} was given no /etc/hosts", self.id);
            failure(FailureKind::Conflict, message)
        })?;
        Ok(mounts::stored(&self.directories().files(), number))
    }

    /// Unmounts and removes everything of a container whose processes have ended.
    pub(crate) async fn remove(&self) -> Outcome<()> {
        drop(self.sockets.take());
        release(&self.id, &self.cgroup).await
    }

    /// [`Self::remove`] on the agent's own thread, for when nothing else is left to do.
    pub(crate) fn remove_here(&self) -> Outcome<()> {
        release_here(&self.id, &self.cgroup)
    }
}

/// `ID` or `ID/EXEC`, for texts.
fn name(id: &ProcessId) -> String {
    match &id.exec {
        None => format!("container {}", id.container),
        Some(exec) => format!("process {}/{exec}", id.container),
    }
}

/// Takes over a process that is set up: its bytes and its end.
fn adopt(
    reaper: &Reaper,
    id: ProcessId,
    mut waiting: Waiting,
    streams: Prepared,
    strikes: Rc<Strikes>,
) -> Outcome<Rc<Process>> {
    let exit = reaper.exit_of(waiting.pid);
    let terminal = waiting.terminal.take();
    let pid = waiting.pid;
    let pumps = match streams.connect(terminal.as_ref()) {
        Ok(pumps) => pumps,
        Err(failure) => {
            let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            return Err(failure);
        }
    };
    let process = Rc::new(Process {
        id,
        pid,
        terminal,
        waiting: RefCell::new(Some(waiting)),
        reaped: Cell::new(false),
        ended: watch::channel(false).0,
        voice: Mutex::new(()),
    });
    tokio::task::spawn_local({
        let process = Rc::clone(&process);
        async move {
            // The reaper lives as long as the agent.
            let Ok(exit) = exit.await else { return };
            process.reaped.set(true);
            if process.id.exec.is_none() {
                // Without a PID namespace of its own the container's other processes live on.
                let _removed = strikes.cgroup.kill();
                outside::end(&process.id.container);
            }
            pumps.finish().await;
            let _voice = process.voice.lock().await;
            strikes.report();
            strikes.link.event(Event::Exited {
                process: process.id.clone(),
                code: exit.code,
                unix_ns: exit.unix_ns,
                oom_killed: strikes.known.get() > 0,
            });
            process.ended.send_replace(true);
        }
    });
    Ok(process)
}

/// Strikes of the OOM killer in a container, and which of them have been reported.
#[derive(Debug)]
struct Strikes {
    container: String,
    cgroup: Cgroup,
    link: AgentLink,
    known: Cell<u64>,
}

impl Strikes {
    /// Reports what is new.
    fn report(&self) {
        let kills = self.cgroup.oom_kills();
        if kills > self.known.replace(kills) {
            self.link.event(Event::Oom { container: self.container.clone() });
        }
    }

    /// Reports every strike, until the container's first process has ended.
    fn watch(self: Rc<Self>, first: Rc<Process>) {
        let Ok(events) = self.cgroup.memory_events() else { return };
        let Ok(events) = crate::sys::watch(events, Interest::PRIORITY) else { return };
        tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    ready = events.ready(Interest::PRIORITY) => match ready {
                        Ok(mut ready) => ready.clear_ready(),
                        Err(_) => return,
                    },
                    () = first.ended() => return,
                }
                self.report();
            }
        });
    }
}

/// Device nodes of all disks that a container reads or writes.
fn disks<'a>(request: &'a CreateContainer, spec: &'a Spec) -> impl Iterator<Item = &'a str> {
    let root = &request.rootfs;
    let root = std::iter::once(&root.image).chain(&root.layers).chain(&root.upper);
    let volumes = spec.mounts.iter().filter(|mount| mount.kind == "ext4");
    root.map(|disk| disk.device.as_str()).chain(volumes.map(|mount| mount.source.as_str()))
}

async fn release(id: &str, cgroup: &Cgroup) -> Outcome<()> {
    aside(|| release_here(id, cgroup)).await
}

fn release_here(id: &str, cgroup: &Cgroup) -> Outcome<()> {
    let _gone = cgroup.kill();
    let removed = cgroup.remove().and(outside::remove(id));
    Directories::of(id).dismantle().and(removed)
}

/// Whether `id` can be the name of a directory and of a cgroup.
pub(crate) fn check_id(id: &str) -> Result<(), Failure> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-+".contains(c);
    // Names with a dot and a controller in front are files of the cgroup file system.
    let taken = id.starts_with("cgroup.") || id.starts_with('.');
    if id.is_empty() || id.len() > 200 || !id.chars().all(fine) || taken {
        return Err(invalid(format!("container id {id:?} is not usable as a file name")));
    }
    Ok(())
}
