//! What is counted: exits of the virtual CPUs by reason, traffic by device, phases of the start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A look at the counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    pub exits: Exits,
    /// In the order of the guest's devices.
    pub devices: Vec<DeviceMetrics>,
    /// Microseconds from the configuration's arrival to the end of each step.
    pub phases: Phases,
}

impl Metrics {
    /// All of them, by name: `exits` is the sum of `exits.…`.
    pub fn named(&self) -> BTreeMap<String, u64> {
        let Exits { port_read, port_write, mmio_read, mmio_write, interrupted, other } = self.exits;
        let exits = [
            ("port_read", port_read),
            ("port_write", port_write),
            ("mmio_read", mmio_read),
            ("mmio_write", mmio_write),
            ("interrupted", interrupted),
            ("other", other),
        ];
        let Phases { memory, kernel, devices, vcpus } = self.phases;
        let phases =
            [("memory", memory), ("kernel", kernel), ("devices", devices), ("vcpus", vcpus)];
        let mut all = BTreeMap::from([("exits".to_owned(), exits.iter().map(|(_, n)| n).sum())]);
        all.extend(exits.map(|(name, count)| (format!("exits.{name}"), count)));
        all.extend(phases.map(|(name, micros)| (format!("phases_us.{name}"), micros)));
        for device in &self.devices {
            let counts = [
                ("kicks", device.kicks),
                ("interrupts", device.interrupts),
                ("bytes_in", device.bytes_in),
                ("bytes_out", device.bytes_out),
                ("errors", device.errors),
            ];
            all.extend(counts.map(|(name, count)| (format!("{}.{name}", device.name), count)));
        }
        all
    }
}

/// Returns of `KVM_RUN` by reason. Kicks of queues and interrupts are none: KVM passes them on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    pub port_read: u64,
    pub port_write: u64,
    pub mmio_read: u64,
    pub mmio_write: u64,
    /// A signal of ours: pause, end.
    pub interrupted: u64,
    pub other: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMetrics {
    pub name: String,
    pub kicks: u64,
    pub interrupts: u64,
    /// Bytes to the guest and from it.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Requests that failed, packets that were dropped.
    pub errors: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    pub memory: u64,
    pub kernel: u64,
    pub devices: u64,
    pub vcpus: u64,
}

#[derive(Debug, Default)]
pub(crate) struct ExitCounters {
    pub port_read: AtomicU64,
    pub port_write: AtomicU64,
    pub mmio_read: AtomicU64,
    pub mmio_write: AtomicU64,
    pub interrupted: AtomicU64,
    pub other: AtomicU64,
}

impl ExitCounters {
    pub fn read(&self) -> Exits {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Exits {
            port_read: get(&self.port_read),
            port_write: get(&self.port_write),
            mmio_read: get(&self.mmio_read),
            mmio_write: get(&self.mmio_write),
            interrupted: get(&self.interrupted),
            other: get(&self.other),
        }
    }
}

/// Counters of one device.
#[derive(Debug, Default)]
pub(crate) struct DeviceCounters {
    pub kicks: AtomicU64,
    pub interrupts: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub errors: AtomicU64,
}

impl DeviceCounters {
    pub fn read(&self, name: &str) -> DeviceMetrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceMetrics {
            name: name.to_owned(),
            kicks: get(&self.kicks),
            interrupts: get(&self.interrupts),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            errors: get(&self.errors),
        }
    }
}

/// Adds to a counter that nobody waits for.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Microseconds since a start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(Duration::MAX.as_secs())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn exits_are_summed_and_devices_named() {
        let exits = Exits { port_read: 2, mmio_write: 3, ..Exits::default() };
        let disk = DeviceMetrics { name: "disk0".to_owned(), errors: 7, ..Default::default() };
        let metrics = Metrics { exits, devices: vec![disk], phases: Phases::default() };
        let named = metrics.named();
        assert_eq!((named["exits"], named["exits.mmio_write"], named["disk0.errors"]), (5, 3, 7));
    }
}
