//! From a configuration to a running guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::{Nic, Vm, VmConfig, VmError};
use hyper_jail::{Jailed, Outcome};
use tokio::net::{UnixStream, unix::pipe};
use tokio::time::timeout;

use crate::accelerator::Chosen;
use crate::block::{self, Slots};
use crate::console::{Console, Tail};
use crate::control::Control;
use crate::disk;
use crate::machine::{self, DiskArgs, Machine, NicArgs, fd};
use crate::vm::{self, Guest};
use crate::{MAX_NICS, MAX_VCPUS, MIN_MEMORY, NAME, Options, SHARES, jail, kernel};

const PROGRAM: &str = "qemu-system-x86_64";
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/libexec", "/opt/qemu/bin"];
/// Longest kernel command line of x86 is 2048 bytes; ours takes a part.
const MAX_EXTRA: usize = 1024;
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
    check(&config)?;
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

/// Refuses what no machine of ours has.
fn check(config: &VmConfig) -> Result<(), VmError> {
    let unsupported = |what: String| Err(VmError::Unsupported { hypervisor: NAME, what });
    if config.memory_bytes < MIN_MEMORY {
        return Err(VmError::MemoryTooSmall { bytes: config.memory_bytes, least: MIN_MEMORY });
    }
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return unsupported(format!("give a guest {} vCPUs, 1 to {MAX_VCPUS}", config.vcpus));
    }
    if config.nics.len() > MAX_NICS {
        let count = config.nics.len();
        return unsupported(format!("give a guest {count} network devices, at most {MAX_NICS}"));
    }
    // One number, whatever the network devices: it is told as a capability.
    let most = machine::disk_slots(MAX_NICS + SHARES);
    if config.disks.len() > most {
        return unsupported(format!("give a guest {} disks, at most {most}", config.disks.len()));
    }
    if let Some(nic) = config.nics.iter().find(|nic| !is_mac(&nic.mac)) {
        return unsupported(format!("use the MAC address `{}`", nic.mac));
    }
    let words = &config.kernel.extra_cmdline;
    // A blank would make two words of one, a quote would swallow those behind it.
    let odd = |word: &&String| !word.chars().all(|c| c.is_ascii_graphic() && c != '"');
    if let Some(word) = words.iter().find(odd) {
        return unsupported(format!("put `{}` on a kernel command line", word.escape_debug()));
    }
    let length: usize = words.iter().map(|word| word.len() + 1).sum();
    if length > MAX_EXTRA {
        return unsupported(format!("append {length} bytes to the command line, at most 1024"));
    }
    Ok(())
}

fn is_mac(text: &str) -> bool {
    let mut parts = text.split(':');
    text.len() == 17
        && parts.all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

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
    use hyper_hypervisor::GuestKernel;

    fn config() -> VmConfig {
        VmConfig {
            id: "p1".into(),
            kernel: GuestKernel {
                kernel: "/k".into(),
                initramfs: "/i".into(),
                extra_cmdline: vec![],
            },
            vcpus: 1,
            memory_bytes: 64 << 20,
            disks: vec![],
            nics: vec![],
            share: None,
            run_dir: "/r".into(),
            cgroup: None,
        }
    }

    fn says(change: impl FnOnce(&mut VmConfig)) -> String {
        let mut config = config();
        change(&mut config);
        check(&config).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn words_cannot_break_out_of_the_command_line() {
        assert_eq!(says(|_| {}), "");
        for word in ["a b", "a\nb", "\"", "é", ""] {
            let said = says(|config| config.kernel.extra_cmdline = vec![word.into()]);
            assert_eq!(said.is_empty(), word.is_empty(), "{word:?}: {said}");
        }
        let long = says(|config| config.kernel.extra_cmdline = vec!["x".repeat(1024)]);
        assert!(long.contains("1025 bytes"));
    }

    #[test]
    fn a_mac_cannot_add_properties() {
        assert!(is_mac("02:00:00:00:00:0a"));
        assert!(!is_mac("02:00:00:00:00:0a,x=y"));
        assert!(!is_mac("02:00:00:00:00,0a"));
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let options = Options { program: Some("/no/qemu".into()), ..Options::default() };
        let error = program(&options).unwrap_err().to_string();
        assert!(error.contains("`/no/qemu`") && error.contains("apt-get install qemu-system-x86"));
    }
}
