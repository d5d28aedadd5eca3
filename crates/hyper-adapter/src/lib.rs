//! What the adapters share whose hypervisor is one process in a jail of `hyper-jail`: the step from
//! the port's words to the jail's and back. It knows no hypervisor.
//!
//! ```text
//!  Descriptors ─► JailSpec ─► Process (jail, console, standard error) ─┐
//!                                            what is the adapter's own ┴► Guest ─► Kept: a Vm
//! ```
//! [`Kept`] is for hypervisors that are told to end, and whose guests halt; one whose process is
//! the guest takes the smaller parts only.
//!
//! Invariant: what a process says (standard error, console) is bounded, and only told, never obeyed.
#![forbid(unsafe_code)]

mod descriptors;
mod disks;
mod findings;
mod jail;
mod kept;
mod process;
mod saved;

use hyper_hypervisor::VmError;

pub use descriptors::{Descriptors, connect, pair, tap, taps, vhost_net};
pub use disks::{Places, check_stitched, node};
pub use findings::Findings;
pub use jail::{refused, set_cpu, set_io, spawn, usage, waits};
pub use kept::{Guest, Kept};
pub use process::{Name, Process};
pub use saved::{create_saved, open_saved};

/// Does `work`, which blocks, on a thread for such work.
///
/// # Errors
/// Those of the work; [`VmError::Io`] with `what` when it panicked.
pub async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, VmError> + Send + 'static,
) -> Result<T, VmError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(VmError::Io { what, source: std::io::Error::other(error) }))
}

/// An error and its sources, in one line: some of the port's errors carry text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
