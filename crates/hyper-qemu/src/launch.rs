//! From a configuration to a running guest.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hyper_adapter::{Descriptors, Kept, Name, Places, Process, blocking, connect, tap, vhost_net};
use hyper_hypervisor::{Limits, Nic, Vm, VmConfig, VmError};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::accelerator::Chosen;
use crate::control::Control;
use crate::machine::{self, DiskArgs, Machine, NicArgs, fd};
use crate::saved::{self, Shape};
use crate::vm::QemuGuest;
use crate::{MAX_NICS, MAX_VCPUS, MIN_MEMORY, NAME, Options, SHARES, block, disk, jail, kernel};

const PROGRAM: &str = "qemu-system-x86_64";
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/libexec", "/opt/qemu/bin"];

/// Launches; on failure nothing is left.
pub async fn launch(
    options: &Options,
    chosen: &Chosen,
    config: VmConfig,
) -> Result<Box<dyn Vm>, VmError> {
    start(options, chosen, None, config).await
}

/// Continues the guest saved in `directory`; on failure nothing is left.
pub async fn restore(
    options: &Options,
    chosen: &Chosen,
    directory: &Path,
    config: VmConfig,
) -> Result<Box<dyn Vm>, VmError> {
    start(options, chosen, Some(directory.to_owned()), config).await
}

async fn start(
    options: &Options,
    chosen: &Chosen,
    directory: Option<PathBuf>,
    config: VmConfig,
) -> Result<Box<dyn Vm>, VmError> {
    if chosen.refused {
        return Err(missing("a KVM that runs unmodified kernels", &chosen.kvm_detail));
    }
    LIMITS.check(&config)?;
    let program = program(options)?;
    let kvm = chosen.kvm;
    let task = move || {
        let mut ready = prepare(&config)?;
        let shape = Shape::of(&config, ready.machine, kvm);
        let memory = directory.map(|directory| saved::open(&directory, &shape)).transpose()?;
        let memory = memory.map(|memory| ready.fds.pass(memory));
        Ok((config, ready, shape, memory))
    };
    let (config, ready, shape, memory) = blocking("prepare a guest", task).await?;
    let Ready { machine, disks, nics, share, mut fds, bytes } = ready;
    let mut args = machine::arguments(&config, chosen, machine, (&disks, &nics, share));
    if let Some(memory) = memory {
        args.extend(["-incoming".to_owned(), format!("fd:{memory}")]);
    }

    let control = fds.socket(fd::CONTROL)?;
    let link = fds.socket(fd::LINK)?;
    let said = fds.socket(fd::CONSOLE)?;
    let errors = fds.errors()?;

    let name = Name { hypervisor: NAME, program: "QEMU" };
    let spec = fds.give(jail::spec(&program, &config, chosen.kvm, args));
    let process = Process::start(name, &config.id, spec, said, errors).await?;
    match open(control, &bytes, memory.is_some()).await {
        Ok(control) => {
            let (disks, places) = (machine.disks, Places::new(NAME, machine.spares));
            let places = Mutex::new(places);
            let stitched = config.disks.iter().any(|disk| disk.extents.len() > 1);
            let guest = QemuGuest { process, control, disks, places, shape, stitched };
            Ok(Box::new(Kept::start(guest, link)))
        }
        Err(error) => {
            let error = blame(&process, error).await;
            process.end().await;
            process.settle().await;
            Err(error)
        }
    }
}

/// The program, when it is there.
pub fn program(options: &Options) -> Result<PathBuf, VmError> {
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let hint = "apt-get install qemu-system-x86";
    match &options.program {
        // Resolved, so that the jail shows the file and not a link to it.
        Some(path) if executable(path) => path.canonicalize().map_err(|source| VmError::File {
            what: "resolve",
            path: path.clone(),
            source,
        }),
        Some(path) => Err(missing(&format!("the program `{}`", path.display()), hint)),
        None => PLACES
            .iter()
            .map(|place| Path::new(place).join(PROGRAM))
            .find(|path| executable(path))
            .ok_or_else(|| missing(&format!("the program `{PROGRAM}`"), hint)),
    }
}

/// What no machine of ours has.
const LIMITS: Limits = Limits {
    hypervisor: NAME,
    min_memory_bytes: MIN_MEMORY,
    max_vcpus: MAX_VCPUS,
    max_nics: MAX_NICS,
    nic_queues: 1,
    // One number, whatever the network devices: it is told as a capability.
    max_disks: machine::disk_slots(MAX_NICS + SHARES),
    disk_map: false,
};

/// What QEMU is given beside its standard sockets.
struct Ready {
    machine: Machine,
    disks: Vec<DiskArgs>,
    nics: Vec<NicArgs>,
    /// Descriptor of the connection to the device of shared directories.
    share: Option<i32>,
    fds: Descriptors,
    /// Lengths of the disks.
    bytes: Vec<u64>,
}

/// Looks at all files and opens those that QEMU gets as descriptors. Blocks.
fn prepare(config: &VmConfig) -> Result<Ready, VmError> {
    kernel::check(&config.kernel.kernel)?;
    let initramfs = &config.kernel.initramfs;
    File::open(initramfs).map_err(|source| VmError::File {
        what: "open initramfs",
        path: initramfs.clone(),
        source,
    })?;
    let mut ready = Ready {
        machine: Machine::of(
            config.disks.len(),
            config.nics.len() + usize::from(config.share.is_some()),
            config.late_disks,
        ),
        disks: Vec::new(),
        nics: Vec::new(),
        share: None,
        fds: Descriptors::new(fd::FIRST_FREE),
        bytes: Vec::new(),
    };
    for nic in &config.nics {
        let nic = ready.nic(nic)?;
        ready.nics.push(nic);
    }
    if let Some(share) = &config.share {
        ready.share = Some(ready.fds.pass(connect(share)?));
    }
    for (slot, wanted) in config.disks.iter().enumerate() {
        let set = block::first_set(slot);
        let opened = disk::open(wanted, set)?;
        let node = opened.node(&machine::block_node(slot), set);
        ready.bytes.push(opened.bytes);
        let sets =
            (set..).zip(opened.files).map(|(set, file)| (ready.fds.pass(file), set)).collect();
        ready.disks.push(DiskArgs { node, sets });
    }
    Ok(ready)
}

impl Ready {
    fn nic(&mut self, nic: &Nic) -> Result<NicArgs, VmError> {
        let tap = self.fds.pass(tap(nic)?);
        // QEMU copies packets itself where there is none.
        let vhost = vhost_net().map(|file| self.fds.pass(file));
        Ok(NicArgs { tap, vhost, mac: nic.mac.clone(), mtu: nic.mtu })
    }
}

/// First words with QEMU, a look at its disks, then the guest runs.
async fn open(socket: UnixStream, bytes: &[u64], saved: bool) -> Result<Control, VmError> {
    let control =
        Control::open(socket).await.map_err(|error| error.while_doing("open its monitor"))?;
    if saved {
        saved::arrived(&control).await?;
    }
    block::check(&control, bytes).await?;
    let run = control.call(qapi::qmp::cont {}).await;
    run.map_err(|error| error.while_doing("start the guest"))?;
    Ok(control)
}

/// When QEMU has ended, its own last words say more than a closed monitor.
async fn blame(process: &Process, error: VmError) -> VmError {
    if matches!(error, VmError::Launch { .. }) {
        return error;
    }
    match process.obituary().await {
        Some(detail) => VmError::Launch { hypervisor: NAME, detail },
        None => error,
    }
}

fn missing(what: &str, hint: &str) -> VmError {
    VmError::Missing { hypervisor: NAME, what: what.to_owned(), hint: hint.to_owned() }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let options = Options { program: Some("/no/qemu".into()), ..Options::default() };
        let error = program(&options).unwrap_err().to_string();
        assert!(error.contains("`/no/qemu`") && error.contains("apt-get install qemu-system-x86"));
    }
}
