//! From a configuration to a running guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::{Console, Limits, Nic, Tail, Vm, VmConfig, VmError};
use hyper_jail::{Jailed, Outcome};
use tokio::net::{UnixStream, unix::pipe};
use tokio::time::timeout;

use crate::accelerator::Chosen;
use crate::block::{self, Slots};
use crate::control::Control;
use crate::disk;
use crate::machine::{self, DiskArgs, Machine, NicArgs, fd};
use crate::vm::{self, Guest};
use crate::{MAX_NICS, MAX_VCPUS, MIN_MEMORY, NAME, Options, SHARES, jail, kernel};

const PROGRAM: &str = "qemu-system-x86_64";
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/libexec", "/opt/qemu/bin"];
/// The kernel's network device with queues and offloads of its own.
const VHOST: &str = "/dev/vhost-net";

/// Launches; on failure nothing is left.
pub async fn launch(
    options: &Options,
    chosen: &Chosen,
    config: VmConfig,
) -> Result<Box<dyn Vm>, VmError> {
    if chosen.refused {
        return Err(missing("a KVM that runs unmodified kernels", &chosen.kvm_detail));
    }
    LIMITS.check(&config)?;
    let program = program(options)?;
    let task = tokio::task::spawn_blocking(move || prepare(&config).map(|ready| (config, ready)));
    let (config, ready) = task.await.map_err(|error| VmError::Io {
        what: "prepare a guest",
        source: io::Error::other(error),
    })??;
    let Ready { machine, disks, nics, share, mut fds, bytes } = ready;
    let args = machine::arguments(&config, chosen, machine, (&disks, &nics, share));

    let (control, theirs) = pair()?;
    fds.push((theirs, fd::CONTROL));
    let (link, theirs) = pair()?;
    fds.push((theirs, fd::LINK));
    let (said, theirs) = pair()?;
    fds.push((theirs, fd::CONSOLE));
    let (errors, theirs) = errors()?;
    fds.push((theirs, fd::STDERR));

    let spec = jail::spec(&program, &config, chosen.kvm, args, fds);
    let jailed = hyper_jail::spawn(spec).await.map_err(jail::refused)?;
    for missing in jailed.missing() {
        tracing::warn!(pod = %config.id, "jail without: {missing}");
    }
    let (console, tail) = (Arc::new(Console::default()), Arc::new(Tail::default()));
    let readers = vm::Readers::start(&console, said, &tail, errors);
    match open(control, &bytes).await {
        Ok(control) => {
            let slots = tokio::sync::Mutex::new(Slots::of(&machine));
            let guest = Guest { jailed, control, console, tail, slots };
            Ok(Box::new(vm::start(guest, readers, link)))
        }
        Err(error) => {
            let error = blame(&jailed, &tail, error).await;
            jailed.kill().await;
            readers.finish().await;
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
    // One number, whatever the network devices: it is told as a capability.
    max_disks: machine::disk_slots(MAX_NICS + SHARES),
};

/// What QEMU is given beside its standard sockets.
struct Ready {
    machine: Machine,
    disks: Vec<DiskArgs>,
    nics: Vec<NicArgs>,
    /// Descriptor of the connection to the device of shared directories.
    share: Option<i32>,
    fds: Vec<(OwnedFd, i32)>,
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
        ),
        disks: Vec::new(),
        nics: Vec::new(),
        share: None,
        fds: Vec::new(),
        bytes: Vec::new(),
    };
    for nic in &config.nics {
        let nic = ready.nic(nic)?;
        ready.nics.push(nic);
    }
    if let Some(share) = &config.share {
        let socket = std::os::unix::net::UnixStream::connect(&share.socket);
        let socket = socket.map_err(|source| VmError::File {
            what: "connect to the device of shared directories",
            path: share.socket.clone(),
            source,
        })?;
        ready.share = Some(ready.pass(socket.into()));
    }
    for (slot, wanted) in config.disks.iter().enumerate() {
        let set = block::first_set(slot);
        let opened = disk::open(wanted, set)?;
        let node = opened.node(&machine::block_node(slot), set);
        ready.bytes.push(opened.bytes);
        let sets = (set..).zip(opened.files).map(|(set, file)| (ready.pass(file), set)).collect();
        ready.disks.push(DiskArgs { node, sets });
    }
    Ok(ready)
}

impl Ready {
    fn pass(&mut self, file: OwnedFd) -> i32 {
        let number = self.fds.last().map_or(fd::FIRST_FREE, |(_, last)| last + 1);
        self.fds.push((file, number));
        number
    }

    fn nic(&mut self, nic: &Nic) -> Result<NicArgs, VmError> {
        let tap = nic
            .tap
            .try_clone()
            .map_err(|source| VmError::Io { what: "duplicate a tap's descriptor", source })?;
        let tap = self.pass(tap);
        // Hosts without the module do without: QEMU then copies packets itself.
        let vhost = OpenOptions::new().read(true).write(true).open(VHOST).ok();
        let vhost = vhost.map(|file| self.pass(file.into()));
        Ok(NicArgs { tap, vhost, mac: nic.mac.clone(), mtu: nic.mtu })
    }
}

/// First words with QEMU, a look at its disks, then the guest runs.
async fn open(socket: UnixStream, bytes: &[u64]) -> Result<Control, VmError> {
    let control =
        Control::open(socket).await.map_err(|error| error.while_doing("open its monitor"))?;
    block::check(&control, bytes).await?;
    let run = control.call(qapi::qmp::cont {}).await;
    run.map_err(|error| error.while_doing("start the guest"))?;
    Ok(control)
}

/// When QEMU has ended, its own last words say more than a closed monitor.
async fn blame(jailed: &Jailed, tail: &Tail, error: VmError) -> VmError {
    if matches!(error, VmError::Launch { .. }) {
        return error;
    }
    let Ok(exit) = timeout(Duration::from_secs(2), jailed.wait()).await else { return error };
    // Its standard error is read by another task, to the end soon.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let how = match exit.outcome {
        Outcome::Exited(code) => format!("it ended with code {code}"),
        Outcome::Signaled(libc::SIGSYS) => "it made a system call that its jail forbids".to_owned(),
        Outcome::Signaled(signal) => format!("signal {signal} ended it"),
        Outcome::Killed | Outcome::LauncherDied => "its launcher was killed".to_owned(),
    };
    let words = tail.text();
    let words = if words.is_empty() { "it said nothing" } else { words.trim_end() };
    VmError::Launch { hypervisor: NAME, detail: format!("{how}: {words}") }
}

fn missing(what: &str, hint: &str) -> VmError {
    VmError::Missing { hypervisor: NAME, what: what.to_owned(), hint: hint.to_owned() }
}

fn pair() -> Result<(UnixStream, OwnedFd), VmError> {
    let make = || {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    make().map_err(|source| VmError::Io { what: "make a pair of sockets", source })
}

fn errors() -> Result<(pipe::Receiver, OwnedFd), VmError> {
    let make = || {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
    };
    make().map_err(|source| VmError::Io { what: "make a pipe", source })
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
