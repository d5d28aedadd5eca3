//! The end of the guest.

use std::{fs, path::Path};

use rustix::system::{RebootCommand, reboot};

/// Writes everything back and ends the guest, with whatever still runs.
pub(crate) fn off() -> ! {
    rustix::fs::sync();
    let command = if has_switch() { RebootCommand::PowerOff } else { RebootCommand::Restart };
    let error = reboot(command);
    panic!("the guest does not end: {error:?}");
}

/// Whether the machine can switch itself off. Without, Linux would halt for ever; a restart is what
/// such machines' hypervisors take for the end.
fn has_switch() -> bool {
    Path::new("/sys/firmware/acpi").exists()
        || fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("User Mode Linux"))
}
