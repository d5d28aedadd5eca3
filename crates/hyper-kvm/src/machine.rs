//! The shape of a guest: its command line, and the places for disks that come later. Pure.

use hyper_hypervisor::VmConfig;
use hyper_vmm::config::MAX_DISKS;

/// Places of a guest that starts with a container: room for one more container's disks.
const FEW: usize = 2;
/// Places of a guest without any disk: its containers all come later (a Kubernetes pod).
const MANY: usize = 12;

/// Places for disks that come later.
pub fn spares(disks: usize) -> usize {
    let wanted = if disks == 0 { MANY } else { FEW };
    wanted.min(MAX_DISKS.saturating_sub(disks))
}

/// Whether place `spare` takes read-only disks; the monitor alternates.
pub fn spare_is_read_only(spare: usize) -> bool {
    spare.is_multiple_of(2)
}

/// Device node of a disk in the guest (`vda` … `vdz`, `vdaa` …, see drivers/block/virtio_blk.c).
pub fn disk_node(disk: usize) -> String {
    let letter = |at: usize| char::from(b'a' + u8::try_from(at % 26).unwrap_or(0));
    match disk / 26 {
        0 => format!("/dev/vd{}", letter(disk)),
        more => format!("/dev/vd{}{}", letter(more - 1), letter(disk)),
    }
}

/// The words the machine needs, then the caller's.
pub fn command_line(config: &VmConfig) -> String {
    // panic and reboot: a triple fault, which the monitor sees as a reset. No firmware, PCI or
    // ACPI to look for: CPUs and interrupts are in the MP table.
    let mut line = "console=ttyS0 quiet panic=-1 reboot=t hyper.link=/dev/vport0p1 \
                    8250.nr_uarts=1 no_timer_check pci=off acpi=off"
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
    fn disks_are_named_as_linux_does() {
        assert_eq!(
            [0, 25, 26, 52].map(disk_node),
            ["/dev/vda", "/dev/vdz", "/dev/vdaa", "/dev/vdba"]
        );
        assert_eq!([spares(0), spares(2), spares(63), spares(64)], [12, 2, 1, 0]);
    }
}
