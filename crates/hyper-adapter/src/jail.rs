//! A jail in the words of the port.

use hyper_hypervisor::{CpuShare, IoLimit, VmError, VmUsage, VmWaits};
use hyper_jail::{IoHeld, IoRates, JailError, JailSpec, Jailed};

use crate::chain;

/// Starts a guest's process; what the jail lacks on this host is logged.
pub async fn spawn(hypervisor: &'static str, pod: &str, spec: JailSpec) -> Result<Jailed, VmError> {
    let jailed = hyper_jail::spawn(spec).await.map_err(refused(hypervisor))?;
    for missing in jailed.missing() {
        tracing::warn!(pod, "jail without: {missing}");
    }
    Ok(jailed)
}

/// A jail's failure, for `map_err`.
pub fn refused(hypervisor: &'static str) -> impl FnOnce(JailError) -> VmError {
    move |error| match error {
        JailError::NoLauncher { .. } => VmError::Missing {
            hypervisor,
            what: "the program `hyper-jail`".to_owned(),
            hint: error.to_string(),
        },
        JailError::Unsupported { .. } => VmError::Unsupported { hypervisor, what: chain(&error) },
        _ => VmError::Jail { hypervisor, what: chain(&error) },
    }
}

/// Bounds the CPU time of all in the jail, and which CPUs it runs on. Each holds where the other cannot.
pub fn set_cpu(hypervisor: &'static str, jailed: &Jailed, share: &CpuShare) -> Result<(), VmError> {
    let placed = jailed.set_cpus(share.cpus.as_ref()).map_err(refused(hypervisor));
    let bound = jailed.set_cpu(share.weight, share.quota).map_err(refused(hypervisor));
    placed.and(bound)
}

/// Bounds what all in the jail read from and write to devices of the host.
pub fn set_io(
    hypervisor: &'static str,
    jailed: &Jailed,
    limits: &[IoLimit],
) -> Result<(), VmError> {
    limits.iter().try_for_each(|limit| bound(jailed, limit).map(drop).map_err(refused(hypervisor)))
}

/// Does the same for a guest whose process can hold limits by itself, if `own`; returns what is left
/// to it of each limit. Where this host's cgroups hold nothing the reason comes with it.
pub fn set_io_or_rest(
    hypervisor: &'static str,
    jailed: &Jailed,
    limits: &[IoLimit],
    own: bool,
) -> Result<(Vec<IoLimit>, Option<VmError>), VmError> {
    let (mut rest, mut why) = (Vec::new(), None);
    for limit in limits {
        let device = limit.device;
        rest.push(match bound(jailed, limit) {
            // What the process held before, it holds no more.
            Ok(IoHeld::All) => IoLimit { device, ..IoLimit::default() },
            // A guest's disks are written through the page cache. What a flush writes of it would
            // be counted, and so wait twice.
            Ok(IoHeld::Direct) if own => {
                let reads = IoLimit { write_bytes: None, write_operations: None, ..*limit };
                bound(jailed, &reads).map_err(refused(hypervisor))?;
                IoLimit { read_bytes: None, read_operations: None, ..*limit }
            }
            Ok(IoHeld::Direct) => continue,
            Err(error @ JailError::Unsupported { .. }) => {
                why = Some(refused(hypervisor)(error));
                *limit
            }
            Err(error) => return Err(refused(hypervisor)(error)),
        });
    }
    Ok((rest, why))
}

fn bound(jailed: &Jailed, limit: &IoLimit) -> Result<IoHeld, JailError> {
    let rates = IoRates {
        read_bytes: limit.read_bytes,
        write_bytes: limit.write_bytes,
        read_operations: limit.read_operations,
        write_operations: limit.write_operations,
    };
    jailed.set_io(limit.device, rates)
}

/// How long all in the jail have waited for the host.
pub async fn waits(jailed: &Jailed) -> VmWaits {
    let hyper_jail::Waits { ready, blocked } = jailed.waits().await;
    VmWaits { ready, blocked }
}

/// What all in the jail use on the host.
pub async fn usage(hypervisor: &'static str, jailed: &Jailed) -> Result<VmUsage, VmError> {
    let used = jailed.usage().await.map_err(refused(hypervisor))?;
    Ok(VmUsage {
        cpu: used.cpu,
        resident_bytes: used.resident_bytes,
        private_bytes: used.private_bytes,
    })
}
