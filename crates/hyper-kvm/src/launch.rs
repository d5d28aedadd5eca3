//! From a configuration to a running guest.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use hyper_adapter::{
    Descriptors, Kept, Name, Places, Process, blocking, connect, open_saved, taps, vhost_net,
};
use hyper_hypervisor::{Limits, Vm, VmConfig, VmError};
use hyper_jail::{JailSpec, Program};
use hyper_vmm::config::{self, Config, HANDS, MAX_DISKS, MAX_VCPUS, fd};
use tokio::sync::Mutex;

use crate::control::{CallError, Control};
use crate::memory::Memory;
use crate::vm::KvmGuest;
use crate::{
    MAX_NIC_QUEUES, MAX_NICS, MIN_MEMORY, NAME, Options, calls, disk, machine, memory, pages,
};

const PROGRAM: &str = "hyper-vmm";
/// What the monitor needs beside guest memory: itself, and room for page cache of the disks.
pub(crate) const OVERHEAD: u64 = 128 << 20;
/// Threads beside those of vCPUs and disks.
const THREADS: u64 = 16;

const LIMITS: Limits = Limits {
    hypervisor: NAME,
    min_memory_bytes: MIN_MEMORY,
    max_vcpus: MAX_VCPUS,
    max_nics: MAX_NICS,
    nic_queues: MAX_NIC_QUEUES,
    max_disks: MAX_DISKS,
    disk_map: true,
};

/// Launches; on failure nothing is left.
pub async fn launch(options: &Options, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
    start(options, None, config).await
}

/// Continues the guest saved in `directory`; on failure nothing is left.
pub async fn restore(
    options: &Options,
    directory: &Path,
    config: VmConfig,
) -> Result<Box<dyn Vm>, VmError> {
    start(options, Some(directory.to_owned()), config).await
}

async fn start(
    options: &Options,
    saved: Option<PathBuf>,
    config: VmConfig,
) -> Result<Box<dyn Vm>, VmError> {
    LIMITS.check(&config)?;
    let program = program(options)?;
    let (huge, prefault, io_uring) = (options.huge_pages, options.prefault, options.io_uring);
    let task = move || {
        pages::check(huge, &config)?;
        let mut ready = prepare(&program, saved.as_deref(), &config)?;
        ready.told.memory_bytes = pages::memory(config.memory_bytes, huge);
        ready.told.pages = pages::told(huge, prefault);
        ready.told.growth_bytes = memory::room(&ready.told);
        ready.told.io_uring = io_uring;
        Ok((config, ready))
    };
    let (config, ready) = blocking("prepare a guest", task).await?;
    let Ready { told, mut fds, program } = ready;
    let control = fds.socket(fd::CONTROL)?;
    let link = fds.socket(fd::LINK)?;
    let said = fds.socket(fd::CONSOLE)?;
    let errors = fds.errors()?;

    let name = Name { hypervisor: NAME, program: "the monitor" };
    let spec = fds.give(spec(program, &config, told.io_uring));
    let process = Process::start(name, &config.id, spec, said, errors).await?;
    match Control::open(control, &told).await {
        Ok(control) => {
            let disks = told.disks.iter().filter(|disk| !disk.mapped).count();
            let kept = told.pages.kept();
            let places = Mutex::new(Places::new(NAME, told.spares));
            let memory = Memory::new(told.memory_bytes);
            Ok(Box::new(Kept::start(
                KvmGuest { process, control, disks, places, kept, memory },
                link,
            )))
        }
        Err(error) => {
            let error = blame(&process, error, &config).await;
            process.end().await;
            process.settle().await;
            Err(error)
        }
    }
}

/// The monitor, when it is there.
pub fn program(options: &Options) -> Result<PathBuf, VmError> {
    if let Some(path) = &options.program {
        return Ok(path.clone());
    }
    hyper_jail::find_program(PROGRAM).map_err(|searched| VmError::Missing {
        hypervisor: NAME,
        what: format!("the program `{PROGRAM}`"),
        hint: format!("it is not in {searched}"),
    })
}

/// What the monitor is given beside its sockets.
struct Ready {
    told: Config,
    fds: Descriptors,
    program: File,
}

/// Opens all files. Blocks.
fn prepare(program: &Path, saved: Option<&Path>, config: &VmConfig) -> Result<Ready, VmError> {
    let open = |what: &'static str, path: &Path| {
        File::open(path).map_err(|source| VmError::File { what, path: path.to_owned(), source })
    };
    let kvm = OpenOptions::new().read(true).write(true).open(hyper_kvm_probe::DEVICE);
    let kvm = kvm.map_err(|source| VmError::File {
        what: "open",
        path: hyper_kvm_probe::DEVICE.into(),
        source,
    })?;
    let mut fds = Descriptors::new(fd::FIRST_FREE);
    fds.put(kvm, fd::KVM);
    if saved.is_none() {
        fds.put(open("open guest kernel", &config.kernel.kernel)?, fd::KERNEL);
        fds.put(open("open initramfs", &config.kernel.initramfs)?, fd::INITRAMFS);
    }
    let mut told = Config {
        vcpus: config.vcpus,
        cmdline: machine::command_line(config),
        spares: machine::spares(config.disks.len(), config.late_disks),
        ..Config::default()
    };
    if let Some(directory) = saved {
        let (state, memory) = open_saved(directory)?;
        told.saved = Some(config::Saved { state: fds.pass(state), memory: fds.pass(memory) });
    }
    for wanted in &config.disks {
        let (mut disk, files) = disk::open(wanted)?;
        for (extent, file) in disk.extents.iter_mut().zip(files) {
            extent.fd = fds.pass(file);
        }
        told.disks.push(disk);
    }
    for nic in &config.nics {
        let unusable = |what: String| VmError::Unsupported { hypervisor: NAME, what };
        let mac = nic
            .mac_bytes()
            .ok_or_else(|| unusable(format!("use the MAC address `{}`", nic.mac)))?;
        let mtu = u16::try_from(nic.mtu)
            .map_err(|_| unusable(format!("give a network device an MTU of {}", nic.mtu)))?;
        let queues = taps(nic)?.into_iter().map(|tap| {
            let vhost = vhost_net().map(|file| fds.pass(file));
            config::NicQueue { tap: fds.pass(tap), vhost }
        });
        let queues = queues.collect();
        told.nics.push(config::Nic { queues, mac, mtu });
    }
    if let Some(share) = &config.share {
        told.share = Some(fds.pass(connect(share)?));
    }
    let program = open("open the monitor", program)?;
    Ok(Ready { told, fds, program })
}

fn spec(program: File, config: &VmConfig, io_uring: bool) -> JailSpec {
    // One for each pair of queues, and one for the control queue.
    let threads: usize = config.nics.iter().map(|nic| nic.tap.len() + 1).sum();
    let limits = hyper_jail::Limits {
        memory_bytes: Some(config.memory_bytes + OVERHEAD),
        // Since Linux 6.4 the kernel's threads for a card count.
        pids: Some(THREADS + u64::from(config.vcpus) + (MAX_DISKS * (1 + HANDS) + threads) as u64),
        ..hyper_jail::Limits::default()
    };
    let spec = JailSpec::new(config.id.clone(), Program::Fd(program.into()))
        .arg(PROGRAM)
        .arg(&config.id)
        // The allocator shall not keep an arena of its own for each of the threads.
        .env("MALLOC_ARENA_MAX", "1")
        .system_libraries()
        .limits(limits)
        .seccomp(calls::list(config.share.is_some(), io_uring));
    match &config.cgroup {
        Some(parent) => spec.cgroup(parent.clone()),
        None => spec,
    }
}

/// The monitor's own words say most; when it has none, its end does.
async fn blame(process: &Process, error: CallError, config: &VmConfig) -> VmError {
    let detail = match error {
        CallError::Refused(why) => {
            // It knows its files as descriptors only.
            let kernel = config.kernel.kernel.display();
            format!("{why} (kernel `{kernel}`)")
        }
        CallError::Silent(_) => return error.while_doing("start the guest"),
        CallError::Closed => match process.obituary().await {
            Some(how) => how,
            None => return CallError::Closed.while_doing("start the guest"),
        },
    };
    VmError::Launch { hypervisor: NAME, detail }
}
