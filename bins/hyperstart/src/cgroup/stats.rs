//! Counters of a cgroup and of the guest.

use std::{fs, path::Path};

use hyper_link::message::{NetworkStats, Stats};

use super::Cgroup;
use crate::network::{self, IDLE};

impl Cgroup {
    /// What the kernel has counted; what it does not count is zero.
    pub(crate) fn stats(&self) -> Stats {
        let get = |file: &str| self.get(file).unwrap_or_default();
        let number = |file: &str| get(file).trim().parse().unwrap_or(0);
        let (cpu, memory, io) = (get("cpu.stat"), get("memory.stat"), get("io.stat"));
        let meminfo = read(Path::new("/proc/meminfo"));
        Stats {
            cpu_usage_us: field(&cpu, "usage_usec"),
            cpu_user_us: field(&cpu, "user_usec"),
            cpu_system_us: field(&cpu, "system_usec"),
            cpu_throttled_us: field(&cpu, "throttled_usec"),
            memory_bytes: number("memory.current"),
            memory_peak_bytes: number("memory.peak"),
            memory_limit_bytes: number("memory.max"),
            memory_inactive_file_bytes: field(&memory, "inactive_file"),
            oom_kills: self.oom_kills(),
            processes: number("pids.current"),
            processes_limit: number("pids.max"),
            read_bytes: sum(&io, "rbytes="),
            write_bytes: sum(&io, "wbytes="),
            read_operations: sum(&io, "rios="),
            write_operations: sum(&io, "wios="),
            guest_memory_total_bytes: 1024 * field(&meminfo, "MemTotal:"),
            guest_memory_available_bytes: 1024 * field(&meminfo, "MemAvailable:"),
            guest_memory_free_bytes: 1024 * field(&meminfo, "MemFree:"),
            networks: networks(&read(Path::new("/proc/net/dev")), network::rides_on),
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after `name` at the start of a line.
pub(super) fn field(text: &str, name: &str) -> u64 {
    let values = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok()).flatten()
    });
    values.into_iter().next().unwrap_or(0)
}

/// The sum, over all devices, of the numbers after `key`.
fn sum(text: &str, key: &str) -> u64 {
    let words = text.split_ascii_whitespace();
    words.filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

/// Counters of all interfaces but the loopback. What rides on a card is not the card's own.
fn networks(text: &str, rides_on: impl Fn(&str) -> Option<String>) -> Vec<NetworkStats> {
    let interfaces = text.lines().skip(2).filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> =
            counters.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = counters[..]
        else {
            return None;
        };
        Some(NetworkStats {
            name: name.trim().to_owned(),
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    });
    let mut all: Vec<_> = interfaces.filter(|interface| interface.name != "lo").collect();
    for rider in all.clone() {
        let Some(carrier) = rides_on(&rider.name) else { continue };
        if let Some(carrier) = all.iter_mut().find(|interface| interface.name == carrier) {
            let less = |all: &mut u64, part: u64| *all = all.saturating_sub(part);
            less(&mut carrier.rx_bytes, rider.rx_bytes);
            less(&mut carrier.rx_packets, rider.rx_packets);
            less(&mut carrier.tx_bytes, rider.tx_bytes);
            less(&mut carrier.tx_packets, rider.tx_packets);
        }
    }
    all.retain(|interface| !interface.name.starts_with(IDLE));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_formats_are_read() {
        assert_eq!(field("usage_usec 17\nuser_usec 5\n", "user_usec"), 5);
        assert_eq!(field("MemTotal:  12 kB", "MemTotal:"), 12);
        assert_eq!(sum("98:0 rbytes=5 wbytes=2 rios=1\n98:16 rbytes=6 wbytes=1", "rbytes="), 11);
        let dev = "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                   eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let alone = networks(dev, |_| None);
        assert_eq!(alone.len(), 1);
        assert_eq!((alone[0].rx_bytes, alone[0].tx_dropped), (10, 8));
        let both = format!("{dev}  eth1: 4 1 0 0 0 0 0 0 20 3 0 0 0 0 0 0\n");
        let rides_on = |name: &str| (name == "eth1").then(|| "eth0".to_owned());
        let bytes = |all: Vec<NetworkStats>| -> Vec<(u64, u64)> {
            all.iter().map(|one| (one.rx_bytes, one.tx_bytes)).collect()
        };
        assert_eq!(bytes(networks(&both, rides_on)), [(6, 30), (4, 20)]);
        let idle = both.replace("eth0", "idle2");
        assert_eq!(bytes(networks(&idle, |_| None)), [(4, 20)]);
    }
}
