//! Counters of a cgroup and of the guest.

use std::{fs, path::Path};

use hyper_link::message::Stats;

use super::Cgroup;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_formats_are_read() {
        assert_eq!(field("usage_usec 17\nuser_usec 5\n", "user_usec"), 5);
        assert_eq!(field("MemTotal:  12 kB", "MemTotal:"), 12);
        assert_eq!(sum("98:0 rbytes=5 wbytes=2 rios=1\n98:16 rbytes=6 wbytes=1", "rbytes="), 11);
    }
}
