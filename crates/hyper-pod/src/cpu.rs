//! The pod's share of the host's CPUs: what its containers may use together, held by the host's
//! cgroup too, since a guest's own kernel is not to be trusted with it. Which CPUs (`cpuset`) is the
//! host's matter alone: those that a guest has are others.
//!
//! Set once the first container is in the guest, so that a small limit does not slow the boot, and
//! again at every update. The guest divides it among its containers.

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper_hypervisor::CpuShare;
use hyper_task::cpus;
use serde_json::Value;

use crate::PodError;
use crate::actor::{Actor, GuestState};
use crate::error::chain;

/// Docker's usual share, and cgroup v2's.
const SHARES: u64 = 1024;
const WEIGHT: u64 = 100;
const PERIOD_US: u64 = 100_000;
/// For the guest's kernel and the hypervisor, over what the containers may use.
const OVERHEAD_US: u64 = 10_000;

/// What one container is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CpuWish {
    shares: Option<u64>,
    /// Microseconds in each [`PERIOD_US`].
    quota_us: Option<u64>,
    /// `None`: any.
    cpus: Option<BTreeSet<usize>>,
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
        // What is no list was refused before it came here.
        let cpus = list(resources).and_then(|list| parse(list).ok());
        Self {
            shares: positive(&cpu["shares"]).or(self.shares),
            quota_us: quota,
            cpus: cpus.or(self.cpus),
        }
    }
}

fn list(resources: &Value) -> Option<&str> {
    let places = [&resources["cpu"]["cpus"], &resources["unified"]["cpuset.cpus"]];
    places.into_iter().filter_map(Value::as_str).find(|list| !list.is_empty())
}

/// Refuses lists of CPUs that are none.
pub(crate) fn check(resources: &Value) -> Result<(), PodError> {
    list(resources).map_or(Ok(()), |list| parse(list).map(drop))
}

/// `linux.resources` for the guest, whose CPUs and memory have other numbers than the host's.
pub(crate) fn for_guest(resources: &mut Value) {
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
    if let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) {
        unified.retain(|file, _| !file.starts_with("cpuset."));
    }
}

fn parse(list: &str) -> Result<BTreeSet<usize>, PodError> {
    cpus::parse(list).ok_or_else(|| {
        PodError::Invalid(format!(
            "list of CPUs `{list}`: numbers and ranges like 0-2,7 are wanted"
        ))
    })
}

/// Of all containers of a pod, which may be given `most` together.
fn together(wishes: &[CpuWish], most: &CpuWish) -> CpuShare {
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
    // One that may run anywhere makes it any.
    let all: Option<Vec<_>> = wishes.iter().map(|wish| wish.cpus.as_ref()).collect();
    let cpus = all.filter(|all| !all.is_empty());
    let cpus = cpus.map(|all| all.into_iter().flatten().copied().collect::<BTreeSet<_>>());
    CpuShare {
        weight,
        quota: quota.map(|quota| (quota.saturating_add(OVERHEAD_US), PERIOD_US)),
        cpus: cpus.or_else(|| most.cpus.clone()),
    }
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
            .map(|container| container.cpu.clone())
            .collect();
        let sandbox = self.containers.values().find(|container| container.sandbox);
        let most = sandbox.map(|sandbox| sandbox.cpu.clone()).unwrap_or_default();
        let share = together(&wishes, &most);
        if std::mem::replace(&mut self.cpu, share.clone()) == share {
            return;
        }
        self.tasks.spawn(async move {
            if let Some(sharer) = &guest.sharer {
                sharer.place(share.cpus.as_ref());
            }
            if let Err(error) = guest.vm.set_cpu(share.clone()).await {
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
        let share = |weight, quota| CpuShare { weight, quota, cpus: None };
        let together = |wishes: &[&CpuWish], most: &CpuWish| {
            together(&wishes.iter().map(|wish| (*wish).clone()).collect::<Vec<_>>(), most)
        };
        assert_eq!(together(&[&free, &free], &free), CpuShare::default());
        let half = wish(json!({ "quota": 25_000, "period": 50_000, "shares": 512 }));
        assert_eq!(together(&[&half], &free), share(50, Some((60_000, PERIOD_US))));
        assert_eq!(together(&[&half, &half], &free).quota, Some((110_000, PERIOD_US)));
        assert_eq!(together(&[&half, &free], &free), share(150, None));
        assert_eq!(together(&[&half, &free], &half).quota, Some((60_000, PERIOD_US)), "the pod's");
        let lifted = half.clone().changed_by(&json!({ "cpu": { "quota": -1 } }));
        assert_eq!(together(&[&lifted], &free), share(50, None));
        let placed = |list: &str| wish(json!({ "cpus": list }));
        let cpus = |wishes: &[&CpuWish], most: &CpuWish| {
            together(wishes, most).cpus.map(|cpus| cpus.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(cpus(&[&placed("0-2,7"), &placed("9")], &free), Some(vec![0, 1, 2, 7, 9]));
        assert_eq!(cpus(&[&placed("1"), &free], &free), None, "one runs anywhere");
        assert_eq!(cpus(&[], &placed("3")), Some(vec![3]));
        assert_eq!(placed("4").changed_by(&json!({ "cpu": { "cpus": "" } })), placed("4"));
        assert_eq!(half.clone().changed_by(&json!({ "pids": {} })), half);
        assert!(check(&json!({ "cpu": { "cpus": "3-1" } })).is_err());
        check(&json!({ "cpu": { "cpus": "" } })).unwrap();
        let mut resources = json!({
            "cpu": { "cpus": "0", "mems": "0", "shares": 2 },
            "unified": { "cpuset.cpus": "5", "memory.high": "max" }
        });
        for_guest(&mut resources);
        let left = json!({ "cpu": { "shares": 2 }, "unified": { "memory.high": "max" } });
        assert_eq!(resources, left);
        let free = free.changed_by(&json!({ "unified": { "cpuset.cpus": "5" } }));
        assert_eq!(cpus(&[&free], &CpuWish::default()), Some(vec![5]));
    }
}
