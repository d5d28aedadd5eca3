//! What a guest's disks may move per second, where the host's cgroup cannot hold it to that.
//!
//! A bucket of tokens per rate, kept as the time at which it is full again ("due"): what is moved
//! puts that off, and while it lies ahead a disk takes no request. So one of any length passes, and
//! the next one waits for it. A guest that resets the disk gains nothing: what it owes stays.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::Rates;

/// What may be moved at once after a pause, in time of the rate.
const BURST: Duration = Duration::from_millis(100);
/// Most that one request is made to cost: a rate of next to nothing must not overflow.
const LONGEST: Duration = Duration::from_secs(3600);

/// Of all disks of a guest.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    any: AtomicBool,
    meters: Mutex<Vec<Meter>>,
}

/// Bounds of what is on some devices of the host, together.
#[derive(Debug)]
struct Meter {
    devices: Vec<u64>,
    rates: [Option<u64>; 4],
    due: [Instant; 4],
}

/// What a request moves: bytes and operations to the guest, bytes and operations from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

impl Limits {
    /// Bounds what is on `devices` from now on; without rates no more.
    pub fn set(&self, devices: Vec<u64>, rates: Rates) {
        let rates = [rates.read_bytes, rates.write_bytes, rates.reads, rates.writes];
        let rates = rates.map(|rate| rate.filter(|rate| *rate > 0));
        let mut meters = self.lock();
        match meters.iter_mut().find(|meter| meter.devices == devices) {
            // What is owed stays.
            Some(meter) => meter.rates = rates,
            None => {
                let now = Instant::now();
                let due = [now.checked_sub(BURST).unwrap_or(now); 4];
                meters.push(Meter { devices, rates, due });
            }
        }
        meters.retain(|meter| meter.rates.iter().any(Option::is_some));
        self.any.store(!meters.is_empty(), Ordering::Relaxed);
    }

    /// How long a disk whose files are on `devices` has to wait.
    pub(super) fn wait(&self, devices: &[u64]) -> Duration {
        if !self.any.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let meters = self.lock();
        let on = meters.iter().filter(|meter| meter.is_of(devices));
        let due = on.flat_map(|meter| meter.due.iter().zip(meter.rates));
        let waits = due.filter(|(_, rate)| rate.is_some());
        waits.map(|(due, _)| due.saturating_duration_since(now)).max().unwrap_or_default()
    }

    /// Puts down what such a disk moves.
    pub(super) fn charge(&self, devices: &[u64], cost: Cost) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let amounts = [cost.read_bytes, cost.write_bytes, cost.reads, cost.writes];
        for meter in self.lock().iter_mut().filter(|meter| meter.is_of(devices)) {
            for ((due, rate), amount) in meter.due.iter_mut().zip(meter.rates).zip(amounts) {
                let Some(rate) = rate else { continue };
                let full = now.checked_sub(BURST).unwrap_or(now);
                let takes = Duration::try_from_secs_f64(amount as f64 / rate as f64);
                *due = (*due).max(full) + takes.unwrap_or(LONGEST).min(LONGEST);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Meter>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    fn is_of(&self, devices: &[u64]) -> bool {
        devices.iter().any(|device| self.devices.contains(device))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const READ: Cost = Cost { read_bytes: 1000, write_bytes: 0, reads: 1, writes: 0 };
    const WRITE: Cost = Cost { read_bytes: 0, write_bytes: 1000, reads: 0, writes: 1 };

    fn close(wait: Duration, seconds: f64) -> bool {
        let error = wait.as_secs_f64() - seconds;
        (-1.0..=0.001).contains(&error)
    }

    #[test]
    fn what_is_moved_is_waited_for_and_a_burst_is_not() {
        let limits = Limits::default();
        limits.set(vec![7], Rates { write_bytes: Some(100_000), ..Rates::default() });
        for _ in 0..10 {
            assert_eq!(limits.wait(&[7]), Duration::ZERO, "a burst passes");
            limits.charge(&[7], WRITE);
            limits.charge(&[7], READ);
        }
        for _ in 0..1000 {
            limits.charge(&[7, 8], WRITE);
            limits.charge(&[8], WRITE);
        }
        assert!(close(limits.wait(&[7]), 10.0), "{:?}", limits.wait(&[7]));
        assert_eq!(limits.wait(&[8]), Duration::ZERO, "it is on another device");
    }

    #[test]
    fn a_new_rate_does_not_forgive_and_none_frees() {
        let limits = Limits::default();
        let rates = Rates { reads: Some(10), ..Rates::default() };
        limits.set(vec![7, 8], rates);
        (0..1000).for_each(|_| limits.charge(&[8], READ));
        limits.set(vec![7, 8], Rates { reads: Some(20), ..rates });
        assert!(close(limits.wait(&[8]), 99.9), "{:?}", limits.wait(&[8]));
        limits.set(vec![7, 8], Rates::default());
        assert_eq!(limits.wait(&[8]), Duration::ZERO);
        assert!(!limits.any.load(Ordering::Relaxed) && limits.lock().is_empty());
    }

    #[test]
    fn tiny_rates_and_huge_requests_do_not_overflow() {
        let limits = Limits::default();
        limits.set(vec![7], Rates { read_bytes: Some(1), ..Rates::default() });
        for _ in 0..1000 {
            limits.charge(&[7], Cost { read_bytes: u64::MAX, ..Cost::default() });
        }
        assert!(limits.wait(&[7]) > LONGEST);
    }
}
