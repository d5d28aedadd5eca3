//! Changes to a container while it lives: its name, its limits, its restart policy.

use std::sync::Arc;

use super::{Actor, Work};
use crate::container::create::check_limits;
use crate::container::restart;
use crate::container::spec::{Limits, Restart, Spec};
use crate::{Result, oci};

/// What `update` changes; absent: stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    pub limits: Option<Limits>,
    pub restart: Option<Restart>,
}

impl Actor {
    pub(super) async fn rename(&mut self, name: String) -> Result<()> {
        self.core.store.set_name(&self.spec.id, &name).await?;
        let old = std::mem::replace(&mut self.name, name);
        self.publish(self.pod());
        self.event("rename", [("oldName", format!("/{old}"))]);
        Ok(())
    }

    /// The guest first: what it refuses is not stored.
    pub(super) async fn update(&mut self, change: Change) -> Result<()> {
        let mut spec = Spec::clone(&self.spec);
        if let Some(policy) = change.restart {
            restart::check(policy, spec.host.auto_remove)?;
            spec.host.restart = policy;
        }
        if let Some(limits) = change.limits {
            check_limits(&limits)?;
            if let Work::Up { pod, .. } = &self.work {
                let privileged = spec.host.security.privileged;
                pod.update(&oci::resources(&limits, privileged)).await?;
            }
            spec.host.limits = limits;
        }
        self.core.store.set_spec(&spec).await?;
        self.spec = Arc::new(spec);
        self.publish(self.pod());
        self.event("update", []);
        Ok(())
    }
}
