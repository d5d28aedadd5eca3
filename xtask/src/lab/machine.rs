//! The laboratory's machine: one QEMU process that ends with us, whatever way we end, and has no
//! file of its own: kernel, initramfs and every stream are descriptors.
//!
//! ```text
//! port 1 ─► Event::Up, Exit     port 2, 3 ─► our stdout, stderr until the mark ─► Event::Drained
//! serial console, QEMU's own stderr ─► the last lines    port 4… ─► tar -x, one per --copy-out
//! ```

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;

/// Lines of the console that are kept to explain a failure.
const KEPT_LINES: usize = 60;
/// Longest line of the console that is kept whole, bytes.
const LONGEST_LINE: u64 = 4096;
/// The one line that is the laboratory's; what it waits for is emulated, so no mitigations.
const KERNEL_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 reboot=t mitigations=off tsc=reliable";

/// What the machine is made of.
#[derive(Debug)]
pub(super) struct Config<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a [u8],
    /// For `-cpu`.
    pub(super) cpu: &'a str,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    /// A disk for what is written, in place of memory: an open file without a name.
    pub(super) disk: Option<&'a File>,
    pub(super) copies: usize,
    /// What follows the last byte of each output stream.
    pub(super) mark: &'a [u8],
    /// Shows the console on our stderr.
    pub(super) verbose: bool,
}

/// What the machine tells.
#[derive(Debug)]
pub(super) enum Event {
    /// The command runs.
    Up,
    /// The command ended; its output and the copies are on their way.
    Exit(u8),
    /// One of the two output streams has come whole, or not.
    Drained(io::Result<()>),
    /// The machine is gone.
    Gone,
}

/// A running machine; dropped, it is killed.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    output: Vec<JoinHandle<()>>,
    console: Arc<Mutex<VecDeque<String>>>,
    copies: Vec<UnixStream>,
}

impl Machine {
    pub(super) fn start(config: &Config<'_>, events: Sender<Event>) -> anyhow::Result<Self> {
        let initramfs = rustix::fs::memfd_create("lab-initramfs", MemfdFlags::CLOEXEC)
            .context("make a file in memory")?;
        File::from(initramfs.try_clone()?)
            .write_all(config.initramfs)
            .context("write the initramfs")?;

        let mut ports = Vec::new();
        let mut theirs: Vec<OwnedFd> = Vec::new();
        for _ in 0..3 + config.copies {
            let (ours, its) = UnixStream::pair().context("make a socket pair")?;
            ports.push(ours);
            theirs.push(its.into());
        }
        let (console, its_console) = UnixStream::pair().context("make a socket pair")?;

        // QEMU and nobody else gets these; it dies with this thread, also when we are killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        command.args(arguments(config, initramfs.as_raw_fd(), its_console.as_raw_fd(), &theirs));
        for descriptor in theirs.iter().chain([&initramfs]) {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        rustix::io::fcntl_setfd(&its_console, FdFlags::empty())?;
        let disk = config.disk.map(File::try_clone).transpose()?;
        if let Some(disk) = &disk {
            rustix::io::fcntl_setfd(disk, FdFlags::empty())?;
            command.args(disk_arguments(disk.as_raw_fd()));
        }
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("run setpriv and qemu-system-x86_64")?;
        drop((theirs, its_console, disk));

        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = qemu.stderr.take().context("QEMU's stderr")?;
        keep(stderr, Arc::clone(&kept), config.verbose);
        keep(console, Arc::clone(&kept), config.verbose);
        let copies = ports.split_off(3);
        let mut ports = ports.into_iter();
        let mut output = Vec::new();
        if let (Some(told), Some(stdout), Some(stderr)) = (ports.next(), ports.next(), ports.next())
        {
            output.push(passing(stdout, io::stdout(), config.mark, events.clone()));
            output.push(passing(stderr, io::stderr(), config.mark, events.clone()));
            thread::spawn(move || tell(told, &events));
        }
        Ok(Self { qemu, output, console: kept, copies })
    }

    /// Takes the streams of the copies: each is one tar archive.
    pub(super) fn copies(&mut self) -> Vec<UnixStream> {
        std::mem::take(&mut self.copies)
    }

    /// The last lines of the console.
    pub(super) fn console(&self) -> Vec<String> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// CPU time that QEMU has taken, in clock ticks (proc(5), `stat`).
    pub(super) fn cpu_time(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.qemu.id())).ok()?;
        // Behind the name: state, then ten numbers that are none of ours.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut next = || fields.next()?.parse::<u64>().ok();
        Some(next()? + next()?)
    }

    /// How QEMU ended.
    pub(super) fn how(&mut self) -> String {
        match self.qemu.try_wait() {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "it still runs".to_owned(),
            Err(problem) => problem.to_string(),
        }
    }

    /// Ends the machine and passes on what it has said so far.
    pub(super) fn end(mut self) {
        self.kill();
        for reader in self.output.drain(..) {
            // Nothing in it panics, and if it did, it has said so.
            let _ = reader.join();
        }
    }

    fn kill(&mut self) {
        // Fails only when it is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn arguments(
    config: &Config<'_>,
    initramfs: i32,
    console: i32,
    ports: &[OwnedFd],
) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| all.extend(words.iter().map(OsString::from));
    add(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-name",
        "hyper-lab",
    ]);
    // A thread per CPU. thread=single is no way around QEMU's trouble with several (docs/lab.md):
    // in it half of the guests do not get through their boot.
    add(&["-machine", "pc,usb=off", "-accel", "tcg,thread=multi", "-cpu", config.cpu]);
    add(&["-smp", &config.cpus.to_string(), "-m", &config.memory_mib.to_string()]);
    add(&["-initrd", &format!("/proc/self/fd/{initramfs}"), "-append", KERNEL_LINE]);
    // remap: the root may span several file systems. none: nothing is written.
    let export = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap";
    add(&["-fsdev", export, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    add(&[
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]);
    add(&["-chardev", &format!("socket,id=console,fd={console}"), "-serial", "chardev:console"]);
    add(&["-device", "virtio-serial-pci"]);
    for (port, descriptor) in (1..).zip(ports) {
        add(&["-chardev", &format!("socket,id=port{port},fd={}", descriptor.as_raw_fd())]);
        add(&["-device", &format!("virtserialport,chardev=port{port},nr={port}")]);
    }
    all.push("-kernel".into());
    all.push(config.kernel.into());
    all
}

fn disk_arguments(descriptor: i32) -> [String; 6] {
    let node = "driver=raw,node-name=scratch,file.driver=file,file.filename=/dev/fdset/1,cache.no-flush=on,discard=unmap";
    [
        "-add-fd".to_owned(),
        format!("fd={descriptor},set=1"),
        "-blockdev".to_owned(),
        node.to_owned(),
        "-device".to_owned(),
        "virtio-blk-pci,drive=scratch".to_owned(),
    ]
}

/// Keeps the last lines of a console.
fn keep(from: impl Read + Send + 'static, kept: Arc<Mutex<VecDeque<String>>>, show: bool) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while (&mut from)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if show {
                eprintln!("lab: | {text}");
            }
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text);
        }
    });
}

fn tell(port: UnixStream, events: &Sender<Event>) {
    for line in BufReader::new(port).lines().map_while(Result::ok) {
        let event = match line.split_once(' ') {
            None if line == "up" => Event::Up,
            Some(("exit", code)) => Event::Exit(code.parse().unwrap_or(u8::MAX)),
            _ => continue,
        };
        // Nobody listens any more: the run is over.
        let _ = events.send(event);
    }
    let _ = events.send(Event::Gone);
}

fn passing(
    from: UnixStream,
    to: impl Write + Send + 'static,
    mark: &[u8],
    events: Sender<Event>,
) -> JoinHandle<()> {
    let mark = mark.to_vec();
    thread::spawn(move || {
        let result = pass(from, to, &mark);
        // Nobody listens any more: the run is over.
        let _ = events.send(Event::Drained(result));
    })
}

/// Passes on what comes before the mark. Only what may be the mark's beginning is held back.
fn pass(mut from: impl Read, mut to: impl Write, mark: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut held = Vec::new();
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error),
            // The machine is gone.
            Ok(0) | Err(_) => {
                to.write_all(&held)?;
                to.flush()?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(count) => count,
        };
        held.extend(&buffer[..count]);
        let possible = (0..=mark.len().min(held.len())).rev();
        let tail = possible.into_iter().find(|size| held.ends_with(&mark[..*size])).unwrap_or(0);
        to.write_all(&held[..held.len() - tail])?;
        to.flush()?;
        if tail == mark.len() {
            return Ok(());
        }
        held.drain(..held.len() - tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one piece per read.
    struct Pieces(VecDeque<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let piece = self.0.pop_front().unwrap_or_default();
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn passed(pieces: &[&'static [u8]]) -> (io::Result<()>, Vec<u8>) {
        let mut to = Vec::new();
        let result = pass(Pieces(pieces.iter().copied().collect()), &mut to, b"ABA!");
        (result, to)
    }

    #[test]
    fn a_stream_ends_with_its_mark_however_it_is_cut() {
        for pieces in [&[b"xABA!".as_slice()][..], &[b"xA", b"B", b"A!"], &[b"x", b"ABA!", b"no"]] {
            let (result, to) = passed(pieces);
            assert!(result.is_ok() && to == b"x", "{pieces:?}: {result:?} {to:?}");
        }
        let (result, to) = passed(&[b"ABA", b"BA!"]);
        assert!(result.is_ok() && to == b"AB", "{to:?}");
        let (result, to) = passed(&[b"xAB"]);
        assert!(result.is_err() && to == b"xAB", "what was held back is not lost: {to:?}");
    }
}
