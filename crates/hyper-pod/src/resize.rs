//! Resizing a pod while it runs: the limits of its sandbox, and the memory that its containers may
//! use together.
//!
//! ```text
//!  more:  sharer's and hypervisor's limits ─► the guest takes memory ─► the agent raises limits
//!  less:  the agent lowers limits (or refuses) ─► the guest gives memory back ─► the hosts' limits
//! ```
//! A guest keeps what it booted with. Beyond that it has what its sandbox was given by an update,
//! or else what its containers' limits come to, on hypervisors that can; on the others nothing
//! grows. Within it the agent holds the containers together by the cgroup that they are in, and
//! what they do not use goes back to the host by free page reporting. Virtual CPUs stay: the host
//! holds the CPU time of the whole guest, see [`crate::cpu`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper_link::message::Request;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::error::chain;
use crate::guest::Guest;
use crate::{PodError, Settings, cpu};

const MIB: u64 = 1 << 20;

/// What one container, or the sandbox by an update, was given: a memory limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MemoryWish(pub Option<u64>);

impl MemoryWish {
    /// From `linux.resources`; what it does not say stays as it was.
    pub fn changed_by(self, resources: &Value) -> Self {
        match resources["memory"]["limit"].as_i64() {
            None | Some(0) => self,
            Some(limit) => Self(u64::try_from(limit).ok()),
        }
    }
}

/// The memory of a guest.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    pub booted: u64,
    now: AtomicU64,
    /// Held while it changes.
    changing: Mutex<()>,
}

impl GuestMemory {
    pub fn new(booted: u64) -> Self {
        Self { booted, now: AtomicU64::new(booted), changing: Mutex::new(()) }
    }

    /// Bytes that it has.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

/// What an update does.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// Bytes of the guest.
    guest: Option<u64>,
    /// For the agent.
    request: Option<Request>,
    /// For the agent, before the guest is to give back: what its containers may have then.
    less: Option<Request>,
}

/// For `resources`, the OCI `linux.resources` of the sandbox. Its memory limit is that of the guest
/// with its kernel, as in the annotation `io.hyper.memory`.
pub(crate) fn sandbox(
    guest: &Guest,
    settings: &Settings,
    resources: &Value,
) -> Result<Plan, PodError> {
    let vcpus = vcpus(resources);
    if vcpus > u64::from(guest.vcpus) {
        return Err(refuse(&settings.id, &format!("{} virtual CPUs", guest.vcpus), vcpus));
    }
    let Some(wanted) = resources["memory"]["limit"].as_u64().filter(|limit| *limit > 0) else {
        return Ok(Plan { guest: None, request: None, less: None });
    };
    let grows = guest.hypervisor.capabilities().memory_growth;
    let (booted, overhead) = (guest.memory.booted, settings.memory_overhead_bytes);
    let memory_bytes = for_containers(&settings.id, wanted, booted, overhead, grows)?;
    let request = Some(Request::LimitContainers { memory_bytes });
    let room = wanted.saturating_sub(overhead);
    let less = (memory_bytes == 0).then_some(Request::LimitContainers { memory_bytes: room });
    Ok(Plan { guest: grows.then(|| whole(wanted).max(booted)), request, less })
}

/// For `resources` of container `id`; `others` were given what they say, the sandbox `pod`.
pub(crate) fn container(
    guest: &Guest,
    settings: &Settings,
    id: &str,
    resources: &Value,
    others: &[MemoryWish],
    pod: MemoryWish,
) -> Plan {
    let mut inside = resources.clone();
    cpu::for_guest(&mut inside);
    let request = Request::Update { container: id.to_owned(), resources: inside };
    let limit = MemoryWish::default().changed_by(resources).0;
    let grows = guest.hypervisor.capabilities().memory_growth;
    let wanted = limit.filter(|_| grows).map(|limit| match pod.0 {
        Some(pod) => pod,
        None => together(limit, others).saturating_add(settings.memory_overhead_bytes),
    });
    let guest = wanted.map(|wanted| whole(wanted).max(guest.memory.booted));
    Plan { guest, request: Some(request), less: None }
}

fn together(limit: u64, others: &[MemoryWish]) -> u64 {
    others.iter().filter_map(|other| other.0).fold(limit, u64::saturating_add)
}

/// As guests boot: [`crate::wishes::Wishes::memory`].
fn whole(bytes: u64) -> u64 {
    bytes.min(u64::MAX - MIB).next_multiple_of(MIB)
}

/// Carries it out, one update after the other. `id` is who asked; the agent may take `deadline`.
pub(crate) async fn carry_out(
    guest: &Guest,
    id: &str,
    plan: Plan,
    deadline: Duration,
) -> Result<(), PodError> {
    let _changing = guest.memory.changing.lock().await;
    let before = guest.memory.now();
    let more = plan.guest.filter(|bytes| *bytes > before);
    if let Some(bytes) = more {
        give(guest, bytes).await?;
    }
    let mut less = plan.guest.filter(|bytes| *bytes < before);
    // Held to what there will be, until it is so; then they may have all of it.
    let (first, then) = match (less, plan.less) {
        (Some(_), Some(room)) => (Some(room), plan.request),
        (_, _) => (plan.request, None),
    };
    let ask = async |request: Option<Request>| match request {
        Some(request) => guest.call(id, request, deadline).await.map(drop),
        None => Ok(()),
    };
    let asked = ask(first).await;
    if asked.is_err() {
        less = more.map(|_| before);
    }
    if let Some(bytes) = less
        && let Err(error) = give(guest, bytes).await
    {
        // Its containers are held to less, and what they do not use goes back all the same.
        tracing::warn!(error = chain(&error), "the guest keeps more memory than it was to have");
        return asked;
    }
    asked?;
    ask(then).await
}

async fn give(guest: &Guest, bytes: u64) -> Result<(), PodError> {
    let before = guest.memory.now();
    if let Some(sharer) = &guest.sharer {
        sharer.hold(bytes.max(before));
    }
    let given = guest.vm.set_memory(bytes).await;
    let now = match &given {
        Ok(now) => *now,
        // It may have kept some of it: no update is refused for what was not reached.
        Err(hyper_hypervisor::VmError::Memory { got, .. }) if bytes < before => *got,
        Err(_) => before,
    };
    guest.memory.now.store(now, Ordering::Relaxed);
    if let Some(sharer) = &guest.sharer {
        sharer.hold(now);
    }
    let fail = |source| PodError::Vm { action: format!("give the guest {bytes} bytes"), source };
    given.map(drop).map_err(fail)
}

/// Whole CPUs that the quota stands for; 0: all.
fn vcpus(resources: &Value) -> u64 {
    let cpu = &resources["cpu"];
    let period = cpu["period"].as_u64().filter(|period| *period > 0).unwrap_or(100_000);
    cpu["quota"].as_u64().map_or(0, |quota| quota.div_ceil(period))
}

/// What of `wanted` bytes of a guest is left to its containers; 0: all there is.
fn for_containers(
    pod: &str,
    wanted: u64,
    booted: u64,
    overhead: u64,
    grows: bool,
) -> Result<u64, PodError> {
    match wanted.cmp(&booted) {
        std::cmp::Ordering::Greater if !grows => {
            Err(refuse(pod, &format!("{booted} bytes of memory"), wanted))
        }
        std::cmp::Ordering::Greater | std::cmp::Ordering::Equal => Ok(0),
        std::cmp::Ordering::Less if wanted <= overhead => Err(PodError::Invalid(format!(
            "pod {pod}: its guest needs {overhead} of {wanted} bytes of memory for itself: give it \
             more"
        ))),
        std::cmp::Ordering::Less => Ok(wanted - overhead),
    }
}

fn refuse(pod: &str, has: &str, wanted: u64) -> PodError {
    PodError::Unsupported(format!(
        "pod {pod}: its guest booted with {has} and cannot grow to {wanted}: stop it, update it, \
         and start it"
    ))
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    #[test]
    fn within_what_it_booted_with_and_beyond_where_it_can() {
        let of = |wanted, grows| for_containers("p", wanted, 100 << 20, 16 << 20, grows);
        for grows in [false, true] {
            assert_eq!(of(100 << 20, grows).unwrap(), 0);
            assert_eq!(of(64 << 20, grows).unwrap(), 48 << 20);
            assert!(of(16 << 20, grows).unwrap_err().to_string().contains("for itself"));
        }
        assert!(of(101 << 20, false).unwrap_err().to_string().contains("stop it"));
        assert_eq!(of(101 << 20, true).unwrap(), 0);
        assert_eq!(vcpus(&json!({ "cpu": { "quota": 150_000, "period": 100_000 } })), 2);
        assert_eq!(vcpus(&json!({ "cpu": { "quota": -1 } })), 0);
    }

    #[test]
    fn limits_add_up_and_what_is_not_said_stays() {
        let wish =
            |limit: i64| MemoryWish(Some(7)).changed_by(&json!({ "memory": { "limit": limit } }));
        assert_eq!([wish(5).0, wish(0).0, wish(-1).0], [Some(5), Some(7), None]);
        assert_eq!(MemoryWish(Some(7)).changed_by(&json!({ "cpu": {} })).0, Some(7));
        assert_eq!(together(5, &[MemoryWish(Some(7)), MemoryWish(None)]), 12);
        assert_eq!(together(u64::MAX, &[MemoryWish(Some(7))]), u64::MAX);
        assert_eq!(whole((5 << 20) + 1), 6 << 20);
    }
}
