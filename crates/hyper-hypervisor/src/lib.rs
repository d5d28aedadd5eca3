//! The port: what the supervisor needs of a hypervisor, and nothing that names one.
//!
//! ```text
//! Hypervisor::launch(VmConfig) ──► Vm: running ──pause──► paused ──resume──► running
//!                                      │ kill, guest power-off, crash
//!                                      ▼
//!                                   VmExit (once, from Vm::wait)
//! ```
//!
//! Invariants:
//! - Differences between hypervisors are [`Capabilities`]; asking for what is not there is
//!   [`VmError::Unsupported`], never a silent substitute.
//! - Whatever `launch` acquired (process, cgroup, files, namespaces) is released when the [`Vm`]
//!   is dropped or `launch` fails; `Vm::kill` returns only when the process is gone.
//! - A guest's bytes reach the host only through the link and the console, both bounded.
#![forbid(unsafe_code)]

mod capability;
mod check;
mod config;
mod console;
#[cfg(feature = "contract")]
pub mod contract;
mod error;
#[cfg(feature = "contract")]
pub mod fake;
mod probe;
mod vm;

pub use capability::{Capabilities, DiskModel, Wall};
pub use check::{Limits, open_extent};
pub use config::{Disk, Extent, GuestKernel, Nic, Share, VmConfig};
pub use console::{Console, Tail};
pub use error::VmError;
pub use probe::{Finding, Probe};
pub use vm::{Carrier, CpuShare, Hypervisor, IoLimit, Vm, VmExit, VmUsage, VmWaits};
