//! The pod's share of the host's disks: what its containers may transfer together, held by the
//! host's cgroup too. The guest holds each container to its own rates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hyper_hypervisor::IoLimit;
use serde_json::Value;

use crate::actor::{Actor, GuestState};
use crate::error::chain;

/// Major and minor number.
type Device = (u32, u32);
/// Bytes read, bytes written, reads, writes; each per second.
type Rates = [Option<u64>; 4];

const FIELDS: [&str; 4] = [
    "throttleReadBpsDevice",
    "throttleWriteBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteIOPSDevice",
];

/// What one container is held to, by devices of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IoWish(BTreeMap<Device, Rates>);

impl IoWish {
    /// From `linux.resources`.
    pub fn from_resources(resources: &Value) -> Self {
        let mut wish = Self::default();
        for (at, field) in FIELDS.into_iter().enumerate() {
            for one in resources["blockIO"][field].as_array().into_iter().flatten() {
                let number = |key: &str| u32::try_from(one[key].as_u64()?).ok();
                let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
                    continue;
                };
                let rate = one["rate"].as_u64().filter(|rate| *rate > 0);
                wish.0.entry((major, minor)).or_default()[at] = rate;
            }
        }
        wish
    }
}

/// Of all containers of a pod: one that is free frees the pod.
fn together(wishes: &[IoWish]) -> BTreeMap<Device, Rates> {
    let devices: BTreeSet<Device> = wishes.iter().flat_map(|wish| wish.0.keys().copied()).collect();
    let sum = |device: &Device, at: usize| {
        let rates = wishes.iter().map(|wish| wish.0.get(device)?[at]);
        rates.sum::<Option<u64>>()
    };
    let all = devices.into_iter().map(|device| (device, [0, 1, 2, 3].map(|at| sum(&device, at))));
    all.filter(|(_, rates)| *rates != Rates::default()).collect()
}

impl Actor {
    /// Gives the hypervisor what its containers may transfer together now.
    pub(crate) fn share_io(&mut self) {
        let GuestState::Up(guest) = &self.guest else { return };
        let guest = Arc::clone(guest);
        let inside = self.containers.values().filter(|container| container.in_guest);
        let wishes: Vec<IoWish> = inside.map(|container| container.io.clone()).collect();
        let now = together(&wishes);
        let before = std::mem::replace(&mut self.io, now.clone());
        // What is bound no more has to be said, too.
        let mut said: BTreeMap<Device, Rates> =
            before.keys().map(|device| (*device, Rates::default())).collect();
        said.extend(now.clone());
        if said == before {
            return;
        }
        let limits: Vec<IoLimit> =
            said.into_iter()
                .map(|(device, [read_bytes, write_bytes, read_operations, write_operations])| {
                    IoLimit { device, read_bytes, write_bytes, read_operations, write_operations }
                })
                .collect();
        self.tasks.spawn(async move {
            if let Err(error) = guest.vm.set_io(&limits).await {
                // The guest holds them as well; this host has no cgroup for it.
                tracing::warn!(
                    error = chain(&error),
                    ?limits,
                    "the host does not hold disk limits"
                );
            }
        });
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_add_up_and_a_free_one_frees_the_pod() {
        let one = |rate: u64| {
            let list = json!([{ "major": 8, "minor": 0, "rate": rate }]);
            IoWish::from_resources(&json!({ "blockIO": { "throttleWriteBpsDevice": list } }))
        };
        assert_eq!(together(&[one(5), one(6)]), [((8, 0), [None, Some(11), None, None])].into());
        for free in [&[one(5), IoWish::default()][..], &[one(0)], &[]] {
            assert_eq!(together(free), BTreeMap::new());
        }
    }
}
