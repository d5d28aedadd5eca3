//! `lab`: a machine with a real `/dev/kvm` around one command, on any host.
//!
//! QEMU without any KVM (TCG) emulates a CPU with AMD's virtualization and boots Debian's kernel,
//! whose `kvm_amd` is then as real as anywhere. The root is this host's, read-only, under an
//! overlay, so the command finds everything where it is here, as root, and changes nothing:
//!
//! ```text
//! programs, kernel ─► initramfs in memory ─► QEMU ─► init.sh ─► main.sh ─► COMMAND
//! (apt, cached)                               │         output, exit code, copies
//!            time limit, Ctrl-C, our death ───┘  ◄───────────────┘
//! ```
//! Nothing is left on the host but the cached kernel and what `--copy-out` asked for.

mod boot;
mod kernel;
mod machine;

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{Mode, OFlags};

use kernel::Kernel;
use machine::{Config, Event, Machine};

/// The emulated CPU has halted for good: QEMU 7.2 loses what would wake it, once in a long while.
const STOOD_STILL: u8 = 123;
/// How long QEMU may take no CPU time at all: a machine that only waits takes some for its timers.
const STILL: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(5);
/// Codes of ours, as `timeout` and Docker have them.
const TIMED_OUT: u8 = 124;
const FAILED: u8 = 125;
/// How long a KVM that works takes at most to answer, and one that does not to be given up.
const PROBE: Duration = Duration::from_secs(5);
/// Bytes that follow a stream's last.
const MARK: usize = 16;
/// What the last bytes of a copy may take although the time is over.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// Not places of the overlay in the laboratory.
const OWN: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// CPUs of the laboratory. With more than one, QEMU 7.2 breaks guests of its KVM now and then.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Its memory, MiB; what is written goes there, too, unless there is a --disk.
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(512..))]
    memory: u32,
    /// A scratch disk for what is written: GiB at most, on this host's TMPDIR, gone afterwards.
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
    disk: Option<u64>,
    /// Ends it after so long, seconds, with exit code 124.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// QEMU's CPU model. Must have svm and npt.
    #[arg(long, value_name = "MODEL", default_value = "max,-xsave")]
    cpu: String,
    /// What is mounted at /sys/fs/cgroup.
    #[arg(long, value_name = "VERSION", default_value = "v2", value_parser = ["v1", "v2"])]
    cgroup: String,
    /// A variable that the command gets, too: NAME or NAME=VALUE. It has PATH, HOME, LANG, LC_*,
    /// TERM, TMPDIR, USER, CARGO*, HYPER_* and RUST* anyway.
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// A directory of this host whose new and changed files come back. Deletions do not.
    #[arg(long, value_name = "PATH")]
    copy_out: Vec<PathBuf>,
    /// Shows the laboratory's console on stderr.
    #[arg(long)]
    console: bool,
    /// Runs the command right here when this host's own KVM runs kernels.
    #[arg(long)]
    if_needed: bool,
    /// The command; its exit code is ours.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command; 125 when the laboratory itself failed, 124 when the time was over, 123 when its CPU
/// stood still.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let result = if arguments.if_needed && here() { direct(arguments) } else { inside(arguments) };
    result.unwrap_or_else(|problem| {
        eprintln!("lab: {problem:#}");
        ExitCode::from(FAILED)
    })
}

fn here() -> bool {
    match hyper_kvm_probe::probe(PROBE) {
        Ok(()) => {
            eprintln!("lab: this host's KVM works: the command runs on it directly");
            true
        }
        Err(_) => false,
    }
}

fn direct(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let [program, rest @ ..] = arguments.command.as_slice() else { bail!("no command") };
    // With the time limit that it has inside.
    let status = Command::new("timeout")
        .arg(arguments.timeout.to_string())
        .arg(program)
        .args(rest)
        .envs(arguments.env.iter().filter_map(|given| given.to_str()?.split_once('=')))
        .status()
        .context("run timeout")?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(FAILED)))
}

fn inside(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    kernel::programs()?;
    let directory = env::current_dir().context("find the working directory")?;
    let copies: Vec<PathBuf> =
        arguments.copy_out.iter().map(|path| copied(path)).collect::<anyhow::Result<_>>()?;
    let kernel = Kernel::get()?;
    let mut mark = [0; MARK];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut mark))
        .context("read /dev/urandom")?;
    let initramfs = boot::Run {
        command: &arguments.command,
        environment: &arguments.env,
        directory: &directory,
        copies: &copies,
        cgroup: &arguments.cgroup,
        disk: arguments.disk.is_some(),
        mark: &mark,
    }
    .pack(&kernel)?;
    let disk = arguments.disk.map(scratch).transpose()?;
    let (send, events) = mpsc::channel();
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    let config = Config {
        kernel: &kernel.image,
        initramfs: &initramfs,
        cpu: &arguments.cpu,
        cpus: arguments.cpus,
        memory_mib: arguments.memory,
        disk: disk.as_ref(),
        copies: copies.len(),
        mark: &mark,
        verbose: arguments.console,
    };
    let mut machine = Machine::start(&config, send)?;
    let mut unpackers = Vec::new();
    for (path, stream) in copies.iter().zip(machine.copies()) {
        unpackers.push((path, unpack(path, stream)?));
    }

    let mut up = false;
    let mut drained = 0;
    let mut ended = None;
    let mut alive = (machine.cpu_time(), Instant::now());
    let code = loop {
        if let (Some(code), 2) = (ended, drained) {
            break code;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left.min(LOOK)) {
            Ok(Event::Up) => up = true,
            Ok(Event::Exit(code)) => ended = Some(code),
            Ok(Event::Drained(Ok(()))) => drained += 1,
            Ok(Event::Drained(Err(problem))) if problem.kind() != ErrorKind::UnexpectedEof => {
                return Err(problem).context("pass the output on");
            }
            Err(RecvTimeoutError::Timeout) if left > LOOK => {
                let now = machine.cpu_time();
                if now != alive.0 {
                    alive = (now, Instant::now());
                }
                if now.is_some() && alive.1.elapsed() > STILL {
                    eprintln!("lab: its CPU stands still; the last lines of the console:");
                    print(&machine.console());
                    unpackers.iter_mut().for_each(|(_, unpacker)| stop(unpacker));
                    machine.end();
                    return Ok(ExitCode::from(STOOD_STILL));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let what =
                    if up { "the command had not ended" } else { "the laboratory was not up" };
                eprintln!(
                    "lab: {what} after {} s; the last lines of the console:",
                    arguments.timeout
                );
                print(&machine.console());
                unpackers.iter_mut().for_each(|(_, unpacker)| stop(unpacker));
                machine.end();
                return Ok(ExitCode::from(TIMED_OUT));
            }
            Ok(Event::Gone | Event::Drained(_)) | Err(RecvTimeoutError::Disconnected) => {
                // Its last words may still be on their way.
                thread::sleep(Duration::from_millis(200));
                let how = machine.how();
                eprintln!(
                    "lab: QEMU ended before the command ({how}); the last lines of the console:"
                );
                print(&machine.console());
                unpackers.iter_mut().for_each(|(_, unpacker)| stop(unpacker));
                return Ok(ExitCode::from(FAILED));
            }
        }
    };
    for (path, unpacker) in &mut unpackers {
        let status = wait(unpacker, deadline.max(Instant::now() + LAST_BYTES));
        let status = status.with_context(|| format!("copy files to `{}`", path.display()))?;
        ensure!(
            status.success(),
            "files could not be copied to `{}`: tar: {status}",
            path.display()
        );
    }
    machine.end();
    Ok(ExitCode::from(code))
}

/// Ends a program that waits for what will not come.
fn stop(child: &mut Child) {
    // Fails only when it is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits for a program that has all it needs; kills it when it is late.
fn wait(child: &mut Child, deadline: Instant) -> anyhow::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("wait for tar")? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill().context("kill tar")?;
            bail!("tar did not end: {}", child.wait()?);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn print(lines: &[String]) {
    for line in lines {
        eprintln!("lab: | {line}");
    }
}

/// The directory to copy to, made if need be; its real name is the one in the overlay.
fn copied(path: &Path) -> anyhow::Result<PathBuf> {
    let own = |path: &Path| path.parent().is_none() || OWN.iter().any(|own| path.starts_with(own));
    let refused = || {
        format!(
            "nothing can be copied out of `{}`: name a directory that is not below {}",
            path.display(),
            OWN.join(", ")
        )
    };
    ensure!(!own(&std::path::absolute(path)?), refused());
    fs::create_dir_all(path).with_context(|| format!("make `{}`", path.display()))?;
    let real = fs::canonicalize(path).with_context(|| format!("find `{}`", path.display()))?;
    ensure!(!own(&real), refused());
    Ok(real)
}

/// Unpacks what comes into `path`, as the user that we are.
fn unpack(path: &Path, stream: std::os::unix::net::UnixStream) -> anyhow::Result<Child> {
    let stream: std::os::fd::OwnedFd = stream.into();
    Command::new("tar")
        .args(["-x", "-S", "-f", "-", "-C"])
        .arg(path)
        .stdin(Stdio::from(stream))
        .spawn()
        .context("run tar")
}

/// A sparse file without a name, with an empty file system.
fn scratch(gib: u64) -> anyhow::Result<File> {
    let directory = env::temp_dir();
    let file = rustix::fs::open(
        &directory,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
    .with_context(|| format!("make a file without a name in `{}`", directory.display()))?;
    let file = File::from(file);
    file.set_len(gib << 30).context("size the scratch disk")?;
    let mke2fs = kernel::find("mke2fs").context("no mke2fs")?;
    let name =
        format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    let output = Command::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", &name])
        .output()
        .context("run mke2fs")?;
    ensure!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(file)
}
