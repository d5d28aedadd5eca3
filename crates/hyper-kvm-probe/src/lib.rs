//! Whether KVM on this host runs an unmodified kernel.
//!
//! Opening `/dev/kvm` proves little: there are kernels whose KVM answers every ioctl and then
//! cannot carry out what a kernel does at CPL 0 in long mode. So [`probe`] runs such code:
//!
//! ```text
//! open ─► API 12 ─► VM, memory, vCPU ─► long mode ─► step 1 … step n ─► Works
//!   │         │              │              │ exit that is not ours, or no exit in time
//!   └─────────┴──────────────┴──────────────┴──► KvmProblem, naming the step
//! ```
//! The guest cannot touch anything: it has 2 MiB of memory and no device. It runs in a thread of
//! its own, which is interrupted by a signal when it does not come back.

mod guest;
mod tsc;

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

pub use tsc::tsc_khz;

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmProblem {
    #[error("`{DEVICE}` cannot be opened: {0}")]
    Open(std::io::Error),
    #[error("`{DEVICE}` speaks API version {0}, not 12")]
    Version(i32),
    #[error("{doing} failed: {source}")]
    Ioctl { doing: &'static str, source: std::io::Error },
    /// The guest's code did not do what it does on a CPU.
    #[error("guest code at CPL 0 in 64-bit mode stopped at `{step}`: {how}")]
    Stopped { step: &'static str, how: String },
    #[error("guest code did not come back within {0:?}, at `{1}`")]
    Hung(Duration, &'static str),
}

/// Runs kernel-like code under KVM; `Ok` when all of it completed within `limit`. Blocks.
pub fn probe(limit: Duration) -> Result<(), KvmProblem> {
    let stop = Arc::new(AtomicBool::new(false));
    let (done, result) = mpsc::channel();
    let in_thread = Arc::clone(&stop);
    let thread = std::thread::Builder::new()
        .name("kvm-probe".to_owned())
        .spawn(move || {
            // Fails only when nobody waits any more.
            let _ = done.send(guest::run(&in_thread));
        })
        .map_err(|source| KvmProblem::Ioctl { doing: "starting a thread", source })?;
    match result.recv_timeout(limit) {
        Ok(found) => return found,
        Err(RecvTimeoutError::Disconnected) => {
            let how = "the probe's thread panicked".to_owned();
            return Err(KvmProblem::Stopped { step: "start", how });
        }
        Err(RecvTimeoutError::Timeout) => {}
    }
    stop.store(true, Ordering::SeqCst);
    // A signal makes KVM_RUN return; one that comes just before KVM_RUN is lost, hence the loop.
    for _ in 0..100 {
        interrupt(thread.as_pthread_t());
        if let Ok(found) = result.recv_timeout(Duration::from_millis(10)) {
            return match found {
                Err(KvmProblem::Hung(_, step)) => Err(KvmProblem::Hung(limit, step)),
                other => other,
            };
        }
    }
    Err(KvmProblem::Hung(limit, "unknown: it cannot be interrupted"))
}

/// The signal that interrupts the probe's thread: nothing else uses it.
fn signal() -> i32 {
    libc::SIGRTMIN() + 7
}

extern "C" fn ignore(_: i32) {}

fn interrupt(thread: libc::pthread_t) {
    // SAFETY: `action` is a valid sigaction whose handler does nothing and so is safe at any time;
    // `thread` has not been joined, so its handle is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(i32) as usize;
        libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
        libc::pthread_kill(thread, signal());
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// Any answer is right here; what counts is that it comes in time and tells a reason.
    #[test]
    fn answers_in_time() {
        let started = std::time::Instant::now();
        match probe(Duration::from_secs(2)) {
            Ok(()) => println!("KVM works"),
            Err(problem) => println!("{problem}"),
        }
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn the_tsc_is_between_half_and_ten_gigahertz() {
        let khz = tsc_khz(Duration::from_millis(50)).unwrap();
        assert!((500_000..10_000_000).contains(&khz), "{khz} kHz");
    }
}
