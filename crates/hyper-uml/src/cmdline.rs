//! The kernel's command line. No secret may be on it: it is visible to the guest and to `ps`.

use hyper_hypervisor::VmConfig;

use crate::Separation;

/// Descriptor of the link inside the jail.
pub const LINK_FD: i32 = 3;
/// First descriptor of the taps.
pub const TAP_FD: i32 = 10;
/// Directory of guest memory and mconsole inside the jail.
pub const SCRATCH: &str = "/tmp";
/// Name of the guest's directory below [`SCRATCH`]; every jail has its own `/tmp`.
pub const UMID: &str = "m";
/// The socket of the shared directories' device inside the jail.
pub const SHARE: &str = "/share";
/// The initramfs inside the jail.
pub const INITRAMFS: &str = "/initramfs";

/// Arguments of the kernel, `argv[0]` included. `disks` is from [`crate::disk`]; `tsc` says that the host's clock is the TSC.
pub fn arguments(
    config: &VmConfig,
    separation: Separation,
    with_initramfs: bool,
    tsc: bool,
    disks: &[String],
) -> Vec<String> {
    let mut args = vec![
        "hyperkernel-um".to_owned(),
        format!("mem={}K", config.memory_bytes / 1024),
        format!("uml_dir={SCRATCH}"),
        format!("umid={UMID}"),
        match separation {
            Separation::Ptrace => "seccomp=off",
            Separation::Seccomp => "seccomp=on",
        }
        .to_owned(),
        // Messages of the boot cost time and tell nothing that an error does not tell again.
        "quiet".to_owned(),
        // The console is descriptor 1. No other terminals: each is a device.
        "con=none".to_owned(),
        "con0=fd:1".to_owned(),
        "ssl=none".to_owned(),
        format!("ssl0=fd:{LINK_FD}"),
        "hyper.link=/dev/ttyS0".to_owned(),
        // The supervisor starts guests, not the guest itself.
        "noreboot".to_owned(),
        "panic=-1".to_owned(),
    ];
    if with_initramfs {
        args.push(format!("initrd={INITRAMFS}"));
    }
    if tsc {
        // Programs read the clock without a system call (kernel/patches/0015).
        args.push("um_clock=tsc".to_owned());
    }
    args.extend_from_slice(disks);
    for (at, nic) in config.nics.iter().enumerate() {
        // vec=0: one frame per read and write; a tap is no socket, recvmmsg does not work on it.
        let fd = tap_fd(at);
        args.push(format!("vec{at}:transport=fd,fd={fd},vec=0,mac={},mtu={}", nic.mac, nic.mtu));
    }
    if config.share.is_some() {
        // 26 is VIRTIO_ID_FS.
        args.push(format!("virtio_uml.device={SHARE}:26"));
    }
    args.extend(config.kernel.extra_cmdline.iter().cloned());
    args
}

/// Descriptor of a tap inside the jail.
pub fn tap_fd(nic: usize) -> i32 {
    i32::try_from(nic).map_or(i32::MAX, |nic| TAP_FD.saturating_add(nic))
}
