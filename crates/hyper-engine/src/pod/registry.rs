//! The pods by id and name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use tokio::sync::{mpsc, watch};

use super::PodView;
use super::actor::Command;
use crate::{Error, Result};

/// One pod, from outside of its actor.
#[derive(Debug, Clone)]
pub(crate) struct PodHandle {
    pub commands: mpsc::Sender<Command>,
    pub view: watch::Receiver<PodView>,
}

/// All pods.
#[derive(Debug, Default)]
pub(crate) struct Pods(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    by_id: BTreeMap<String, PodHandle>,
    /// Name → id; a name is here before its pod is.
    names: HashMap<String, String>,
}

impl Pods {
    /// The pod that an id, the start of one, or a name means.
    pub fn find(&self, reference: &str) -> Result<PodHandle> {
        let missing = || Error::NoSuchPod(reference.to_owned());
        if reference.is_empty() {
            return Err(missing());
        }
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let by_name = || table.names.get(reference).and_then(|id| table.by_id.get(id));
        if let Some(handle) = table.by_id.get(reference).or_else(by_name) {
            return Ok(handle.clone());
        }
        let mut starting = table
            .by_id
            .range(reference.to_owned()..)
            .take_while(|(id, _)| id.starts_with(reference));
        match (starting.next(), starting.next()) {
            (Some((_, handle)), None) => Ok(handle.clone()),
            (Some(_), Some(_)) => Err(Error::Conflict(format!(
                "several pods have an id that begins with `{reference}`: give more digits"
            ))),
            (None, _) => Err(missing()),
        }
    }

    /// All pods, newest first.
    pub fn views(&self) -> Vec<PodView> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut views: Vec<PodView> =
            table.by_id.values().map(|handle| handle.view.borrow().clone()).collect();
        views.retain(|view| !view.removed);
        views.sort_by_key(|view| std::cmp::Reverse(view.spec.created_ns));
        views
    }

    /// Takes a name for `id`, unless another pod has it.
    pub fn reserve(&self, name: &str, id: &str) -> Result<()> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = table.names.get(name) {
            let holder = crate::id::short(holder);
            return Err(Error::Conflict(format!(
                "the pod name \"{name}\" is in use by pod {holder}: remove that pod, or choose \
                 another name"
            )));
        }
        table.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    pub fn release(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).names.remove(name);
    }

    pub fn insert(&self, id: String, name: String, handle: PodHandle) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.names.insert(name, id.clone());
        table.by_id.insert(id, handle);
    }

    pub fn forget(&self, id: &str, name: &str) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.by_id.remove(id);
        table.names.remove(name);
    }

    /// Lets go of all: their actors end.
    pub fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Table::default();
    }
}
