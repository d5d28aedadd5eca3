//! A virtual machine monitor on KVM, made for pods and nothing else.
//!
//! ```text
//!  adapter ── control socket: Config, then requests with descriptors; answers, one event ──┐
//!                                                                                            ▼
//!  main thread    memory, kernel, devices, vCPUs; then answers requests          [control.rs]
//!  vcpu N         KVM_RUN; port and memory accesses go to the bus                [cpu.rs, bus.rs]
//!  one thread per device whose driver is there: kicks in, interrupts out         [virtio/*.rs]
//!  some more per disk, when its requests wait for the host's, if that has no io_uring
//!
//!  guest: building ─┬► running ⇄ paused ─► ended (told once, then the process exits)
//!      saved guest ─┘               └─ save ─► a file of state, a file of memory
//! ```
//! The guest has no firmware, no PCI, no ACPI: an MP table, a serial port for its last words, and
//! virtio-mmio devices and a generation id that its command line names.
//!
//! Invariants:
//! - Nothing is opened by name: all files are descriptors that were given; once the guest runs
//!   nothing could be (seccomp.rs).
//! - Whatever a guest writes is an offset, a length or an address that is checked before use; a
//!   guest that breaks a rule of virtio loses that device, nothing else.
//! - A device's thread owns its queues; nobody else touches them until it has been joined, but for
//!   the threads of a disk, which it ends itself.
//! - The process ends with its guest, and with its control socket.

mod boot;
mod bus;
pub mod config;
mod control;
mod cpu;
mod error;
mod event;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod generation;
mod growth;
mod images;
mod machine;
mod memory;
mod metrics;
mod save;
mod seccomp;
mod serial;
mod virtio;
pub mod wire;

pub use control::run;
pub use error::VmmError;

/// Whether disks can wait for this host's by io_uring.
///
/// # Errors
/// Why not: the kernel is older than Linux 5.10, or does not allow it.
pub fn io_uring() -> std::io::Result<()> {
    virtio::rings()
}
