//! Processes end, guests die, containers go.
//!
//! ```text
//! agent's Exited ─┐                       ┌ exec: announced
//! guest's end ────┴► ended ──delivered──► │
//!                                         └ container: exit.json ─► announced ─► deletable
//! Delete: last container ─► guest stops (gently when a disk is kept) ─┐
//!         others ─► removed in the guest ─► its disks are taken back ─┴► files removed ─► answer
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_link::message::{ProcessId, Request};
use hyper_stdio::{Loss, now_ns};
use hyper_task::pod::ExitRecord;

use crate::PodError;
use crate::actor::{Actor, GuestState, Input, answer};
use crate::create::{blocking, remove};
use crate::error::chain;
use crate::exit::write_exit;
use crate::guest::{Ended, Guest, Sign};
use crate::pod::PodEvent;
use crate::record::{Reply, State};

const DELETE: Duration = Duration::from_secs(30);

impl Actor {
    /// The agent's word. Its clock is not ours: the time is taken here.
    pub(crate) fn process_exited(&mut self, id: &ProcessId, code: i32, oom_killed: bool) {
        let code = code.clamp(0, 255);
        let record = ExitRecord { code, unix_ns: now_ns(), oom_killed, ..ExitRecord::default() };
        self.process_ended(id, record);
    }

    pub(crate) fn process_ended(&mut self, id: &ProcessId, record: ExitRecord) {
        let Ok(process) = self.process(id) else { return };
        match &mut process.state {
            State::Starting { early, .. } => {
                early.get_or_insert(record);
                return;
            }
            State::Created | State::Running => {}
            // The first word counts; what is being created fails by itself.
            State::Creating(_) | State::Ended(_) | State::Exited(_) => return,
        }
        process.state = State::Ended(record);
        match &process.stdio {
            Some(stdio) => stdio.ended(),
            None => process.delivered = true,
        }
        if process.delivered {
            self.complete(id);
        }
    }

    pub(crate) fn delivered(&mut self, id: &ProcessId, on_time: bool, lost: &Loss) {
        let Ok(process) = self.process(id) else { return };
        process.delivered = true;
        if let Some(text) = lost.told() {
            tracing::error!(container = id.container, exec = id.exec, "{text}");
            process.lost = Some(text);
        }
        if !on_time {
            tracing::warn!(
                container = id.container,
                exec = id.exec,
                "exit is announced before all output was taken"
            );
        }
        if matches!(process.state, State::Ended(_)) {
            self.complete(id);
        }
    }

    /// A process that never ran.
    pub(crate) fn start_failed(&mut self, id: &ProcessId, record: ExitRecord) {
        let Ok(process) = self.process(id) else { return };
        process.state = State::Ended(record);
        process.stdio = None;
        process.delivered = true;
        self.complete(id);
    }

    /// The exit record of a process that was refused.
    pub(crate) fn refused(&self, error: &PodError) -> ExitRecord {
        ExitRecord {
            code: error.exit_code().unwrap_or(255),
            unix_ns: now_ns(),
            reason: Some(chain(error)),
            ..ExitRecord::default()
        }
    }

    /// Ended and delivered: record it, or announce it.
    fn complete(&mut self, id: &ProcessId) {
        if id.exec.is_some() {
            return self.announce(id);
        }
        let container = id.container.clone();
        let Ok(found) = self.container(&container) else { return };
        let State::Ended(record) = &found.init.state else { return };
        found.phases.process_exited = Some(record.unix_ns);
        let (mut record, bundle) = (record.clone(), found.bundle.clone());
        let (lost, upper) = (found.init.lost.take(), found.upper.clone());
        self.spawn(async move {
            let fallback = record.clone();
            let written = blocking(move || {
                let notes: Vec<String> =
                    [lost, upper.and_then(|upper| full(&upper))].into_iter().flatten().collect();
                record.note = (!notes.is_empty()).then(|| notes.join("; "));
                if let Err(error) = write_exit(&bundle, &record) {
                    // The exit must be announced all the same.
                    tracing::error!(error = chain(&error), "exit record not written");
                }
                Ok(record)
            });
            Input::Recorded { container, record: written.await.unwrap_or(fallback) }
        });
    }

    pub(crate) fn recorded(&mut self, id: &str, record: ExitRecord) {
        if let Ok(container) = self.container(id)
            && matches!(container.init.state, State::Ended(_))
        {
            container.init.state = State::Ended(record);
        }
        self.announce(&ProcessId { container: id.to_owned(), exec: None });
        let Ok(container) = self.container(id) else { return };
        // The kernel has killed them; an agent that does not say so is not waited for.
        let left: Vec<String> = container.execs.keys().cloned().collect();
        let deleting = std::mem::take(&mut container.deleting);
        for exec in left {
            let process = ProcessId { container: id.to_owned(), exec: Some(exec) };
            let reason = Some("its container ended".to_owned());
            let record =
                ExitRecord { code: 137, unix_ns: now_ns(), reason, ..ExitRecord::default() };
            self.process_ended(&process, record);
        }
        for reply in deleting {
            self.delete(&ProcessId { container: id.to_owned(), exec: None }, reply);
        }
    }

    fn announce(&mut self, id: &ProcessId) {
        let pid = self.hypervisor_pid;
        let Ok(process) = self.process(id) else { return };
        let State::Ended(exit) = &process.state else { return };
        let exit = exit.clone();
        process.state = State::Exited(exit.clone());
        for waiter in process.waiters.drain(..) {
            // A waiter may have gone.
            let _ = waiter.send(exit.clone());
        }
        self.tell(PodEvent::Exited { process: id.clone(), pid, exit });
    }

    /// The guest died: so did everything in it.
    pub(crate) fn guest_ended(&mut self, ended: &Ended) {
        let asked = matches!(self.guest, GuestState::Stopping(_));
        for container in self.containers.values_mut() {
            container.phases.guest_gone = Some(now_ns());
        }
        if asked {
            return;
        }
        tracing::error!(pod = self.settings.id, reason = ended.reason, "guest is gone");
        self.guest = GuestState::Dead(ended.reason.clone());
        let processes: Vec<ProcessId> = self
            .containers
            .iter()
            .flat_map(|(id, container)| {
                let execs = container.execs.keys().map(|exec| Some(exec.clone()));
                execs.chain([None]).map(|exec| ProcessId { container: id.clone(), exec })
            })
            .collect();
        for process in processes {
            let record = ExitRecord {
                code: ended.code,
                unix_ns: now_ns(),
                oom_killed: ended.oom,
                reason: Some(ended.reason.clone()),
                note: None,
            };
            self.process_ended(&process, record);
        }
    }

    pub(crate) fn delete(&mut self, id: &ProcessId, reply: Reply<(u32, ExitRecord)>) {
        match &id.exec {
            Some(exec) => self.delete_exec(id, exec, reply),
            None => self.delete_container(&id.container, reply),
        }
    }

    fn delete_exec(&mut self, id: &ProcessId, exec: &str, reply: Reply<(u32, ExitRecord)>) {
        let (guest, pid) = (self.up().ok(), self.hypervisor_pid);
        let process = match self.process(id) {
            Ok(process) => process,
            Err(error) => return answer(reply, Err(error)),
        };
        let (exit, ran) = match &process.state {
            State::Exited(exit) => (exit.clone(), process.guest_pid != 0),
            State::Created => (ExitRecord::default(), false),
            _ => {
                let (state, action) = (process.state_name(), "delete it");
                let id = exec.to_owned();
                let error = PodError::State { what: "exec", id, state, action };
                return answer(reply, Err(error));
            }
        };
        if let Ok(container) = self.container(&id.container) {
            container.execs.remove(exec);
        }
        self.tell(PodEvent::Deleted { process: id.clone(), pid, exit: exit.clone() });
        answer(reply, Ok((pid, exit)));
        if let (Some(guest), true) = (guest, ran) {
            let process = id.clone();
            self.tasks.spawn(async move {
                let container = process.container.clone();
                let forgotten =
                    guest.call(&container, Request::DeleteExec { process }, DELETE).await;
                if let Err(error) = forgotten {
                    tracing::debug!(
                        container,
                        error = chain(&error),
                        "exec not forgotten by the agent"
                    );
                }
            });
        }
    }

    fn delete_container(&mut self, id: &str, reply: Reply<(u32, ExitRecord)>) {
        let (guest, pid) = (self.up().ok(), self.hypervisor_pid);
        let container = match self.container(id) {
            Ok(container) => container,
            Err(error) => return answer(reply, Err(error)),
        };
        let guest = guest.filter(|_| !container.sandbox);
        match &container.init.state {
            State::Exited(_) => {}
            State::Ended(_) => return container.deleting.push(reply),
            State::Created => {
                container.deleting.push(reply);
                return self.end_unstarted(id, guest);
            }
            State::Creating(_) | State::Starting { .. } | State::Running => {
                let (state, action) = (container.init.state_name(), "delete it");
                let (what, id) = ("container", id.to_owned());
                return answer(reply, Err(PodError::State { what, id, state, action }));
            }
        }
        let Some(container) = self.containers.remove(id) else { return };
        if let Some(socket) = container.socket {
            socket.abort();
        }
        let exit = container.init.exit().cloned().unwrap_or_default();
        let process = ProcessId { container: id.to_owned(), exec: None };
        self.tell(PodEvent::Deleted { process, pid, exit: exit.clone() });
        let last = self.stop_if_empty();
        let (id, keeps, owned) = (id.to_owned(), container.keeps, container.owned);
        let socket = container.bundle.join(hyper_task::pod::SOCKET);
        let others = last.is_none().then_some(guest).flatten().filter(|_| container.in_guest);
        let stopped = last.is_some();
        let task = async move {
            if let Some(guest) = others {
                let request = Request::DeleteContainer { container: id.clone() };
                if let Err(error) = guest.call(&id, request, DELETE).await {
                    tracing::warn!(
                        container = id,
                        error = chain(&error),
                        "container not removed in the guest"
                    );
                }
                guest.take_back_disks(&id).await;
            }
            if let Some(guest) = last {
                guest.stop(keeps).await;
            }
            remove(owned, socket).await;
        };
        self.spawn_stop(stopped, task, move || answer(reply, Ok((pid, exit))));
    }

    /// Runs a clean-up and then `told`; with `stopping` the guest is gone before anybody is told.
    pub(crate) fn spawn_stop(
        &mut self,
        stopping: bool,
        task: impl Future<Output = ()> + Send + 'static,
        told: impl FnOnce() + Send + 'static,
    ) {
        if stopping {
            self.spawn(async move {
                task.await;
                Input::Stopped(Box::new(told))
            });
        } else {
            self.tasks.spawn(async move {
                task.await;
                told();
            });
        }
    }

    /// Kills a container that was created and never started, so that it exits.
    fn end_unstarted(&mut self, id: &str, guest: Option<Arc<Guest>>) {
        let process = ProcessId { container: id.to_owned(), exec: None };
        let Some(guest) = guest else {
            let reason = Some("never started".to_owned());
            let record =
                ExitRecord { code: 137, unix_ns: now_ns(), reason, ..ExitRecord::default() };
            return self.start_failed(&process, record);
        };
        let (number, queue) = (self.guest_number, self.queue.clone());
        self.tasks.spawn(async move {
            let request = Request::Signal { process: process.clone(), signal: 9, all: true };
            if let Err(error) = guest.call(&process.container, request, DELETE).await {
                // An agent that cannot kill it has nothing to kill.
                tracing::debug!(error = chain(&error), "unstarted container not killed");
                let event = hyper_link::message::Event::Exited {
                    process,
                    code: 137,
                    unix_ns: 0,
                    oom_killed: false,
                };
                let _ = queue.send(Input::Guest(number, Sign::Event(event))).await;
            }
        });
    }

    /// The guest, to be stopped, when it holds no container any more.
    pub(crate) fn stop_if_empty(&mut self) -> Option<Arc<Guest>> {
        if !self.containers.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.guest, GuestState::Empty) {
            GuestState::Up(guest) => {
                self.guest = GuestState::Stopping(Arc::clone(&guest));
                Some(guest)
            }
            other => {
                self.guest = other;
                None
            }
        }
    }

    pub(crate) fn shut_down(&mut self, now: bool, reply: Reply<bool>) {
        if !self.containers.is_empty() && !now {
            return answer(reply, Ok(false));
        }
        // The loop ends with this, or when a guest that is being stopped has gone.
        self.shutdown = Some(reply);
    }
}

/// Below this a file system is as good as full: the guest's next megabytes have no place.
const FULL_BYTES: u64 = 8 << 20;

/// What to say when the disks' file system has no room: a guest's late writes fail unseen, since
/// its disks promise more than the host may have.
fn full(upper: &Path) -> Option<String> {
    let room = rustix::fs::statvfs(upper).ok()?;
    let bytes = room.f_bavail.saturating_mul(room.f_frsize);
    (bytes < FULL_BYTES).then(|| {
        format!(
            "the host's file system with `{}` is full ({bytes} bytes free): what the container \
             wrote last may be lost; make room and run it again",
            upper.display()
        )
    })
}
