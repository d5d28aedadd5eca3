//! What the parts of the engine share: places, stores, the registry of containers, owned tasks.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::attach::Slot;
use crate::container::View;
use crate::container::actor::Command;
use crate::event::Log;
use crate::exec::Exec;
use crate::layout::Layout;
use crate::network::Networks;
use crate::phases::Finished;
use crate::pod::registry::Pods;
use crate::runtime::Runtimes;
use crate::store::Store;
use crate::supervisor::launch::Launcher;
use crate::{Error, Result};

/// How an engine works.
#[derive(Debug, Clone)]
pub struct Config {
    pub layout: Layout,
    /// The supervisor program, `containerd-shim-hyper-v2`.
    pub supervisor: PathBuf,
    /// What containers run on.
    pub runtimes: Arc<Runtimes>,
    /// Size of a container's writable disk; sparse.
    pub disk_bytes: u64,
    /// How registries are reached, what layers may cost.
    pub images: hyper_image::Options,
    /// Where ports are published.
    pub sockets: Arc<dyn crate::HostSockets>,
    /// This is the root of a user's namespaces, and not the host's.
    pub rootless: bool,
    /// Supervisors log more.
    pub debug: bool,
}

/// Shared by the engine and its containers.
#[derive(Debug)]
pub(crate) struct Core {
    pub config: Config,
    pub layout: Layout,
    pub store: Store,
    pub images: hyper_image::Store,
    pub holds: crate::hold::Holds,
    pub launcher: Launcher,
    pub events: Log,
    pub finished: Finished,
    pub networks: Networks,
    pub registry: RwLock<Registry>,
    pub volumes: crate::volume::Volumes,
    pub pods: Pods,
    pub execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// Places of containers that their restart policies start.
    pub restarts: Arc<Semaphore>,
    /// Tasks that outlive the request that began them.
    pub tasks: TaskTracker,
}

/// The containers.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub by_id: BTreeMap<String, Handle>,
    /// Name → id; a name is here before its container is, and not in `by_id` then.
    pub names: HashMap<String, String>,
}

/// One container, from outside of its actor.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub commands: mpsc::Sender<Command>,
    pub view: watch::Receiver<View>,
    pub slot: Arc<Slot>,
}

impl Core {
    /// The container that an id, the start of one, or a name means.
    pub fn find(&self, reference: &str) -> Result<Handle> {
        let reference = reference.strip_prefix('/').unwrap_or(reference);
        let missing = || Error::NoSuchContainer(reference.to_owned());
        if reference.is_empty() {
            return Err(missing());
        }
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = registry.by_id.get(reference) {
            return Ok(handle.clone());
        }
        if let Some(handle) = registry.names.get(reference).and_then(|id| registry.by_id.get(id)) {
            return Ok(handle.clone());
        }
        let mut starting = registry
            .by_id
            .range(reference.to_owned()..)
            .take_while(|(id, _)| id.starts_with(reference));
        match (starting.next(), starting.next()) {
            (Some((_, handle)), None) => Ok(handle.clone()),
            (Some(_), Some(_)) => Err(Error::AmbiguousContainer(reference.to_owned())),
            (None, _) => Err(missing()),
        }
    }

    /// All containers, newest first.
    pub fn views(&self) -> Vec<View> {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        let mut views: Vec<View> =
            registry.by_id.values().map(|handle| handle.view.borrow().clone()).collect();
        views.retain(|view| !view.removed);
        views.sort_by_key(|view| std::cmp::Reverse(view.spec.created_ns));
        views
    }

    /// Takes a name for `id`, unless another container has it.
    pub fn reserve(&self, name: &str, id: &str) -> Result<()> {
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        match registry.names.get(name) {
            Some(holder) => Err(Error::NameInUse { name: name.to_owned(), holder: holder.clone() }),
            None => {
                registry.names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    /// Gives a name back.
    pub fn release(&self, name: &str) {
        self.registry.write().unwrap_or_else(PoisonError::into_inner).names.remove(name);
    }

    /// Forgets a container that is gone.
    pub fn forget(&self, id: &str, name: &str) {
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        registry.by_id.remove(id);
        registry.names.remove(name);
        drop(registry);
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.retain(|_, exec| exec.container != id);
    }

    /// The container's guest is gone: so are its execs.
    pub fn end_execs(&self, id: &str) {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        for exec in execs.values().filter(|exec| exec.container == id) {
            exec.lost();
        }
    }

    /// The runtime that is meant.
    pub fn runtime(&self, asked: &str) -> String {
        match asked {
            "" => self.config.runtimes.default.clone(),
            named => named.to_owned(),
        }
    }

    /// JSON file of the image's assembled root.
    pub async fn rootfs(&self, image_id: &str) -> Result<PathBuf> {
        let wrong = |source: hyper_image::Error| image_error(image_id, source);
        let digest = image_id.parse::<hyper_image::Digest>().map_err(|e| wrong(e.into()))?;
        Ok(self.images.rootfs(&digest).await.map_err(wrong)?.path)
    }
}

/// An image's error in the engine's words.
pub(crate) fn image_error(reference: &str, error: hyper_image::Error) -> Error {
    match error {
        hyper_image::Error::NoSuchImage { .. } => Error::NoSuchImage(reference.to_owned()),
        other => Error::Image(Box::new(other)),
    }
}

/// Work that blocks, off the runtime's threads.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::ShuttingDown))
}
