//! Between the pod's words and protobuf.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::ttrpc::{self, Code};
use hyper_link::message::{ProcessId, Stats};
use hyper_pod::{Kind, PodError, chain};

/// Nanoseconds since the Unix epoch.
pub fn timestamp(unix_ns: i64) -> Timestamp {
    Timestamp {
        seconds: unix_ns.div_euclid(1_000_000_000),
        // Below 10^9.
        nanos: i32::try_from(unix_ns.rem_euclid(1_000_000_000)).unwrap_or_default(),
        ..Timestamp::default()
    }
}

/// The Task API names the first process by an empty exec id.
pub fn process(container: &str, exec: &str) -> ProcessId {
    ProcessId {
        container: container.to_owned(),
        exec: Some(exec.to_owned()).filter(|exec| !exec.is_empty()),
    }
}

/// With its causes, and the code that containerd's clients tell apart.
pub fn status(error: &PodError) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::Unsupported => Code::UNIMPLEMENTED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Internal => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, chain(error)))
}

/// containerd's `typeurl` writes the bare name of the message.
pub fn any(message: &dyn MessageDyn) -> Result<Any, containerd_shim_protos::protobuf::Error> {
    Ok(Any {
        type_url: message.descriptor_dyn().full_name().to_owned(),
        value: message.write_to_bytes_dyn()?,
        ..Any::default()
    })
}

/// `io.containerd.cgroups.v2.Metrics`: the guest's cgroups are v2, whatever the host has.
pub fn metrics(stats: &Stats) -> Metrics {
    let field = MessageField::some;
    let mut metrics = Metrics::new();
    metrics.pids = field(PidsStat {
        current: stats.processes,
        limit: stats.processes_limit,
        ..PidsStat::default()
    });
    metrics.cpu = MessageField::some(CPUStat {
        usage_usec: stats.cpu_usage_us,
        user_usec: stats.cpu_user_us,
        system_usec: stats.cpu_system_us,
        throttled_usec: stats.cpu_throttled_us,
        ..CPUStat::default()
    });
    metrics.memory = MessageField::some(MemoryStat {
        usage: stats.memory_bytes,
        usage_limit: if stats.memory_limit_bytes == 0 {
            u64::MAX
        } else {
            stats.memory_limit_bytes
        },
        max_usage: stats.memory_peak_bytes,
        inactive_file: stats.memory_inactive_file_bytes,
        ..MemoryStat::default()
    });
    metrics.memory_events =
        MessageField::some(MemoryEvents { oom_kill: stats.oom_kills, ..MemoryEvents::default() });
    let io = IOEntry {
        rbytes: stats.read_bytes,
        wbytes: stats.write_bytes,
        rios: stats.read_operations,
        wios: stats.write_operations,
        ..IOEntry::default()
    };
    metrics.io = MessageField::some(IOStat { usage: vec![io], ..IOStat::default() });
    metrics
}

#[cfg(test)]
mod test {
    use super::*;
    use containerd_shim_protos::protobuf::Message as _;

    #[test]
    fn metrics_have_containerds_type() {
        let stats = Stats { memory_bytes: 5, cpu_usage_us: 7, ..Stats::default() };
        let any = any(&metrics(&stats)).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let read = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((read.memory.usage, read.cpu.usage_usec), (5, 7));
    }

    #[test]
    fn times_before_the_epoch_have_positive_nanoseconds() {
        let stamp = timestamp(-1);
        assert_eq!((stamp.seconds, stamp.nanos), (-1, 999_999_999));
    }
}
