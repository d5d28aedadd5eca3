//! Puts a guest together: memory, kernel, devices with their places and interrupts, CPUs.
//!
//! Devices have a page of addresses each, in this order: link, disks, places for disks, network,
//! shared directories, entropy, balloon, memory that comes later. Linux numbers what it finds in the order of its command
//! line, so disks are `vda`, `vdb`, … and the link is `vport0p1`.

use std::fs::File;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BASE, Bus, STEP};
use crate::config::{
    self, Config, MAX_DISKS, MAX_EXTENTS, MAX_NIC_QUEUES, MAX_NICS, MAX_VCPUS, MIN_MEMORY, fd,
};
use crate::cpu::{self, Cpus};
use crate::event::{Event, Maker};
use crate::growth::Grows;
use crate::images::{self, Image, Mapped, Place};
use crate::memory::{self, Memory};
use crate::metrics::{Clock, Metrics, Phases};
use crate::save::{self, Growing, MachineState, State};
use crate::virtio::{
    Balloon, Block, Console, Device, Entropy, Host, KernelNet, Limits, Mem, Net, Pmem, Share,
    Transport,
};
use crate::wire::Rates;
use crate::{VmmError, boot, generation, seccomp, serial, virtio};

/// Interrupts that no device of a PC's own has, first those behind the ISA bus's.
const LINES: [u32; 17] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 9, 10, 11, 12, 14, 15];
/// Three pages that KVM wants on Intel's CPUs, outside of all memory.
const TSS: usize = 0xfffb_d000;
/// `notify` register of virtio-mmio.
const NOTIFY: u64 = 0x50;

/// A guest whose CPUs are parked.
#[derive(Debug)]
pub(crate) struct Machine {
    pub cpus: Cpus,
    bus: Arc<Bus>,
    /// Index of the first place for disks, and how many there are.
    spares: std::ops::Range<usize>,
    limits: Arc<Limits>,
    phases: Phases,
    /// Registers worth saving on this host.
    msrs: Vec<u32>,
    pit: bool,
    vm: VmFd,
    /// What the guest booted with, without mapped disks, which are in their files.
    memory: Memory,
    pub images: Mapped,
    grows: Option<Grows>,
}

/// Descriptors that were given by number; each can be taken once.
#[derive(Debug, Default)]
pub(crate) struct Given(Vec<i32>);

impl Given {
    /// Takes descriptor `number`.
    pub fn take(&mut self, number: i32) -> Result<OwnedFd, VmmError> {
        let refuse = |why: &str| VmmError::Config {
            what: "a descriptor",
            why: format!("number {number} {why}"),
        };
        if number < fd::CONTROL || self.0.contains(&number) {
            return Err(refuse("is not to be had"));
        }
        // SAFETY: asks about a number, whatever it is.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            return Err(refuse("is not open"));
        }
        self.0.push(number);
        // SAFETY: it is open, was given to this process at its start for nobody else to use (see
        // `config::fd`), and is taken only this once.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

impl Machine {
    /// Makes the guest.
    pub fn make(
        config: &Config,
        given: &mut Given,
        events: &Sender<Event>,
        clock: Clock,
    ) -> Result<Self, VmmError> {
        check(config)?;
        // SAFETY: the descriptor is open and owned by nobody else from here on.
        let kvm = unsafe { Kvm::from_raw_fd(given.take(fd::KVM)?.into_raw_fd()) };
        if kvm.get_api_version() != 12 {
            let why = format!("it speaks version {}, not 12", kvm.get_api_version());
            return Err(VmmError::Config { what: "/dev/kvm", why });
        }
        let mut phases = Phases::default();
        let template = cpu::template(&kvm)?;
        let saved = config.saved.map(|saved| Restored::open(config, saved, given, &template));
        let saved = saved.transpose()?;
        let vm = kvm.create_vm().map_err(VmmError::kvm("make a virtual machine"))?;
        let memory = match &saved {
            None => memory::take(config.memory_bytes, config.share.is_some(), config.pages)?,
            Some(saved) => Arc::clone(&saved.memory),
        };
        let (seen, places, images) = images::map(&memory, mapped(config, given)?)?;
        show_memory(&vm, &seen)?;
        let room = saved
            .as_ref()
            .map_or(Growing { bytes: config.growth_bytes, usable: 0 }, |saved| saved.state.growth);
        let (grows, reached) = Grows::make(config, room, &vm, &seen)?;
        // Hosts with AMD's CPUs have no use for it.
        let _ = vm.set_tss_address(TSS);
        vm.create_irq_chip().map_err(VmmError::kvm("make interrupt controllers"))?;
        let pit = !template.has_deadline_timer();
        if pit {
            // Its timer is what the kernel measures the APIC's with.
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
            vm.create_pit2(pit).map_err(VmmError::kvm("make a timer"))?;
        }
        generation::set(&memory)?;
        phases.memory = clock.now();

        let (maker, limits) = (Maker::new(events.clone()), Arc::new(Limits::default()));
        let host = Host { maker, limits: Arc::clone(&limits), rings: config.io_uring };
        let mut devices = devices(config, given, &places, &host)?;
        if let Some(grows) = &grows {
            devices.list.push(("mem".to_owned(), Box::new(Mem::new(Arc::clone(&grows.region)))));
        }
        let mut vcpus = Vec::new();
        match &saved {
            None => {
                let entry = load(config, given, &memory, devices.list.len())?;
                for index in 0..config.vcpus {
                    vcpus.push(cpu::make(&vm, &template, index, config.vcpus, entry)?);
                }
            }
            Some(saved) => {
                for (index, state) in (0..).zip(&saved.state.vcpus) {
                    vcpus.push(cpu::restore(&vm, index, state)?);
                }
                saved.state.machine.apply(&vm)?;
                generation::tell(&vm)?;
            }
        }
        phases.kernel = clock.now();

        let console = given.take(fd::CONSOLE)?;
        nonblocking(&console)?;
        let port = serial::Port::new(line(&vm, serial::IRQ)?, console);
        let mut transports = Vec::new();
        for (at, (name, device)) in devices.list.into_iter().enumerate() {
            let foreign = device.is_served_elsewhere();
            transports.push(attach(&vm, &reached, at, name, device, foreign)?);
        }
        if let Some(saved) = saved {
            saved.load_devices(&mut transports)?;
        }
        let devices_done = transports.into_iter().map(Mutex::new).collect();
        let bus = Arc::new(Bus { serial: Mutex::new(port), devices: devices_done });
        phases.devices = clock.now();

        seccomp::leave_start().map_err(VmmError::io("install a filter of system calls"))?;
        let cpus = Cpus::start(vcpus, &bus, events)?;
        phases.vcpus = clock.now();
        let msrs = kvm.get_msr_index_list().map_err(VmmError::kvm("list registers"))?;
        let msrs = msrs.as_slice().to_vec();
        let spares = devices.spares;
        Ok(Self { cpus, bus, spares, limits, phases, msrs, pit, vm, memory, images, grows })
    }

    /// Starts what is parked: devices that have their driver already, then the CPUs.
    pub fn go_on(&self) {
        self.each(Transport::go_on);
        self.cpus.resume();
    }

    /// Writes all of the paused guest to the files.
    pub fn save(&self, state: &mut File, memory: &File) -> Result<(), VmmError> {
        let refuse = |why: String| VmmError::Config { what: "a saved guest", why };
        if !self.cpus.paused() {
            return Err(refuse("the guest runs: pause it first".to_owned()));
        }
        let mut cannot = None;
        self.each(|device| cannot = cannot.or(device.cannot_be_saved()));
        if let Some(why) = cannot {
            return Err(refuse(why.to_owned()));
        }
        // What the devices still do is done before memory is looked at; they go on afterwards,
        // for a guest that does.
        self.each(Transport::halt);
        let saved = self.write(state, memory);
        self.each(Transport::go_on);
        saved
    }

    fn write(&self, state: &mut File, memory: &File) -> Result<(), VmmError> {
        let mut devices = Vec::new();
        self.each(|device| devices.push(device.save()));
        let saved = State {
            vcpus: self.cpus.save(&self.msrs)?,
            memory_bytes: memory::bytes(&self.memory),
            growth: self.grows.as_ref().map(Grows::room).unwrap_or_default(),
            machine: MachineState::of(&self.vm, self.pit)?,
            devices,
        };
        save::write_memory(&self.memory, memory)?;
        saved.write(state)
    }

    fn each(&self, mut what: impl FnMut(&mut Transport)) {
        for device in &self.bus.devices {
            what(&mut device.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Puts a disk into spare place `place`.
    pub fn add_disk(&self, place: usize, file: virtio::File) -> Result<(), VmmError> {
        self.at_place(place, "put a disk into it", |device| device.fill(file))
    }

    /// Takes the disk out of spare place `place`. Its files are closed on return.
    pub fn remove_disk(&self, place: usize) -> Result<(), VmmError> {
        self.at_place(place, "take its disk", Transport::empty)
    }

    /// Bounds what disks move whose files are on `devices`.
    pub fn limit(&self, devices: Vec<u64>, rates: Rates) {
        self.limits.set(devices, rates);
    }

    /// Has the guest asked to have `bytes` of memory.
    pub fn set_memory(&self, bytes: u64) -> Result<(), VmmError> {
        self.grows()?.ask(bytes, &self.vm, |memory| {
            let mut devices = self.bus.devices.iter();
            devices.try_for_each(|device| {
                let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
                device.extend(Arc::clone(memory)).map_err(|source| VmmError::Device {
                    device: device.metrics().name,
                    doing: "reach more memory",
                    source,
                })
            })
        })
    }

    /// Bytes that the guest is asked to have, and that it has.
    pub fn memory(&self) -> (u64, u64) {
        let booted = memory::bytes(&self.memory);
        let more = self.grows.as_ref().map_or((0, 0), Grows::more);
        (booted + more.0, booted + more.1)
    }

    fn grows(&self) -> Result<&Grows, VmmError> {
        self.grows.as_ref().ok_or_else(|| {
            let why = "this guest was started without room for it".to_owned();
            VmmError::Config { what: "other memory", why }
        })
    }

    fn at_place(
        &self,
        place: usize,
        doing: &'static str,
        what: impl FnOnce(&mut Transport) -> std::io::Result<()>,
    ) -> Result<(), VmmError> {
        let at = self.spares.start.checked_add(place).filter(|at| self.spares.contains(at));
        let device = at.and_then(|at| self.bus.devices.get(at)).ok_or_else(|| {
            let why = format!("there is no place {place}, only {}", self.spares.len());
            VmmError::Config { what: "a place for a disk", why }
        })?;
        let done = what(&mut device.lock().unwrap_or_else(PoisonError::into_inner));
        done.map_err(|source| VmmError::Device { device: format!("place {place}"), doing, source })
    }

    pub fn metrics(&self) -> Metrics {
        let devices = self.bus.devices.iter();
        Metrics {
            exits: self.cpus.exits.read(),
            devices: devices
                .map(|device| device.lock().unwrap_or_else(PoisonError::into_inner).metrics())
                .collect(),
            phases: self.phases,
        }
    }

    /// The last words of a guest that is gone: its console, and what its disks still have to do.
    pub fn finish(&self) {
        self.bus.serial.lock().unwrap_or_else(PoisonError::into_inner).finish();
        self.each(Transport::halt);
    }
}

/// A saved guest that fits what is asked for.
struct Restored {
    state: State,
    memory: Memory,
}

impl Restored {
    fn open(
        config: &Config,
        saved: config::Saved,
        given: &mut Given,
        host: &cpu::Template,
    ) -> Result<Self, VmmError> {
        let state = State::read(&mut File::from(given.take(saved.state)?))?;
        let file = File::from(given.take(saved.memory)?);
        let refuse = |why: String| VmmError::Config { what: "the saved guest", why };
        let (vcpus, memory_bytes) = (state.vcpus.len(), state.memory_bytes);
        if vcpus != config.vcpus as usize || memory_bytes != config.memory_bytes {
            let (wanted, bytes) = (config.vcpus, config.memory_bytes);
            let why = format!(
                "it has {vcpus} CPUs and {memory_bytes} bytes of memory, wanted are {wanted} and {bytes}"
            );
            return Err(refuse(why));
        }
        if config.share.is_some() {
            return Err(refuse("it has no shared directories".to_owned()));
        }
        state.check_cpu(host)?;
        let memory = memory::copy(memory_bytes, file)?;
        Ok(Self { state, memory })
    }

    fn load_devices(self, transports: &mut [Transport]) -> Result<(), VmmError> {
        let refuse = |why: String| VmmError::Config { what: "the saved guest", why };
        let (saved, here) = (self.state.devices.len(), transports.len());
        if saved != here {
            return Err(refuse(format!("it has {saved} devices, wanted are {here}")));
        }
        for (transport, state) in transports.iter_mut().zip(self.state.devices) {
            transport.load(state).map_err(refuse)?;
        }
        Ok(())
    }
}

/// Loads the kernel with all that it is told; returns its entry.
fn load(
    config: &Config,
    given: &mut Given,
    memory: &Memory,
    devices: usize,
) -> Result<u64, VmmError> {
    let mut cmdline = config.cmdline.clone() + &generation::word();
    for at in 0..devices {
        let (address, line) = place(at);
        cmdline.push_str(&format!(" virtio_mmio.device=4K@{address:#x}:{line}"));
    }
    let kernel = File::from(given.take(fd::KERNEL)?);
    let initramfs = File::from(given.take(fd::INITRAMFS)?);
    boot::load(memory, kernel, initramfs, &cmdline, config.vcpus)
}

const SHARE: &str = "share";

struct Devices {
    list: Vec<(String, Box<dyn Device>)>,
    spares: std::ops::Range<usize>,
}

/// The files of the disks that are mapped.
fn mapped(config: &Config, given: &mut Given) -> Result<Vec<Image>, VmmError> {
    let mut images = Vec::new();
    for disk in config.disks.iter().filter(|disk| disk.mapped) {
        if !disk.read_only {
            let why = "it is not read-only".to_owned();
            return Err(VmmError::Config { what: "a mapped disk", why });
        }
        let open = |extent: &config::Extent| Ok((File::from(given.take(extent.fd)?), extent.bytes));
        images.push(disk.extents.iter().map(open).collect::<Result<_, VmmError>>()?);
    }
    Ok(images)
}

fn devices(
    config: &Config,
    given: &mut Given,
    places: &[Place],
    host: &Host,
) -> Result<Devices, VmmError> {
    let mut list: Vec<(String, Box<dyn Device>)> = Vec::new();
    let failed = |device: &str, doing: &'static str| {
        let device = device.to_owned();
        move |source| VmmError::Device { device, doing, source }
    };
    let link = given.take(fd::LINK)?;
    nonblocking(&link)?;
    list.push(("link".to_owned(), Box::new(Console::new(link))));
    let mut places = places.iter();
    for (at, disk) in config.disks.iter().enumerate() {
        let name = format!("disk{at}");
        if disk.mapped {
            let place = places.next().copied();
            let place = place.ok_or_else(|| VmmError::Config {
                what: "a mapped disk",
                why: "it is not mapped".to_owned(),
            })?;
            list.push((name.clone(), Box::new(Pmem::new(name, place))));
            continue;
        }
        let mut files = Vec::new();
        for extent in &disk.extents {
            files.push(given.take(extent.fd)?);
        }
        let file = open_disk(disk, files)?;
        list.push((name.clone(), Box::new(Block::new(name, file, host.clone()))));
    }
    let first = list.len();
    for spare in 0..config.spares {
        let name = format!("disk{}", config.disks.len() + spare);
        let read_only = spare_is_read_only(spare);
        list.push((name.clone(), Box::new(Block::spare(name, read_only, host.clone()))));
    }
    let spares = first..list.len();
    for (at, nic) in config.nics.iter().enumerate() {
        let name = format!("net{at}");
        let net = card(&name, nic, given)?.map_err(failed(&name, "use its tap"))?;
        list.push((name, net));
    }
    if let Some(number) = config.share {
        let socket = UnixStream::from(given.take(number)?);
        let share = Share::new(socket).map_err(failed(SHARE, "speak to its server"))?;
        list.push((SHARE.to_owned(), Box::new(share)));
    }
    list.push(("rng".to_owned(), Box::new(Entropy::default())));
    list.push(("balloon".to_owned(), Box::new(Balloon::new(!config.pages.kept()))));
    Ok(Devices { list, spares })
}

/// The device of one card: the host's kernel serves it where it can.
fn card(
    name: &str,
    nic: &config::Nic,
    given: &mut Given,
) -> Result<std::io::Result<Box<dyn Device>>, VmmError> {
    let (mut taps, mut vhosts) = (Vec::new(), Vec::new());
    for queue in &nic.queues {
        let tap = given.take(queue.tap)?;
        nonblocking(&tap)?;
        taps.push(tap);
        vhosts.extend(queue.vhost.map(|number| given.take(number)).transpose()?.map(File::from));
    }
    if let Some(vhost) = vhosts.first()
        && vhosts.len() == taps.len()
    {
        match KernelNet::try_out(vhost) {
            Ok(known) => {
                let queues = taps.into_iter().zip(vhosts).collect();
                let net = KernelNet::new(name.to_owned(), queues, known, nic.mac, nic.mtu);
                return Ok(net.map(|net| Box::new(net) as Box<dyn Device>));
            }
            Err(error) => eprintln!("hyper-vmm: {name}: not by the host's vhost-net: {error}"),
        }
    }
    let net = Net::new(name.to_owned(), taps, nic.mac, nic.mtu);
    Ok(net.map(|net| Box::new(net) as Box<dyn Device>))
}

/// Whether spare place `spare` takes read-only disks: they alternate, image then writable layer,
/// as containers come.
pub(crate) fn spare_is_read_only(spare: usize) -> bool {
    spare.is_multiple_of(2)
}

/// A disk of open files.
pub(crate) fn open_disk(
    disk: &config::Disk,
    files: Vec<OwnedFd>,
) -> Result<virtio::File, VmmError> {
    let refuse = |why: String| VmmError::Config { what: "a disk", why };
    if disk.extents.len() > MAX_EXTENTS || files.len() != disk.extents.len() {
        let (extents, files) = (disk.extents.len(), files.len());
        return Err(refuse(format!("{extents} extents and {files} files, at most {MAX_EXTENTS}")));
    }
    let files = files.into_iter().map(File::from).zip(disk.extents.iter().map(|e| e.bytes));
    virtio::File::new(files.collect(), disk.read_only, disk.ephemeral).map_err(refuse)
}

fn check(config: &Config) -> Result<(), VmmError> {
    let refuse = |what: &'static str, why: String| Err(VmmError::Config { what, why });
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return refuse("virtual CPUs", format!("{}, not 1 to {MAX_VCPUS}", config.vcpus));
    }
    if config.memory_bytes < MIN_MEMORY {
        let why = format!("{} bytes, at least {MIN_MEMORY}", config.memory_bytes);
        return refuse("guest memory", why);
    }
    let disks = config.disks.len().saturating_add(config.spares);
    if disks > MAX_DISKS {
        return refuse("disks", format!("{disks}, at most {MAX_DISKS}"));
    }
    if config.nics.len() > MAX_NICS {
        return refuse("network devices", format!("{}, at most {MAX_NICS}", config.nics.len()));
    }
    let queues = config.nics.iter().map(|nic| nic.queues.len());
    if let Some(odd) = queues.into_iter().find(|count| !(1..=MAX_NIC_QUEUES).contains(count)) {
        let why = format!("{odd}, not 1 to {MAX_NIC_QUEUES}");
        return refuse("pairs of queues of a network device", why);
    }
    Ok(())
}

fn show_memory(vm: &VmFd, memory: &Memory) -> Result<(), VmmError> {
    for (slot, (start, host, bytes)) in (0..).zip(memory::regions(memory)) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start,
            memory_size: bytes,
            userspace_addr: host,
        };
        // SAFETY: the mapping is as long as said. A disk's is never ended. `Machine` keeps the rest of
        // memory and drops it after the virtual machine; where there never is a `Machine`, because something fails, no CPU has
        // run, and only running CPUs reach the mapping.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(VmmError::kvm("show the guest its memory"))?;
    }
    Ok(())
}

/// Address and interrupt of the `at`-th device. Lines are shared when there are more devices:
/// every driver of a line asks its own device.
fn place(at: usize) -> (u64, u32) {
    (BASE + at as u64 * STEP, LINES[at % LINES.len()])
}

fn line(vm: &VmFd, number: u32) -> Result<EventFd, VmmError> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(VmmError::io("make an eventfd"))?;
    vm.register_irqfd(&event, number).map_err(VmmError::kvm("connect an interrupt"))?;
    Ok(event)
}

fn attach(
    vm: &VmFd,
    memory: &Memory,
    at: usize,
    name: String,
    device: Box<dyn Device>,
    foreign: bool,
) -> Result<Transport, VmmError> {
    let (address, number) = place(at);
    let transport = Transport::new(name, device, Arc::clone(memory), line(vm, number)?, foreign)
        .map_err(VmmError::io("make a device"))?;
    for (queue, kick) in (0_u32..).zip(transport.kicks()) {
        let notify = IoEventAddress::Mmio(address + NOTIFY);
        vm.register_ioevent(kick, &notify, queue)
            .map_err(VmmError::kvm("connect a queue's notification"))?;
    }
    Ok(transport)
}

fn nonblocking(file: &OwnedFd) -> Result<(), VmmError> {
    rustix::io::ioctl_fionbio(file, true).map_err(|error| VmmError::Io {
        doing: "make a descriptor non-blocking",
        source: std::io::Error::from_raw_os_error(error.raw_os_error()),
    })?;
    Ok(())
}
