//! From a configuration to a running guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::{Console, Limits, Tail, Vm, VmConfig, VmError};
use hyper_jail::{JailError, JailSpec, Jailed, Outcome, Program};
use hyper_vmm::config::{self, Config, MAX_DISKS, MAX_VCPUS, fd};
use tokio::net::{UnixStream, unix::pipe};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::control::{CallError, Control};
use crate::disk::{self, Places};
use crate::vm::{self, Guest, Readers};
use crate::{MAX_NICS, MIN_MEMORY, NAME, Options, calls, machine, saved};

const PROGRAM: &str = "hyper-vmm";
/// What the monitor needs beside guest memory: itself, and room for page cache of the disks.
const OVERHEAD: u64 = 128 << 20;
/// Threads beside those of vCPUs and disks.
const THREADS: u64 = 16;

const LIMITS: Limits = Limits {
    hypervisor: NAME,
    min_memory_bytes: MIN_MEMORY,
    max_vcpus: MAX_VCPUS,
    max_nics: MAX_NICS,
    max_disks: MAX_DISKS,
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
    let task = tokio::task::spawn_blocking(move || {
        let ready = prepare(&program, saved.as_deref(), &config)?;
        Ok::<_, VmError>((config, ready))
    });
    let (config, ready) = task.await.map_err(|error| VmError::Io {
        what: "prepare a guest",
        source: io::Error::other(error),
    })??;
    let Ready { told, mut fds, program } = ready;
    let (control, theirs) = pair()?;
    fds.push((theirs, fd::CONTROL));
    let (link, theirs) = pair()?;
    fds.push((theirs, fd::LINK));
    let (said, theirs) = pair()?;
    fds.push((theirs, fd::CONSOLE));
    let (errors, theirs) = errors()?;
    fds.push((theirs, 2));

    let jailed = hyper_jail::spawn(spec(program, &config, fds)).await.map_err(refused)?;
    for missing in jailed.missing() {
        tracing::warn!(pod = %config.id, "jail without: {missing}");
    }
    let (console, tail) = (Arc::new(Console::default()), Arc::new(Tail::default()));
    let readers = Readers::start(&console, said, &tail, errors);
    match Control::open(control, &told).await {
        Ok(control) => {
            let places = Mutex::new(Places::new(told.disks.len(), told.spares));
            let guest = Guest { jailed, control, console, tail, places };
            Ok(Box::new(vm::start(guest, readers, link)))
        }
        Err(error) => {
            let error = blame(&jailed, &tail, error, &config).await;
            jailed.kill().await;
            readers.finish().await;
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
        hint: format!(
            "it is not in {}",
            searched.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
        ),
    })
}

/// What the monitor is given beside its sockets.
struct Ready {
    told: Config,
    fds: Vec<(OwnedFd, i32)>,
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
    let mut fds = Fds::default();
    fds.0.push((kvm.into(), fd::KVM));
    if saved.is_none() {
        fds.0.push((open("open guest kernel", &config.kernel.kernel)?.into(), fd::KERNEL));
        fds.0.push((open("open initramfs", &config.kernel.initramfs)?.into(), fd::INITRAMFS));
    }
    let mut told = Config {
        vcpus: config.vcpus,
        memory_bytes: config.memory_bytes / 4096 * 4096,
        cmdline: machine::command_line(config),
        spares: machine::spares(config.disks.len()),
        ..Config::default()
    };
    if let Some(directory) = saved {
        let (state, memory) = saved::open(directory)?;
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
        let tap = nic
            .tap
            .try_clone()
            .map_err(|source| VmError::Io { what: "duplicate a tap's descriptor", source })?;
        let unusable = |what: String| VmError::Unsupported { hypervisor: NAME, what };
        let mac = nic
            .mac_bytes()
            .ok_or_else(|| unusable(format!("use the MAC address `{}`", nic.mac)))?;
        let mtu = u16::try_from(nic.mtu)
            .map_err(|_| unusable(format!("give a network device an MTU of {}", nic.mtu)))?;
        told.nics.push(config::Nic { tap: fds.pass(tap), mac, mtu });
    }
    if let Some(share) = &config.share {
        let socket = StdStream::connect(&share.socket).map_err(|source| VmError::File {
            what: "connect to the device of shared directories",
            path: share.socket.clone(),
            source,
        })?;
        told.share = Some(fds.pass(socket.into()));
    }
    let program = open("open the monitor", program)?;
    Ok(Ready { told, fds: fds.0, program })
}

#[derive(Default)]
struct Fds(Vec<(OwnedFd, i32)>);

impl Fds {
    fn pass(&mut self, file: OwnedFd) -> i32 {
        let last = self.0.iter().map(|(_, number)| *number).max().unwrap_or(0);
        let number = (last + 1).max(fd::FIRST_FREE);
        self.0.push((file, number));
        number
    }
}

fn spec(program: File, config: &VmConfig, fds: Vec<(OwnedFd, i32)>) -> JailSpec {
    let limits = hyper_jail::Limits {
        memory_bytes: Some(config.memory_bytes + OVERHEAD),
        pids: Some(THREADS + u64::from(config.vcpus) + MAX_DISKS as u64),
        ..hyper_jail::Limits::default()
    };
    let mut spec = JailSpec::new(config.id.clone(), Program::Fd(program.into()))
        .arg(PROGRAM)
        .arg(&config.id)
        // The allocator shall not keep an arena of its own for each of the threads.
        .env("MALLOC_ARENA_MAX", "1")
        .system_libraries()
        .limits(limits)
        .seccomp(calls::list(config.share.is_some()));
    if let Some(parent) = &config.cgroup {
        spec = spec.cgroup(parent.clone());
    }
    for (file, number) in fds {
        spec = spec.fd(file, number);
    }
    spec
}

/// A jail's failure in the words of the port.
fn refused(error: JailError) -> VmError {
    match error {
        JailError::NoLauncher { .. } => VmError::Missing {
            hypervisor: NAME,
            what: "the program `hyper-jail`".to_owned(),
            hint: error.to_string(),
        },
        other => {
            let mut what = other.to_string();
            let mut next = std::error::Error::source(&other);
            while let Some(source) = next {
                what.push_str(&format!(": {source}"));
                next = source.source();
            }
            VmError::Jail { hypervisor: NAME, what }
        }
    }
}

/// The monitor's own words say most; when it has none, its end does.
async fn blame(jailed: &Jailed, tail: &Tail, error: CallError, config: &VmConfig) -> VmError {
    let detail = match error {
        CallError::Refused(why) => {
            // It knows its files as descriptors only.
            let kernel = config.kernel.kernel.display();
            format!("{why} (kernel `{kernel}`)")
        }
        CallError::Silent(_) => return error.while_doing("start the guest"),
        CallError::Closed => {
            let Ok(exit) = timeout(Duration::from_secs(2), jailed.wait()).await else {
                return CallError::Closed.while_doing("start the guest");
            };
            // Its standard error is read by another task, to the end soon.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let words = tail.text();
            let words = if words.is_empty() { "it said nothing" } else { words.trim_end() };
            format!("{}: {words}", ended(&exit.outcome))
        }
    };
    VmError::Launch { hypervisor: NAME, detail }
}

fn ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited(code) => format!("its monitor ended with code {code}"),
        Outcome::Signaled(libc::SIGSYS) => {
            "its monitor made a system call that its jail forbids".to_owned()
        }
        Outcome::Signaled(signal) => format!("signal {signal} ended its monitor"),
        Outcome::Killed | Outcome::LauncherDied => "its monitor's launcher was killed".to_owned(),
    }
}

fn pair() -> Result<(UnixStream, OwnedFd), VmError> {
    let make = || {
        let (ours, theirs) = StdStream::pair()?;
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
