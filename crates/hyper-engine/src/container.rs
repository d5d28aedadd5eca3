//! One container: what it is, what it is doing, and the task that owns it.
//!
//! - [`spec`]: what it was created as; stored, never changed but for its name and limits.
//! - [`state`]: what it is doing; stored at every change.
//! - [`actor`]: the one task that changes either; everyone else reads the published [`View`].
//! - [`create`]: from a request to a spec.
//! - [`mounts`]: from wishes to the volumes and directories it has.
//! - [`given`], [`secrets`]: files and secrets that it is given, and where their contents are.
//! - [`start`]: from a spec to a running pod.
//! - [`restart`]: whether and when it is started again.
//! - [`health`]: whether it does what it is for.
//! - [`lending`]: a pod for its files while it does not run.

pub(crate) mod actor;
pub(crate) mod create;
pub mod given;
pub mod health;
pub(crate) mod journal;
pub(crate) mod lending;
pub(crate) mod mounts;
pub(crate) mod restart;
pub(crate) mod secrets;
pub mod spec;
pub(crate) mod start;
pub mod state;
pub(crate) mod throttle;

use std::sync::Arc;

use crate::supervisor::Pod;
use spec::Spec;
use state::State;

/// A container at one moment; cheap to clone.
#[derive(Debug, Clone)]
pub struct View {
    pub spec: Arc<Spec>,
    pub name: String,
    pub state: State,
    /// The container is gone; this is the last view of it.
    pub removed: bool,
    /// The pod, while it runs.
    pub(crate) pod: Option<Arc<Pod>>,
}
