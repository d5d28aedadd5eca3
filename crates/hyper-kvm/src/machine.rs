//! The shape of a guest: its command line, and the places for disks that come later. Pure.

use hyper_hypervisor::VmConfig;
use hyper_vmm::config::MAX_DISKS;

/// Places of a guest that starts with a container: room for one more container's disks.
const FEW: usize = 2;
/// Places of a guest without any disk: its containers all come later (a Kubernetes pod).
const MANY: usize = 12;

/// Places for disks that come later, if they do.
pub fn spares(disks: usize, late: bool) -> usize {
    let wanted = match disks {
        _ if !late => 0,
        0 => MANY,
        _ => FEW,
    };
    wanted.min(MAX_DISKS.saturating_sub(disks))
}

/// The words the machine needs, then the caller's.
pub fn command_line(config: &VmConfig) -> String {
    // Memory that is added while it runs is for what can be moved, as far as the kernel can do with
    // what else it has: so that it can be taken back.
    // panic and reboot: a triple fault, which the monitor sees as a reset. No firmware, PCI or
    // ACPI to look for: CPUs and interrupts are in the MP table.
    let mut line = "console=ttyS0 quiet panic=-1 reboot=t hyper.link=/dev/vport0p1 \
                    8250.nr_uarts=1 no_timer_check pci=off acpi=off \
                    memory_hotplug.online_policy=auto-movable"
        .to_owned();
    if config.vcpus == 1 {
        // Else every LOCK prefix is patched away, one by one.
        line.push_str(" noreplace-smp");
    }
    for word in &config.kernel.extra_cmdline {
        line.push(' ');
        line.push_str(word);
    }
    line
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_guest_without_disks_has_more_places() {
        let late = [0, 2, 63, 64].map(|disks| spares(disks, true));
        assert_eq!((late, spares(0, false)), ([12, 2, 1, 0], 0));
    }
}
