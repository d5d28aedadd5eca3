//! Changes to a container while it lives: its name, its limits, its restart policy.

use std::sync::Arc;

use super::{Actor, Work};
use crate::container::create::check_limits;
use crate::container::restart;
use crate::container::spec::{Limits, Restart, Spec};
use crate::{Error, Result, oci};
use hyper_task::pod::PodReport;

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
        self.core.networks.renamed(&self.spec, &self.name).await;
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
                fits(&self.name, &limits, &spec.host.limits, &pod.report().await?)?;
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

/// Refuses more than the guest has, where it cannot be given more while it runs; where it can, its
/// pod says how much is too much.
fn fits(name: &str, limits: &Limits, before: &Limits, pod: &PodReport) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::Unsupported(format!(
            "container {name}: {what}, and a running guest cannot grow: stop it, update it, and \
             start it"
        )))
    };
    let memory = pod.guest_memory_total_bytes;
    let fixed = memory > 0 && !pod.memory_growth;
    if fixed && u64::try_from(limits.memory_bytes).is_ok_and(|limit| limit > memory) {
        let wanted = limits.memory_bytes;
        return refuse(format!("memory of {wanted} bytes is more than its guest has ({memory})"));
    }
    let cpus = i64::from(pod.vcpus).saturating_mul(1_000_000_000);
    // A bound that was above them from the start may stay.
    if cpus > 0 && limits.nano_cpus > cpus.max(before.nano_cpus) {
        let vcpus = pod.vcpus;
        return refuse(format!("more CPUs are asked for than its guest has ({vcpus})"));
    }
    Ok(())
}
