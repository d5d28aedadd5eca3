//! Why a hypervisor refused.

use std::path::PathBuf;

/// Errors of the port.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The hypervisor has no such capability.
    #[error("hypervisor `{hypervisor}` cannot {what}")]
    Unsupported { hypervisor: &'static str, what: String },
    /// The guest has to let go of something first.
    #[error("hypervisor `{hypervisor}` cannot {what}: the guest still uses it")]
    Busy { hypervisor: &'static str, what: String },
    /// Its program, kernel or device is not on this host.
    #[error("hypervisor `{hypervisor}` needs {what}: {hint}")]
    Missing { hypervisor: &'static str, what: String, hint: String },
    #[error("memory {bytes} bytes is too small for a guest: at least {least} bytes")]
    MemoryTooSmall { bytes: u64, least: u64 },
    #[error(
        "the guest was to have {wanted} bytes of memory and has {got} after {seconds} s: its kernel \
         {why}"
    )]
    Memory { wanted: u64, got: u64, seconds: u64, why: &'static str },
    #[error("{what} `{}`", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The hypervisor process could not be started or ended at once.
    #[error("start hypervisor `{hypervisor}`: {detail}")]
    Launch { hypervisor: &'static str, detail: String },
    /// A part of the jail could not be had; `what` says which.
    #[error("jail of hypervisor `{hypervisor}`: {what}")]
    Jail { hypervisor: &'static str, what: String },
    /// The hypervisor did not answer its control channel.
    #[error("hypervisor `{hypervisor}` did not {what} within {seconds} s")]
    Silent { hypervisor: &'static str, what: &'static str, seconds: u64 },
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}
