//! What the host's kernel says of a container's processes.

use std::path::{Path, PathBuf};

use hyper_task::pod::{NetworkCounters, ProcessInfo};

/// Clock ticks of `/proc/PID/stat`: always 100 for programs, proc(5).
const TICKS: u64 = 100;

/// `None`: it has ended.
pub(crate) fn process(pid: u32) -> Option<ProcessInfo> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    let stat = read("stat")?;
    // The name may hold anything, blanks and parentheses too.
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let small = |at: usize| u32::try_from(number(at)).unwrap_or(0);
    let status = read("status")?;
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_whitespace().next()).unwrap_or_default().to_owned()
    };
    let command = read("cmdline")?.trim_end_matches('\0').replace('\0', " ");
    Some(ProcessInfo {
        pid,
        parent: small(1),
        uid: field("Uid:").parse().unwrap_or(0),
        state: fields.first().copied().unwrap_or_default().to_owned(),
        terminal: small(4),
        started_unix_ns: boot_ns()
            + i64::try_from(number(19) * (1_000_000_000 / TICKS)).unwrap_or(0),
        cpu_ms: (number(11) + number(12)) * (1000 / TICKS),
        memory_bytes: number(20),
        resident_bytes: field("VmRSS:").parse::<u64>().unwrap_or(0) << 10,
        threads: small(17),
        nice: fields.get(16).and_then(|text| text.parse().ok()).unwrap_or(0),
        command: if command.is_empty() { format!("[{name}]") } else { command },
        name,
    })
}

/// When the kernel was booted, nanoseconds since the Unix epoch.
fn boot_ns() -> i64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0).saturating_mul(1_000_000_000)
}

/// Counters of the interfaces in a process's network namespace, loopback left out.
pub(crate) fn networks(pid: u32) -> Vec<NetworkCounters> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    hyper_network::counters::read(&text).into_iter().map(hyper_pod::network_counters).collect()
}

/// File that counts the kills of a process's memory cgroup, and the key in it. Of version 1 and 2.
pub(crate) fn oom_file(pid: u32) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut unified = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        if controllers.split(',').any(|controller| controller == "memory") {
            let root = Path::new("/sys/fs/cgroup/memory");
            return Some(root.join(path).join("memory.oom_control"));
        }
        if controllers.is_empty() {
            unified = Some(Path::new("/sys/fs/cgroup").join(path).join("memory.events"));
        }
    }
    unified
}

/// Whether the kernel has killed something there for want of memory.
pub(crate) fn oom_killed(file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.is_some_and(|count| count.trim() != "0")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let own = process(std::process::id()).unwrap();
        assert!(own.threads > 0 && own.resident_bytes > 0 && !own.command.is_empty(), "{own:?}");
        let age = hyper_stdio::now_ns() - own.started_unix_ns;
        assert!((-2_000_000_000..600_000_000_000).contains(&age), "{age}");
        assert_eq!(process(u32::MAX), None);
    }
}
