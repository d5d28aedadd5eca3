//! A jail in the words of the port.

use hyper_hypervisor::{CpuShare, IoLimit, VmError, VmUsage};
use hyper_jail::{IoRates, JailError, JailSpec, Jailed};

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

/// Bounds the CPU time of all in the jail.
pub fn set_cpu(hypervisor: &'static str, jailed: &Jailed, share: CpuShare) -> Result<(), VmError> {
    jailed.set_cpu(share.weight, share.quota).map_err(refused(hypervisor))
}

/// Bounds what all in the jail read from and write to devices of the host.
pub fn set_io(
    hypervisor: &'static str,
    jailed: &Jailed,
    limits: &[IoLimit],
) -> Result<(), VmError> {
    limits.iter().try_for_each(|limit| {
        let rates = IoRates {
            read_bytes: limit.read_bytes,
            write_bytes: limit.write_bytes,
            read_operations: limit.read_operations,
            write_operations: limit.write_operations,
        };
        jailed.set_io(limit.device, rates).map_err(refused(hypervisor))
    })
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
