//! The end of the guest.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::system::{RebootCommand, reboot};

/// How the guest ends: by restarting, for machines that cannot switch themselves off.
static RESTART: AtomicBool = AtomicBool::new(false);

/// The machine has no power switch: a restart, which its hypervisor takes for the end.
pub(crate) fn end_by_restart() {
    RESTART.store(true, Ordering::Relaxed);
}

/// Writes everything back and switches the guest off, with whatever still runs.
pub(crate) fn off() -> ! {
    rustix::fs::sync();
    let restart = RESTART.load(Ordering::Relaxed);
    let command = if restart { RebootCommand::Restart } else { RebootCommand::PowerOff };
    let error = reboot(command);
    panic!("the guest does not end: {error:?}");
}
