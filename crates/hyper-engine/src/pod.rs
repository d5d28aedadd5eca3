//! Pods that are made as such: a guest of their own that containers join, and that is there with
//! none. (A container that joins none has a pod to itself, which is no object here.)
//!
//! - [`spec`]: what a pod was created as, and what it is doing.
//! - [`actor`]: the one task that changes either; everyone else reads the published [`PodView`].
//! - [`registry`]: ids and names.
//! - [`life`]: from a spec to a guest, and its end.
//!
//! The pod's supervisor is started on a bundle whose `config.json` says `sandbox`, as containerd
//! does it for Kubernetes; containers join it by their own bundles. The supervisor holds the guest
//! until the sandbox is deleted.

pub(crate) mod actor;
mod life;
pub(crate) mod registry;
pub(crate) mod services;
pub mod spec;

pub(crate) use life::{adopt, renew_network};

use std::sync::Arc;

use crate::supervisor;
use spec::{PodSpec, PodState};

/// A pod at one moment; cheap to clone.
#[derive(Debug, Clone)]
pub struct PodView {
    pub spec: Arc<PodSpec>,
    pub name: String,
    pub state: PodState,
    /// The pod is gone; this is the last view of it.
    pub removed: bool,
    /// Its supervisor, while it is up.
    pub(crate) supervisor: Option<Arc<supervisor::Pod>>,
}
