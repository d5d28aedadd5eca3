//! The machine as QEMU's arguments and the kernel's command line. Pure.
//!
//! Two sizes of microvm (QEMU, hw/i386/microvm.c), and q35 for guests with more devices than
//! microvm has room for; each virtio device in a place ("bus") of its own:
//!
//! | | places | boots | powers off |
//! | --- | --- | --- | --- |
//! | small microvm, `acpi=off` | 8 transports | fastest, never hung on a busy host | halts, see `console.rs` |
//! | large microvm, `acpi=on,ioapic2=on` | 24 transports | 0.1–0.2 s slower under TCG | by itself |
//! | q35 | 96 PCI functions | 0.4–0.5 s slower under TCG: firmware, PCI | by itself |
//!
//! Guests see the transports from the last to the first, and PCI functions from the first to the
//! last. The link takes the one seen first, since its port is named after the device's index
//! (`vport0p1`); then come the disks (`vda`, `vdb`, … in the order of the configuration),
//! placeholders for disks that are added later, and the rest.

use hyper_adapter::Places;
use hyper_hypervisor::VmConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::accelerator::Chosen;

/// Places of each machine.
const SMALL: usize = 8;
const LARGE: usize = 24;
const Q35: usize = 96;
/// Functions of a PCI slot, and the first slot that q35 does not use itself.
const FUNCTIONS: usize = 8;
const FIRST_SLOT: usize = 1;
/// Link, entropy, balloon.
const FIXED: usize = 3;
/// The small machine is for guests that have room for one more container's disks in it.
const LEAST_SPARES: usize = 2;
/// Placeholders of the larger machines; each costs some milliseconds at boot.
const LARGE_SPARES: usize = 12;
/// Longest queue of a device. QEMU's virtio-mmio offers 1024 entries for each, which drivers fill
/// with memory; hyperkernel can be told better (kernel/patches/0010).
const QUEUE: u32 = 128;
/// Translated code that TCG keeps, MiB. QEMU's own default is 1 GiB of host memory.
pub const TRANSLATIONS_MIB: u64 = 128;
/// Size that a placeholder shows: larger than any disk that may come.
const PLACEHOLDER_BYTES: u64 = 1 << 40;

/// Descriptor numbers inside the jail.
pub mod fd {
    pub const CONTROL: i32 = 3;
    pub const LINK: i32 = 4;
    pub const CONSOLE: i32 = 5;
    /// Taps, vhost and disks follow.
    pub const FIRST_FREE: i32 = 6;
}

/// A disk of the launch, ready for QEMU.
#[derive(Debug, Clone)]
pub struct DiskArgs {
    /// Value of `-blockdev`.
    pub node: Value,
    /// Descriptors and the set each is in: `-add-fd fd=…,set=…`.
    pub sets: Vec<(i32, u32)>,
}

/// A network device, ready for QEMU.
#[derive(Debug, Clone)]
pub struct NicArgs {
    pub tap: i32,
    pub vhost: Option<i32>,
    pub mac: String,
    pub mtu: u32,
}

/// What QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Small,
    Large,
    Q35,
}

impl Kind {
    const fn places(self) -> usize {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
            Self::Q35 => Q35,
        }
    }
}

/// The size and population of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub kind: Kind,
    /// Disks at launch.
    pub disks: usize,
    /// Placeholders for disks that come later.
    pub spares: usize,
    pub nics: usize,
}

impl Machine {
    /// The machine for so many disks and network devices. A guest without any disk for which some
    /// come `late` is one whose containers all do (a Kubernetes pod): it gets the large machine.
    pub fn of(disks: usize, nics: usize, late: bool) -> Self {
        let room = |kind: Kind| kind.places() - FIXED - nics;
        let (kind, most) = if disks > room(Kind::Large) {
            (Kind::Q35, LARGE_SPARES)
        } else if late && (disks == 0 || disks + LEAST_SPARES > room(Kind::Small))
            || disks > room(Kind::Small)
        {
            (Kind::Large, LARGE_SPARES)
        } else {
            (Kind::Small, SMALL)
        };
        let spares = if late { most.min(room(kind).saturating_sub(disks)) } else { 0 };
        Self { kind, disks, spares, nics }
    }

    /// A virtio device as the `place`-th that the guest sees: QEMU's name of its kind `stem` on
    /// this machine, `properties`, and where it goes.
    fn device(self, stem: &str, properties: &str, place: usize) -> String {
        if self.kind == Kind::Q35 {
            let (slot, function) = (FIRST_SLOT + place / FUNCTIONS, place % FUNCTIONS);
            let rom = if stem == "virtio-net" { ",romfile=" } else { "" };
            let at = format!("bus=pcie.0,addr={slot:x}.{function},multifunction=on");
            return format!("{stem}-pci{rom},{properties},{at}");
        }
        let bus = (self.kind.places() - 1).saturating_sub(place);
        format!("{stem}-device,{properties},bus=virtio-mmio-bus.{bus}")
    }
}

/// Disks that a guest with so many network devices can have.
pub const fn disk_slots(nics: usize) -> usize {
    Q35 - FIXED - nics
}

/// QEMU's name of a disk's block node; a disk that is added later takes over its placeholder's.
pub fn block_node(disk: usize) -> String {
    format!("disk{disk}")
}

/// All of QEMU's arguments but the program's name.
pub fn arguments(
    config: &VmConfig,
    chosen: &Chosen,
    machine: Machine,
    (disks, nics, share): (&[DiskArgs], &[NicArgs], Option<i32>),
) -> Vec<String> {
    let mut args = Args::default();
    base(&mut args, config, chosen, machine);
    args.pair("-chardev", format!("socket,id=link,fd={}", fd::LINK));
    args.pair("-device", machine.device("virtio-serial", "id=ports,max_ports=2", 0));
    args.pair("-device", "virtserialport,bus=ports.0,nr=1,chardev=link,name=hyper.link");
    for (at, disk) in disks.iter().enumerate() {
        for (fd, set) in &disk.sets {
            args.pair("-add-fd", format!("fd={fd},set={set}"));
        }
        args.pair("-blockdev", disk.node.to_string());
        args.pair("-device", block_device(machine, at));
    }
    for spare in 0..machine.spares {
        let at = machine.disks + spare;
        args.pair("-blockdev", placeholder(at, Places::is_read_only(spare)).to_string());
        args.pair("-device", block_device(machine, at));
    }
    others(&mut args, machine, nics);
    if let (Some(fd), Some(share)) = (share, &config.share) {
        shared(&mut args, config, fd, machine, &share.tag, nics.len());
    }
    args.pair("-append", command_line(config, chosen, machine));
    args.0
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }

    fn word(&mut self, word: &str) {
        self.0.push(word.to_owned());
    }
}

fn base(args: &mut Args, config: &VmConfig, chosen: &Chosen, machine: Machine) {
    // `rtc=on`: without it Linux 6.1 waits a second for a clock that is not there.
    // `x-option-roms=off`: nothing to boot from but -kernel.
    let microvm = "rtc=on,isa-serial=on,x-option-roms=off";
    args.pair(
        "-machine",
        match machine.kind {
            Kind::Small => format!("microvm,acpi=off,{microvm}"),
            Kind::Large => format!("microvm,acpi=on,ioapic2=on,{microvm}"),
            Kind::Q35 => "q35,smbus=off,sata=off,usb=off,vmport=off,i8042=off".to_owned(),
        },
    );
    if chosen.kvm {
        args.pair("-accel", "kvm");
    } else {
        args.pair("-accel", format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}"));
    }
    let all = if chosen.kvm { "host" } else { "max" };
    args.pair("-cpu", chosen.cpu.as_deref().unwrap_or(all));
    args.pair("-smp", config.vcpus.to_string());
    args.pair("-m", format!("{}k", config.memory_bytes >> 20 << 10));
    args.pair("-name", format!("{},debug-threads=on", config.id));
    for word in ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-S"] {
        args.word(word);
    }
    args.pair("-display", "none");
    // QEMU's own filter, behind the jail's: no new programs, no privileges, no odd calls.
    args.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    args.pair("-L", crate::jail::DATA);
    args.pair("-kernel", crate::jail::KERNEL);
    args.pair("-initrd", crate::jail::INITRAMFS);
    args.pair("-chardev", format!("socket,id=control,fd={}", fd::CONTROL));
    args.pair("-mon", "chardev=control,mode=control");
    args.pair("-chardev", format!("socket,id=console,fd={}", fd::CONSOLE));
    args.pair("-serial", "chardev:console");
}

/// The devices behind the disks.
fn others(args: &mut Args, machine: Machine, nics: &[NicArgs]) {
    let first = 1 + machine.disks + machine.spares;
    args.pair("-object", "rng-builtin,id=entropy");
    args.pair("-device", machine.device("virtio-rng", "rng=entropy", first));
    // The guest gives pages back by itself as it frees them.
    let balloon = "free-page-reporting=on,deflate-on-oom=on";
    args.pair("-device", machine.device("virtio-balloon", balloon, first + 1));
    for (at, nic) in nics.iter().enumerate() {
        let vhost = nic.vhost.map_or(String::new(), |fd| format!(",vhost=on,vhostfd={fd}"));
        args.pair("-netdev", format!("tap,id=net{at},fd={}{vhost}", nic.tap));
        let card = format!("netdev=net{at},mac={},host_mtu={}", nic.mac, nic.mtu);
        args.pair("-device", machine.device("virtio-net", &card, first + 2 + at));
    }
}

/// The device of shared directories, and guest memory that its process can map.
fn shared(args: &mut Args, config: &VmConfig, fd: i32, machine: Machine, tag: &str, nics: usize) {
    let place = 1 + machine.disks + machine.spares + 2 + nics;
    let size = config.memory_bytes >> 20 << 10;
    args.pair("-object", format!("memory-backend-memfd,id=memory,size={size}k,share=on"));
    args.pair("-machine", "memory-backend=memory");
    args.pair("-chardev", format!("socket,id=share,fd={fd}"));
    let device = format!("chardev=share,tag={tag},queue-size=1024");
    args.pair("-device", machine.device("vhost-user-fs", &device, place));
}

fn block_device(machine: Machine, disk: usize) -> String {
    // A host that is full is told to the guest: QEMU would rather stop the guest and wait, and
    // nobody would know what for.
    let properties = format!(
        "id=vd{disk},drive={},queue-size={QUEUE},werror=report,rerror=report",
        block_node(disk)
    );
    machine.device("virtio-blk", &properties, 1 + disk)
}

fn placeholder(disk: usize, read_only: bool) -> Value {
    json!({
        "driver": "raw",
        "node-name": block_node(disk),
        "read-only": read_only,
        "discard": "unmap",
        "file": {"driver": "null-co", "size": PLACEHOLDER_BYTES, "read-zeroes": true},
    })
}

/// The words the machine needs, then the caller's.
fn command_line(config: &VmConfig, chosen: &Chosen, machine: Machine) -> String {
    // panic and reboot: a triple fault ends QEMU, as -no-reboot says.
    let mut line = "console=ttyS0 quiet panic=-1 reboot=t hyper.link=/dev/vport0p1 \
                    8250.nr_uarts=1 no_timer_check"
        .to_owned();
    if machine.kind != Kind::Q35 {
        line.push_str(&format!(" virtio_mmio.queue_max={QUEUE}"));
    }
    line.push_str(match machine.kind {
        // Nor is there ACPI to look for: CPUs and interrupts are in the MP table.
        Kind::Small => " pci=off acpi=off",
        Kind::Large => " pci=off",
        Kind::Q35 => "",
    });
    if config.vcpus == 1 {
        // Else every LOCK prefix is patched away, one by one, with a TLB flush each.
        line.push_str(" noreplace-smp");
    }
    if !chosen.kvm {
        if config.vcpus == 1 && machine.kind == Kind::Small {
            // Calibrating the APIC timer is a busy wait of 200 ms. The large ones have no other.
            line.push_str(" nolapic_timer");
        }
        if let Some(khz) = chosen.tsc_khz {
            // TCG shows the host's TSC. Without the rate newer kernels find no reference on
            // microvm; without `reliable` a stalling host makes them leave the TSC for jiffies.
            line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
        }
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
    use hyper_hypervisor::GuestKernel;

    fn config(vcpus: u32) -> VmConfig {
        VmConfig {
            id: "p1".into(),
            kernel: GuestKernel {
                kernel: "/k".into(),
                initramfs: "/i".into(),
                extra_cmdline: vec!["a=b".into(), "c".into()],
            },
            vcpus,
            memory_bytes: (64 << 20) + 12345,
            disks: vec![],
            nics: vec![],
            late_disks: true,
            share: None,
            run_dir: "/r".into(),
            cgroup: None,
        }
    }

    fn chosen(kvm: bool) -> Chosen {
        let tsc_khz = Some(2_000_000);
        Chosen {
            kvm,
            refused: false,
            kvm_works: kvm,
            kvm_detail: String::new(),
            tsc_khz,
            cpu: None,
        }
    }

    fn disk(at: usize) -> DiskArgs {
        DiskArgs { node: json!({"node-name": block_node(at)}), sets: vec![(10, 1)] }
    }

    fn value<'a>(args: &'a [String], name: &str) -> &'a str {
        let at = args.iter().position(|arg| arg == name).unwrap();
        &args[at + 1]
    }

    #[test]
    fn every_device_has_a_place_of_its_own() {
        for disks in 0..=disk_slots(2) {
            for nics in 0..=2 {
                let machine = Machine::of(disks, nics, true);
                let all: Vec<DiskArgs> = (0..disks).map(disk).collect();
                let nic =
                    NicArgs { tap: 9, vhost: None, mac: "02:00:00:00:00:01".into(), mtu: 1500 };
                let cards = vec![nic; nics];
                let args = arguments(&config(1), &chosen(false), machine, (&all, &cards, None));
                let mut places: Vec<&str> = args
                    .iter()
                    .filter(|arg| arg.starts_with("virtio-"))
                    .filter_map(|arg| arg.split_once(",bus=").map(|(_, place)| place))
                    .collect();
                let devices = FIXED + nics + disks + machine.spares;
                assert!(devices <= machine.kind.places(), "{disks} {nics}");
                assert_eq!(places.len(), devices, "{disks} {nics}");
                places.sort_unstable();
                places.dedup();
                assert_eq!(places.len(), devices, "{disks} {nics}");
            }
        }
    }

    #[test]
    fn many_disks_need_pci() {
        let machine = Machine::of(40, 1, true);
        assert_eq!(machine.kind, Kind::Q35);
        let last = block_device(machine, 39);
        assert!(last.starts_with("virtio-blk-pci,id=vd39,drive=disk39,"), "{last}");
        assert!(last.ends_with(",bus=pcie.0,addr=6.0,multifunction=on"), "{last}");
    }

    #[test]
    fn a_container_gets_the_small_machine_and_a_pod_the_large_one() {
        let machine = |kind, disks, spares| Machine { kind, disks, spares, nics: 1 };
        assert_eq!(Machine::of(2, 1, true), machine(Kind::Small, 2, 2));
        assert_eq!(Machine::of(0, 1, true), machine(Kind::Large, 0, 12));
        assert_eq!(Machine::of(0, 1, false), machine(Kind::Small, 0, 0));
        assert_eq!(Machine::of(3, 1, true).kind, Kind::Large);
        assert_eq!(Machine::of(3, 0, true).kind, Kind::Small);
    }

    #[test]
    fn the_command_line_fits_the_machine() {
        let small = Machine::of(2, 0, true);
        let line = |vcpus, kvm, machine| {
            let args = arguments(&config(vcpus), &chosen(kvm), machine, (&[], &[], None));
            value(&args, "-append").to_owned()
        };
        let one = line(1, false, small);
        for word in ["nolapic_timer", "noreplace-smp", "tsc_early_khz=2000000", "tsc=reliable"] {
            assert!(one.contains(word), "{word}: {one}");
        }
        assert!(one.ends_with(" a=b c") && one.contains("hyper.link=/dev/vport0p1"));
        assert!(!line(2, false, small).contains("nolapic_timer"));
        assert!(!line(1, false, Machine::of(0, 0, true)).contains("nolapic_timer"));
        assert!(!line(1, true, small).contains("tsc"));
        let args = arguments(&config(1), &chosen(false), small, (&[], &[], None));
        assert_eq!(value(&args, "-m"), "65536k");
    }
}
