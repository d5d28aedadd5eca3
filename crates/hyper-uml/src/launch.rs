//! Puts the kernel into its jail.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex as StdMutex;

use hyper_adapter::{blocking, pair, spawn, tap};
use hyper_hypervisor::{VmConfig, VmError};
use hyper_jail::{Bind, JailSpec, Limits, Program, Resource};
use tokio::sync::Mutex;

use crate::cmdline::{self, INITRAMFS, LINK_FD, SCRATCH, SHARE};
use crate::console::Console;
use crate::disk::Numbers;
use crate::mconsole::Mconsole;
use crate::vm::{UmlVm, unsupported};
use crate::{MAX_NICS, MIN_MEMORY_BYTES, NAME, Options, calls, disk, kernel};

/// What was found on the host.
struct Host {
    kernel: OwnedFd,
    clock_is_tsc: bool,
}

/// Launches a guest.
pub async fn launch(options: &Options, config: VmConfig) -> Result<UmlVm, VmError> {
    start(options, config, true).await
}

/// As [`launch`]; without an initramfs the kernel comes as far as looking for a root.
pub async fn start(
    options: &Options,
    config: VmConfig,
    with_initramfs: bool,
) -> Result<UmlVm, VmError> {
    let max_disks = options.max_disks;
    let checked = move || {
        let kernel = check(&config, with_initramfs, max_disks)?;
        Ok((config, Host { kernel, clock_is_tsc: clock_is_tsc() }))
    };
    let (config, host) = blocking("look at the guest's files", checked).await?;
    let ((console, said), (link, theirs)) = (pair()?, pair()?);
    let console = Console::drain(console);
    let launched = config.disks.iter().map(|disk| disk.extents.len()).sum();
    let spec = spec(options, &config, host, with_initramfs, said, theirs)?;
    let jail = spawn(NAME, &config.id, spec).await?;
    let socket = jail.take_socket().ok_or_else(|| VmError::Launch {
        hypervisor: NAME,
        detail: "the jail gave no socket for mconsole".to_owned(),
    })?;
    let mconsole =
        Mconsole::new(socket, jail.pid()).map_err(|error| io("watch a socket", error))?;
    Ok(UmlVm {
        jail,
        console,
        link: StdMutex::new(Some(link)),
        mconsole,
        numbers: Mutex::new(Numbers::new(launched, max_disks)),
    })
}

fn io(what: &'static str, source: Error) -> VmError {
    VmError::Io { what, source }
}

/// Refuses what would not boot, naming it. Blocking.
fn check(config: &VmConfig, with_initramfs: bool, max_disks: usize) -> Result<OwnedFd, VmError> {
    if config.memory_bytes < MIN_MEMORY_BYTES {
        let (bytes, least) = (config.memory_bytes, MIN_MEMORY_BYTES);
        return Err(VmError::MemoryTooSmall { bytes, least });
    }
    if config.vcpus != 1 {
        return Err(unsupported(format!("have {} vCPUs: always 1", config.vcpus)));
    }
    if config.nics.len() > MAX_NICS {
        let count = config.nics.len();
        return Err(unsupported(format!("have {count} network devices: at most {MAX_NICS}")));
    }
    disk::check(&config.disks, max_disks)?;
    if with_initramfs {
        readable(&config.kernel.initramfs)?;
    }
    Ok(kernel::open(&config.kernel.kernel)?.into())
}

fn readable(initramfs: &Path) -> Result<(), VmError> {
    let fail = |source| VmError::File { what: "use initramfs", path: initramfs.to_owned(), source };
    let found = fs::metadata(initramfs).map_err(fail)?;
    if !found.is_file() || found.permissions().mode() & 0o004 == 0 {
        let text = "not a regular file that everybody may read";
        return Err(fail(Error::new(ErrorKind::PermissionDenied, text)));
    }
    Ok(())
}

fn spec(
    options: &Options,
    config: &VmConfig,
    host: Host,
    with_initramfs: bool,
    console: OwnedFd,
    link: OwnedFd,
) -> Result<JailSpec, VmError> {
    let errors = console.try_clone().map_err(|error| io("duplicate a descriptor", error))?;
    let processes = processes(config.memory_bytes);
    let mut spec = JailSpec::new(&config.id, Program::Fd(host.kernel))
        .fixed_addresses()
        // Kernel and guest processes run by turns: on one CPU a turn costs no interrupt.
        .one_cpu()
        .fd(console, 1)
        .fd(errors, 2)
        .fd(link, LINK_FD)
        .datagram_socket()
        // Guest memory is a deleted file here, mapped executable by guest processes.
        .tmpfs(SCRATCH, config.memory_bytes + SCRATCH_EXTRA, true)
        .env("TMPDIR", SCRATCH)
        // The kernel shows the host CPU's features to the guest.
        .bind(Bind::same("/proc/cpuinfo").optional())
        .seccomp(calls::list(options.separation, config.share.is_some()))
        // One socket per guest process, and disks, taps, helpers.
        .rlimit(Resource::OpenFiles, processes + 1024)
        .limits(Limits {
            memory_bytes: Some(memory_limit(config.memory_bytes)),
            pids: Some(processes),
            ..Limits::default()
        });
    if Path::new(RANDOM).exists() {
        spec = spec.device(RANDOM);
    }
    if let Some(parent) = &config.cgroup {
        spec = spec.cgroup(parent);
    }
    if let Some(launcher) = &options.launcher {
        spec = spec.launcher(launcher);
    }
    if with_initramfs {
        spec = spec.bind(Bind::new(&config.kernel.initramfs, INITRAMFS));
    }
    if let Some(share) = &config.share {
        spec = spec.bind(Bind::new(&share.socket, SHARE));
    }
    let mut settings = Vec::new();
    for disk in &config.disks {
        for extent in &disk.extents {
            spec = spec.bind(disk::bind(settings.len(), extent, disk.read_only));
            settings.push(disk::setting(settings.len(), disk.read_only));
        }
    }
    for (at, nic) in config.nics.iter().enumerate() {
        spec = spec.fd(tap(nic)?, cmdline::tap_fd(at));
    }
    let tsc = host.clock_is_tsc;
    Ok(spec.args(cmdline::arguments(config, options.separation, with_initramfs, tsc, &settings)))
}

/// Whether the host's kernel trusts the TSC so far that it is its clock; then guests may.
fn clock_is_tsc() -> bool {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    fs::read_to_string(source).is_ok_and(|name| name.trim() == "tsc")
}

/// The host's random numbers for the guest's (CONFIG_UML_RANDOM).
const RANDOM: &str = "/dev/random";
/// Beside guest memory the scratch tmpfs holds a pid file and a socket.
const SCRATCH_EXTRA: u64 = 1 << 20;

/// Guest memory, the kernel's own data, and what the host's kernel keeps for each guest process.
fn memory_limit(memory_bytes: u64) -> u64 {
    memory_bytes + memory_bytes / 4 + (64 << 20)
}

/// Every guest process is a host process; one takes at least 128 KiB of guest memory.
fn processes(memory_bytes: u64) -> u64 {
    (memory_bytes / (128 << 10)).clamp(1024, 32768)
}
