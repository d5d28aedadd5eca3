//! A container's counters, from the cgroup metrics that supervisors send.
//!
//! Task `Stats` answers with containerd's message for cgroup v1 or v2, packed in an `Any`; both
//! are brought to one form here.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

/// Counters; zero where they are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_usage_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled_ns: u64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    pub memory_inactive_file_bytes: u64,
    pub memory_failures: u64,
    pub pids: u64,
    pub pids_limit: u64,
    /// Sums over all disks.
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_operations: u64,
    pub write_operations: u64,
    /// Of the pod, each interface.
    pub networks: Vec<hyper_task::pod::NetworkCounters>,
}

/// `None` for a message of another kind.
pub(crate) fn read(any: &Any) -> Option<Stats> {
    if any.type_url.contains("v2") {
        v2::Metrics::parse_from_bytes(&any.value).ok().map(|metrics| from_v2(&metrics))
    } else {
        v1::Metrics::parse_from_bytes(&any.value).ok().map(|metrics| from_v1(&metrics))
    }
}

fn from_v2(metrics: &v2::Metrics) -> Stats {
    let (cpu, memory) = (&metrics.cpu, &metrics.memory);
    let mut stats = Stats {
        cpu_usage_ns: cpu.usage_usec.saturating_mul(1000),
        cpu_user_ns: cpu.user_usec.saturating_mul(1000),
        cpu_system_ns: cpu.system_usec.saturating_mul(1000),
        cpu_periods: cpu.nr_periods,
        cpu_throttled_periods: cpu.nr_throttled,
        cpu_throttled_ns: cpu.throttled_usec.saturating_mul(1000),
        memory_bytes: memory.usage,
        memory_limit_bytes: memory.usage_limit,
        memory_inactive_file_bytes: memory.inactive_file,
        memory_failures: metrics.memory_events.oom_kill.max(metrics.memory_events.oom),
        pids: metrics.pids.current,
        pids_limit: metrics.pids.limit,
        ..Stats::default()
    };
    for device in &metrics.io.usage {
        stats.read_bytes += device.rbytes;
        stats.write_bytes += device.wbytes;
        stats.read_operations += device.rios;
        stats.write_operations += device.wios;
    }
    stats
}

fn from_v1(metrics: &v1::Metrics) -> Stats {
    let (cpu, memory) = (&metrics.cpu, &metrics.memory);
    let mut stats = Stats {
        cpu_usage_ns: cpu.usage.total,
        cpu_user_ns: cpu.usage.user,
        cpu_system_ns: cpu.usage.kernel,
        cpu_periods: cpu.throttling.periods,
        cpu_throttled_periods: cpu.throttling.throttled_periods,
        cpu_throttled_ns: cpu.throttling.throttled_time,
        memory_bytes: memory.usage.usage,
        memory_limit_bytes: memory.usage.limit,
        memory_inactive_file_bytes: memory.total_inactive_file,
        memory_failures: memory.usage.failcnt,
        pids: metrics.pids.current,
        pids_limit: metrics.pids.limit,
        ..Stats::default()
    };
    let sum = |entries: &[v1::BlkIOEntry], operation: &str| -> u64 {
        let wanted = |entry: &&v1::BlkIOEntry| entry.op.eq_ignore_ascii_case(operation);
        entries.iter().filter(wanted).map(|entry| entry.value).sum()
    };
    let io = &metrics.blkio;
    stats.read_bytes = sum(&io.io_service_bytes_recursive, "read");
    stats.write_bytes = sum(&io.io_service_bytes_recursive, "write");
    stats.read_operations = sum(&io.io_serviced_recursive, "read");
    stats.write_operations = sum(&io.io_serviced_recursive, "write");
    stats
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn both_versions_are_understood() {
        let mut new = v2::Metrics::new();
        new.memory.mut_or_insert_default().usage = 5;
        new.cpu.mut_or_insert_default().usage_usec = 7;
        let any = Any {
            type_url: "io.containerd.cgroups.v2.Metrics".into(),
            value: new.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let stats = read(&any).unwrap();
        assert_eq!((stats.memory_bytes, stats.cpu_usage_ns), (5, 7000));
        let mut old = v1::Metrics::new();
        old.pids.mut_or_insert_default().current = 3;
        let any = Any {
            type_url: "io.containerd.cgroups.v1.Metrics".into(),
            value: old.write_to_bytes().unwrap(),
            ..Any::default()
        };
        assert_eq!(read(&any).unwrap().pids, 3);
    }
}
