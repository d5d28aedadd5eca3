//! What the processes of a jail use on the host.

use std::fs;
use std::io;
use std::time::Duration;

use crate::cgroup::Cgroups;

/// Sums over all processes of a jail, launcher included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JailUsage {
    /// CPU time of the program and its children, ended ones included where a cgroup counts them.
    pub cpu: Duration,
    /// Bytes resident, each page counted once within the jail and shared ones divided among all
    /// who share them (PSS).
    pub resident_bytes: u64,
    /// Bytes that no process outside the jail shares: anonymous and shared memory. Code mapped
    /// from files is not in it.
    pub private_bytes: u64,
    pub processes: u32,
}

/// That of some processes, in a jail or not. Blocking.
///
/// # Errors
/// None of them is there.
pub fn usage_of(pids: &[u32]) -> io::Result<JailUsage> {
    read(None, pids)
}

/// Reads it for the processes of `cgroups` and those of `always`. Blocking.
pub(crate) fn read(cgroups: Option<&Cgroups>, always: &[u32]) -> io::Result<JailUsage> {
    let mut pids = cgroups.and_then(Cgroups::processes).unwrap_or_default();
    pids.extend_from_slice(always);
    pids.sort_unstable();
    pids.dedup();
    let mut usage = JailUsage::default();
    let mut ticks = 0;
    for pid in pids {
        // A process may end between the list and the look at it.
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        usage.processes += 1;
        usage.resident_bytes += field(&rollup, "Pss:");
        usage.private_bytes += field(&rollup, "Pss_Anon:") + field(&rollup, "Pss_Shmem:");
        if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) {
            ticks += cpu_ticks(&stat);
        }
    }
    if usage.processes == 0 {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    usage.cpu = cgroups.and_then(Cgroups::cpu).unwrap_or_else(|| {
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Duration::from_millis(ticks * 1000 / per_second)
    });
    Ok(usage)
}

/// Bytes of one line of smaps_rollup.
fn field(rollup: &str, name: &str) -> u64 {
    let value = rollup.lines().find_map(|line| line.strip_prefix(name));
    let kib = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// utime, stime, cutime and cstime of `/proc/<pid>/stat` (fields 14..=17).
fn cpu_ticks(stat: &str) -> u64 {
    // The name in parentheses may hold anything; fields count from behind its last `)`.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4 1 2 3 4 10 20 30 40 20 0 1 0 5";
        assert_eq!(cpu_ticks(stat), 100);
    }

    #[test]
    fn rollup_fields_are_kibibytes() {
        assert_eq!(field("Rss:  12 kB\nPss_Anon:     8 kB\n", "Pss_Anon:"), 8192);
        assert_eq!(field("", "Pss:"), 0);
    }
}
