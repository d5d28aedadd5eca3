//! What dialects call: opening, lifecycle, waiting, events.
//!
//! - [`streams`]: attach, logs, terminals, execs, counters.
//! - [`pods`]: pods that containers join.
//! - [`stop`]: the signal, the grace, the kill.

mod networks;
pub(crate) mod pods;
mod stop;
mod streams;

pub(crate) use stop::STOP_GRACE;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio_util::task::TaskTracker;

use crate::container::actor::{Change, Command, Reply, attributes};
use crate::container::create::{self, Created};
use crate::container::spec::CreateRequest;
use crate::container::state::Status;
use crate::core::{Config, Core, Handle};
use crate::event::{Event, Kind};
use crate::lock::Lock;
use crate::network::Networks;
use crate::store::Store;
use crate::supervisor::launch::Launcher;
use crate::supervisor::publish::Service;
use crate::{Error, Result, View, id, layout, restore, signal};

/// From SIGKILL to the end of a container.
const KILLED: Duration = Duration::from_secs(20);
/// Of a socket's path; unix(7).
const MAX_EVENTS_SOCKET: usize = 100;
const SIGKILL: i32 = 9;

/// The engine. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) core: Arc<Core>,
    id: Arc<str>,
    /// Stops with the last clone.
    _service: Arc<Service>,
    _locks: Arc<[Lock; 2]>,
}

/// When a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitCondition {
    /// At once, unless it runs.
    NotRunning,
    NextExit,
    Removed,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitOutcome {
    pub exit_code: i32,
    /// Why, when the pod ended under the process.
    pub error: String,
}

/// Numbers of containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub running: usize,
    pub paused: usize,
    pub stopped: usize,
}

impl Engine {
    /// Opens the engine and finds its containers again.
    ///
    /// # Errors
    /// [`Error::Conflict`] when another engine has a root; [`Error::Database`], [`Error::Image`],
    /// [`Error::File`].
    pub async fn open(config: Config) -> Result<Self> {
        let layout = config.layout.clone();
        if layout.events_socket().as_os_str().len() > MAX_EVENTS_SOCKET {
            return Err(Error::Invalid(format!(
                "exec root {} is too long for a socket's path: choose a shorter one",
                layout.exec_root.display()
            )));
        }
        let (store, locks) = crate::core::blocking(move || prepare(&layout)).await?;
        let image_root = config.layout.images();
        let images = hyper_image::Store::open(image_root.clone(), config.images.clone())
            .await
            .map_err(|e| crate::core::image_error(&image_root.display().to_string(), e))?;
        let (service, mut ooms) = Service::listen(&config.layout.events_socket()).await?;
        let engine_id = store.engine_id().await?;
        let events = crate::event::Log::kept_in(store.clone()).await?;
        let networks =
            Networks::open(config.layout.clone(), store.clone(), Arc::clone(&config.sockets))
                .await?;
        let tasks = TaskTracker::new();
        let core = Arc::new(Core {
            layout: config.layout.clone(),
            launcher: Launcher {
                program: config.supervisor.clone(),
                events: config.layout.events_socket(),
                debug: config.debug,
                tasks: tasks.clone(),
                turns: Arc::default(),
            },
            config,
            store,
            images,
            holds: crate::hold::Holds::default(),
            events,
            finished: crate::phases::Finished::default(),
            networks,
            registry: std::sync::RwLock::default(),
            volumes: crate::volume::Volumes::default(),
            pods: crate::pod::registry::Pods::default(),
            execs: std::sync::Mutex::default(),
            restarts: Arc::new(tokio::sync::Semaphore::new(0)),
            tasks,
        });
        crate::volume::restore(&core).await?;
        restore::run(&core).await?;
        // Not before: what is found again, networks too, is sorted into what lives and what goes.
        core.restarts.add_permits(crate::container::restart::AT_ONCE);
        let listening = Arc::downgrade(&core);
        // Ends with the service, which has the other side of the channel.
        tokio::spawn(async move {
            while let Some(id) = ooms.recv().await {
                let Some(core) = listening.upgrade() else { return };
                if let Ok(handle) = core.find(&id) {
                    let view = handle.view.borrow().clone();
                    let labels = attributes(&view.spec, &view.name);
                    core.events.publish(Kind::Container, "oom", &view.spec.id, labels);
                }
            }
        });
        Ok(Self {
            core,
            id: engine_id.into(),
            _service: Arc::new(service),
            _locks: Arc::new(locks),
        })
    }

    /// A random id of this data root.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// Waits for the work that outlives requests (stops in progress, removals) and lets go of all
    /// containers. Pods run on.
    pub async fn close(self, within: Duration) {
        self.core.tasks.close();
        if tokio::time::timeout(within, self.core.tasks.wait()).await.is_err() {
            tracing::debug!(tasks = self.core.tasks.len(), "not everything was finished");
        }
        self.core.networks.close().await;
        // Actors end with the last sender of their queue.
        let registry = std::mem::take(
            &mut *self.core.registry.write().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        drop(registry);
        self.core.pods.clear();
    }

    /// Makes a container.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NameInUse`], [`Error::NoSuchImage`].
    pub async fn create(&self, request: CreateRequest) -> Result<Created> {
        let core = self.core.clone();
        self.detached(async move { create::create(&core, request).await }).await
    }

    /// The container that an id, the start of one, or a name means.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::AmbiguousContainer`].
    pub fn container(&self, reference: &str) -> Result<View> {
        Ok(self.core.find(reference)?.view.borrow().clone())
    }

    /// All containers, newest first.
    #[must_use]
    pub fn containers(&self) -> Vec<View> {
        self.core.views()
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for view in self.core.views() {
            match view.state.status {
                Status::Running => counts.running += 1,
                Status::Paused => counts.paused += 1,
                Status::Created | Status::Starting | Status::Exited | Status::Restarting => {
                    counts.stopped += 1;
                }
            }
        }
        counts
    }

    /// Starts a container.
    ///
    /// # Errors
    /// [`Error::NotModified`] when it runs; [`Error::Program`], [`Error::Supervisor`] when it
    /// cannot be started.
    pub async fn start(&self, reference: &str) -> Result<()> {
        ask(&self.core.find(reference)?, Command::Start).await
    }

    /// Sends a signal to the first process.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it does not run; [`Error::Invalid`] for an unknown signal.
    pub async fn kill(&self, reference: &str, signal: Option<&str>) -> Result<()> {
        let handle = self.core.find(reference)?;
        let signal = match signal {
            None | Some("") => SIGKILL,
            Some(text) => signal::parse(text)?,
        };
        let asked = ask(&handle, |reply| Command::Kill { signal, stop: false, reply }).await;
        if let Err(error @ Error::Supervisor { .. }) = asked {
            // Its pod may know of the end before we do.
            let ended = tokio::time::timeout(stop::NEWS, stop::not_up(handle.view.clone())).await;
            return Err(match ended {
                Ok(()) => Error::Conflict(format!(
                    "cannot kill container: {reference}: container is not running"
                )),
                Err(_) => error,
            });
        }
        asked?;
        if signal == SIGKILL {
            // As Docker: the answer means that it is dead.
            let _ = tokio::time::timeout(KILLED, stop::not_up(handle.view)).await;
        }
        Ok(())
    }

    /// Sends the stop signal, and SIGKILL after the grace (seconds; negative: never).
    ///
    /// # Errors
    /// [`Error::NotModified`] when it does not run.
    pub async fn stop(
        &self,
        reference: &str,
        signal: Option<&str>,
        grace: Option<i64>,
    ) -> Result<()> {
        let handle = self.core.find(reference)?;
        let signal = signal.filter(|text| !text.is_empty()).map(signal::parse).transpose()?;
        let core = self.core.clone();
        self.detached(async move { stop::stop(&core, &handle, signal, grace).await }).await
    }

    /// Stops it, if it runs, and starts it.
    ///
    /// # Errors
    /// As [`Engine::stop`] and [`Engine::start`].
    pub async fn restart(
        &self,
        reference: &str,
        signal: Option<&str>,
        grace: Option<i64>,
    ) -> Result<()> {
        let handle = self.core.find(reference)?;
        let signal = signal.filter(|text| !text.is_empty()).map(signal::parse).transpose()?;
        let core = self.core.clone();
        self.detached(async move {
            send(&handle, Command::HoldRemoval).await?;
            match stop::stop(&core, &handle, signal, grace).await {
                Ok(()) | Err(Error::NotModified(_)) => {}
                Err(error) => return Err(error),
            }
            ask(&handle, Command::Start).await?;
            let view = handle.view.borrow().clone();
            let labels = attributes(&view.spec, &view.name);
            core.events.publish(Kind::Container, "restart", &view.spec.id, labels);
            Ok(())
        })
        .await
    }

    /// # Errors
    /// [`Error::Conflict`] when it does not run.
    pub async fn pause(&self, reference: &str) -> Result<()> {
        ask(&self.core.find(reference)?, Command::Pause).await
    }

    /// # Errors
    /// [`Error::Conflict`] when it is not paused.
    pub async fn unpause(&self, reference: &str) -> Result<()> {
        ask(&self.core.find(reference)?, Command::Unpause).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NameInUse`].
    pub async fn rename(&self, reference: &str, name: &str) -> Result<()> {
        let handle = self.core.find(reference)?;
        let name = name.strip_prefix('/').unwrap_or(name).to_owned();
        if !id::is_name(&name) {
            return Err(Error::Invalid(format!(
                "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )));
        }
        let (id, old) = {
            let view = handle.view.borrow();
            (view.spec.id.clone(), view.name.clone())
        };
        if old == name {
            return Err(Error::Invalid(
                "Renaming a container with the same name as its current name".to_owned(),
            ));
        }
        let core = self.core.clone();
        self.detached(async move {
            core.reserve(&name, &id)?;
            let done = ask(&handle, |reply| Command::Rename { name: name.clone(), reply }).await;
            core.release(if done.is_ok() { &old } else { &name });
            done
        })
        .await
    }

    /// Changes what can be changed, of the running processes too.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Supervisor`].
    pub async fn update(&self, reference: &str, change: Change) -> Result<()> {
        let change = Box::new(change);
        ask(&self.core.find(reference)?, |reply| Command::Update { change, reply }).await
    }

    /// Removes it; with `force` even if it runs.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it runs.
    pub async fn remove(&self, reference: &str, force: bool) -> Result<()> {
        ask(&self.core.find(reference)?, |reply| Command::Remove { force, reply }).await
    }

    /// As [`Engine::remove`], with the anonymous volumes that no other container has.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it runs.
    pub async fn remove_with_volumes(&self, reference: &str, force: bool) -> Result<()> {
        let volumes = self.anonymous_volumes(reference)?;
        self.remove(reference, force).await?;
        self.remove_orphans(volumes).await;
        Ok(())
    }

    /// A wait that has begun: an end after this call is not missed. Await what it returns.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub fn wait(
        &self,
        reference: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = WaitOutcome> + Send + use<>> {
        let mut view = self.core.find(reference)?.view;
        let exits = view.borrow().state.exits;
        Ok(async move {
            let over = |view: &View| match condition {
                WaitCondition::NotRunning => {
                    view.removed
                        || view.state.exits > exits
                        || !(view.state.status.is_up() || view.state.status == Status::Starting)
                }
                WaitCondition::NextExit => view.removed || view.state.exits > exits,
                WaitCondition::Removed => view.removed,
            };
            // An error means that the engine ends.
            let last = match view.wait_for(over).await {
                Ok(last) => last.clone(),
                Err(_) => {
                    return WaitOutcome { exit_code: 255, error: "hyperd is ending".to_owned() };
                }
            };
            let error = if last.state.lost { last.state.error } else { String::new() };
            WaitOutcome { exit_code: last.state.exit_code, error }
        })
    }

    /// Past events from `since` (nanoseconds since the Unix epoch) on, and those to come.
    #[must_use]
    pub fn events(&self, since: Option<i64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.core.events.listen(since)
    }

    /// Tells of something that a client did to a container.
    pub fn note(&self, view: &View, action: &str) {
        let labels = attributes(&view.spec, &view.name);
        self.core.events.publish(Kind::Container, action, &view.spec.id, labels);
    }

    /// Bytes that a container's own directory takes on disk: what it wrote, and its log.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn container_bytes(&self, id: &str) -> Result<u64> {
        let directory = self.core.layout.container(id);
        crate::core::blocking(move || used(&directory)).await
    }

    /// Work that is finished even if its caller goes away.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.core.tasks.spawn(work).await.unwrap_or(Err(Error::ShuttingDown))
    }
}

fn prepare(layout: &layout::Layout) -> Result<(Store, [Lock; 2])> {
    for directory in [
        &layout.data_root,
        &layout.exec_root,
        &layout.containers(),
        &layout.volumes(),
        &layout.templates(),
        &layout.pods(),
        &layout.namespaces(),
        &layout.networks(),
    ] {
        layout::private_directory(directory)?;
    }
    let data = Lock::take(&layout.data_root)?;
    let exec = Lock::take(&layout.exec_root)?;
    Ok((Store::open(&layout.database())?, [data, exec]))
}

async fn ask(handle: &Handle, command: impl FnOnce(Reply<()>) -> Command) -> Result<()> {
    let (reply, answer) = oneshot::channel();
    send(handle, command(reply)).await?;
    answer.await.unwrap_or_else(|_| Err(gone(handle)))
}

async fn send(handle: &Handle, command: Command) -> Result<()> {
    handle.commands.send(command).await.map_err(|_| gone(handle))
}

fn gone(handle: &Handle) -> Error {
    Error::NoSuchContainer(handle.view.borrow().spec.id.clone())
}

fn used(directory: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let wrong = || Error::file("read", directory);
    let mut bytes = 0;
    let mut directories = vec![directory.to_owned()];
    while let Some(at) = directories.pop() {
        let entries = match std::fs::read_dir(&at) {
            Ok(entries) => entries,
            Err(error) if at == directory => return Err(wrong()(error)),
            // Below is what a container writes, maybe just now.
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            // Never through a link.
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(bytes)
}
