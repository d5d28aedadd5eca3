//! The pod's share of the host's CPUs: what its containers may use together, held by the host's
//! cgroup too, since a guest's own kernel is not to be trusted with it.
//!
//! Set once the first container is in the guest, so that a small limit does not slow the boot, and
//! again at every update. The guest divides it among its containers.

use std::sync::Arc;

use hyper_hypervisor::CpuShare;
use serde_json::Value;

use crate::actor::{Actor, GuestState};
use crate::error::chain;

/// Docker's usual share, and cgroup v2's.
const SHARES: u64 = 1024;
const WEIGHT: u64 = 100;
const PERIOD_US: u64 = 100_000;
/// For the guest's kernel and the hypervisor, over what the containers may use.
const OVERHEAD_US: u64 = 10_000;

/// What one container is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CpuWish {
    shares: Option<u64>,
    /// Microseconds in each [`PERIOD_US`].
    quota_us: Option<u64>,
}

impl CpuWish {
    /// From `linux.resources`; what it does not say stays as it was.
    pub fn changed_by(self, resources: &Value) -> Self {
        let cpu = &resources["cpu"];
        let positive = |value: &Value| value.as_u64().filter(|value| *value > 0);
        let period = positive(&cpu["period"]).unwrap_or(PERIOD_US);
        let quota = match cpu["quota"].as_i64() {
            None => self.quota_us,
            Some(..=0) => None,
            Some(quota) => Some(quota.unsigned_abs().saturating_mul(PERIOD_US) / period),
        };
        Self { shares: positive(&cpu["shares"]).or(self.shares), quota_us: quota }
    }
}

/// Of all containers of a pod, which may be given `most` together.
fn together(wishes: &[CpuWish], most: CpuWish) -> CpuShare {
    let weight = match wishes.iter().any(|wish| wish.shares.is_some()) {
        false => WEIGHT,
        true => {
            let shares: u64 = wishes.iter().map(|wish| wish.shares.unwrap_or(SHARES)).sum();
            (shares.saturating_mul(WEIGHT) / SHARES).clamp(1, 10_000)
        }
    };
    let quotas: Option<u64> = wishes.iter().map(|wish| wish.quota_us).sum();
    let quota = quotas.filter(|_| !wishes.is_empty());
    let quota = match (quota, most.quota_us) {
        (Some(quota), Some(most)) => Some(quota.min(most)),
        (quota, most) => quota.or(most),
    };
    CpuShare { weight, quota: quota.map(|quota| (quota.saturating_add(OVERHEAD_US), PERIOD_US)) }
}

impl Actor {
    /// Gives the hypervisor what its containers may use together now.
    pub(crate) fn share_cpu(&mut self) {
        let GuestState::Up(guest) = &self.guest else { return };
        let guest = Arc::clone(guest);
        let wishes: Vec<CpuWish> = self
            .containers
            .values()
            .filter(|container| container.in_guest)
            .map(|container| container.cpu)
            .collect();
        let sandbox = self.containers.values().find(|container| container.sandbox);
        let share = together(&wishes, sandbox.map(|sandbox| sandbox.cpu).unwrap_or_default());
        if std::mem::replace(&mut self.cpu, share) == share {
            return;
        }
        self.tasks.spawn(async move {
            if let Err(error) = guest.vm.set_cpu(share).await {
                // The guest holds them as well; this host has no cgroup for it.
                tracing::warn!(error = chain(&error), ?share, "the host does not hold CPU limits");
            }
        });
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_add_up() {
        let wish = |cpu: Value| CpuWish::default().changed_by(&json!({ "cpu": cpu }));
        let free = CpuWish::default();
        assert_eq!(together(&[free, free], free), CpuShare::default());
        let half = wish(json!({ "quota": 25_000, "period": 50_000, "shares": 512 }));
        assert_eq!(
            together(&[half], free),
            CpuShare { weight: 50, quota: Some((60_000, PERIOD_US)) }
        );
        assert_eq!(together(&[half, half], free).quota, Some((110_000, PERIOD_US)));
        assert_eq!(together(&[half, free], free), CpuShare { weight: 150, quota: None });
        assert_eq!(together(&[half, free], half).quota, Some((60_000, PERIOD_US)), "the pod's");
        let lifted = half.changed_by(&json!({ "cpu": { "quota": -1 } }));
        assert_eq!(together(&[lifted], free), CpuShare { weight: 50, quota: None });
        assert_eq!(half.changed_by(&json!({ "pids": {} })), half);
    }
}
