//! A real guest for tests: a kernel with the agent in it, on a socket pair.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper_link::{
    CallError, EventReceiver, Link, StreamReader, StreamWriter, connect,
    message::{
        CreateContainer, Event, Exec, FileInjection, GuestDisk, ProcessId, Reply, Request, Rootfs,
        Streams,
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixDatagram, UnixStream},
};

/// Hardware address of [`Guest::start_on_wire`]'s network device.
pub const WIRE_MAC: &str = "02:42:0a:09:08:02";
/// Longest any single step may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// What the guest runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Uml,
    /// QEMU without KVM.
    Qemu,
}

impl Machine {
    /// The kernel and initramfs, if they have been built.
    fn built(self) -> Option<(PathBuf, PathBuf)> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
        let kernel = match self {
            Self::Uml => "hyperkernel-um",
            Self::Qemu => "hyperkernel-x86_64",
        };
        let (kernel, initramfs) = (target.join(kernel), target.join("initramfs.cpio"));
        if kernel.exists() && initramfs.exists() {
            return Some((kernel, initramfs));
        }
        eprintln!(
            "SKIPPED: {} or {} is not built (kernel/build all; cargo xtask initramfs)",
            kernel.display(),
            initramfs.display()
        );
        None
    }

    fn disks(self) -> [&'static str; 2] {
        match self {
            Self::Uml => ["/dev/ubda", "/dev/ubdb"],
            Self::Qemu => ["/dev/vda", "/dev/vdb"],
        }
    }

    /// Where file contents are that the image does not have itself: one machine tests it so, the
    /// other with all in one.
    fn layers(self) -> &'static [&'static str] {
        match self {
            Self::Uml => &["/dev/ubdc"],
            Self::Qemu => &[],
        }
    }

    /// The guest's process, with the link on its standard input.
    fn command(self, kernel: &Path, initramfs: &Path, directory: &Path) -> Command {
        let (image, upper) = (directory.join("image"), directory.join("upper"));
        let (initramfs, image, upper) = (initramfs.display(), image.display(), upper.display());
        match self {
            Self::Uml => {
                let mut command = Command::new(kernel);
                command
                    .arg(format!("initrd={initramfs}"))
                    .arg(format!("ubd0r={image}"))
                    .arg(format!("ubd1={upper}"))
                    .arg(format!("ubd2r={}", directory.join("layer").display()))
                    .args(["mem=256M", "con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:0,fd:0"])
                    .args(["hyper.link=/dev/ttyS0", "quiet"])
                    .arg(format!("uml_dir={}", directory.join("uml").display()));
                command
            }
            Self::Qemu => {
                let mut command = Command::new("qemu-system-x86_64");
                command
                    .args(["-machine", "microvm,acpi=off,rtc=on,isa-serial=on,x-option-roms=off"])
                    .args([
                        "-accel",
                        "tcg",
                        "-cpu",
                        "max",
                        "-m",
                        "256",
                        "-nodefaults",
                        "-nographic",
                    ])
                    .args(["-no-user-config", "-no-reboot"])
                    .args([
                        "-chardev",
                        &format!("file,id=console,path={}", directory.join("serial").display()),
                    ])
                    .args(["-serial", "chardev:console"])
                    .args(["-chardev", "socket,id=link,path=link,server=on,wait=off"])
                    .args(["-device", "virtio-serial-device,id=ports,max_ports=2"])
                    .args([
                        "-device",
                        "virtserialport,bus=ports.0,nr=1,chardev=link,name=hyper.link",
                    ])
                    .args([
                        "-drive",
                        &format!("if=none,id=d0,format=raw,read-only=on,file={image}"),
                    ])
                    .args([
                        "-drive",
                        &format!("if=none,id=d1,format=raw,cache=unsafe,file={upper}"),
                    ])
                    .args(["-device", "virtio-blk-device,drive=d1,bus=virtio-mmio-bus.5"])
                    .args(["-device", "virtio-blk-device,drive=d0,bus=virtio-mmio-bus.6"])
                    .args(["-kernel", &kernel.display().to_string()])
                    .args(["-initrd", &initramfs.to_string(), "-append"])
                    .arg(format!(
                        "console=ttyS0 quiet panic=-1 reboot=t hyper.link=/dev/vport0p1 \
                         8250.nr_uarts=1 no_timer_check noreplace-smp nolapic_timer \
                         tsc_early_khz={} tsc=reliable",
                        host_khz()
                    ));
                command
            }
        }
    }
}

/// The rate of the host's time stamp counter, as TCG shows it.
fn host_khz() -> u64 {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("cpu MHz")).unwrap_or_default();
    let mhz: f64 =
        line.split(':').nth(1).and_then(|text| text.trim().parse().ok()).unwrap_or(2000.0);
    (mhz * 1000.0) as u64
}

/// A running guest. Its process ends with this value.
pub struct Guest {
    machine: Machine,
    pub link: Link,
    pub events: EventReceiver,
    /// From the start of the kernel's process to the agent's hello.
    pub ready: Duration,
    process: Process,
    directory: TempDir,
    /// Events taken while waiting for another.
    passed: Vec<Event>,
}

/// A process's ends of its streams.
pub struct Io {
    pub stdin: StreamWriter,
    pub stdout: StreamReader,
    pub stderr: Option<StreamReader>,
}

/// How a process went.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub oom_killed: bool,
}

impl Guest {
    pub async fn start(machine: Machine) -> Result<Option<Self>> {
        Self::start_with(machine, &[], None).await
    }

    /// Under user-mode Linux, with one network device; its other end comes with it.
    pub async fn start_on_wire() -> Result<Option<(Self, UnixDatagram)>> {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair()?;
        ours.set_nonblocking(true)?;
        let device = format!("vec0:transport=fd,fd=2,mac={WIRE_MAC}");
        let guest = Self::start_with(Machine::Uml, &[&device], Some(theirs.into())).await?;
        let wire = UnixDatagram::from_std(ours)?;
        Ok(guest.map(|guest| (guest, wire)))
    }

    async fn start_with(
        machine: Machine,
        more: &[&str],
        stderr: Option<OwnedFd>,
    ) -> Result<Option<Self>> {
        let Some((kernel, initramfs)) = machine.built() else { return Ok(None) };
        let directory = tempfile::tempdir()?;
        make_image(directory.path(), !machine.layers().is_empty())?;
        make_upper(&directory.path().join("upper"))?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let console = File::create(directory.path().join("console"))?;
        let start = Instant::now();
        let process = machine
            .command(&kernel, &initramfs, directory.path())
            .args(more)
            .current_dir(directory.path())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(console.try_clone()?)
            .stderr(stderr.map_or_else(|| Stdio::from(console), Stdio::from))
            .spawn()?;
        let mut process = Process(process);
        let carrier = match machine {
            Machine::Uml => UnixStream::from_std(ours)?,
            Machine::Qemu => dial(&directory.path().join("link")).await?,
        };
        let (link, events) = match connect(carrier, SOON).await {
            Ok(ends) => ends,
            Err(error) => {
                process.end();
                return Err(error).context(console_of(directory.path()));
            }
        };
        let ready = start.elapsed();
        Ok(Some(Self { machine, link, events, ready, process, directory, passed: Vec::new() }))
    }

    pub fn console(&self) -> String {
        console_of(self.directory.path())
    }

    pub async fn call(&self, request: Request) -> Result<Reply, CallError> {
        self.link.call(request, SOON).await
    }

    fn streams(&self, terminal: bool) -> (Streams, Io) {
        let (stdin, _, writer) = self.link.open();
        let (stdout, out, _) = self.link.open();
        let mut streams = Streams { stdin: Some(stdin), stdout: Some(stdout), stderr: None };
        let mut stderr = None;
        if !terminal {
            let (id, reader, _) = self.link.open();
            streams.stderr = Some(id);
            stderr = Some(reader);
        }
        (streams, Io { stdin: writer, stdout: out, stderr })
    }

    /// Creates a container on the guest's disks.
    pub async fn create(
        &self,
        id: &str,
        spec: Value,
        files: Vec<FileInjection>,
        upper: bool,
    ) -> Result<Io, CallError> {
        let terminal = spec["process"]["terminal"].as_bool().unwrap_or(false);
        let (streams, io) = self.streams(terminal);
        let disk = |device: &str| GuestDisk { device: device.to_owned(), bytes: 0 };
        let [image, writable] = self.machine.disks();
        let rootfs = Rootfs {
            image: disk(image),
            layers: self.machine.layers().iter().copied().map(disk).collect(),
            upper: upper.then(|| disk(writable)),
            read_only: false,
        };
        let container = id.to_owned();
        let sockets = Vec::new();
        let create = CreateContainer { container, spec, rootfs, files, sockets, streams };
        self.call(Request::CreateContainer(Box::new(create))).await.map(|_started| io)
    }

    pub async fn start_container(&self, id: &str) -> Result<Reply, CallError> {
        self.call(Request::StartContainer { container: id.to_owned() }).await
    }

    pub async fn exec(&self, id: &str, exec: &str, process: Value) -> Result<Io, CallError> {
        let terminal = process["terminal"].as_bool().unwrap_or(false);
        let (streams, io) = self.streams(terminal);
        let process_id = ProcessId { container: id.to_owned(), exec: Some(exec.to_owned()) };
        let exec = Exec { process: process_id, spec: process, streams };
        self.call(Request::Exec(Box::new(exec))).await.map(|_started| io)
    }

    /// The exit of a process; other events are kept for later.
    pub async fn exited(&mut self, id: &str, exec: Option<&str>) -> Result<(i32, bool)> {
        loop {
            let is_it = |event: &Event| {
                matches!(event, Event::Exited { process, .. }
                    if process.container == id && process.exec.as_deref() == exec)
            };
            if let Some(at) = self.passed.iter().position(is_it)
                && let Event::Exited { code, oom_killed, .. } = self.passed.remove(at)
            {
                return Ok((code, oom_killed));
            }
            let event = tokio::time::timeout(SOON, self.events.recv()).await?;
            self.passed.push(event.context("the link ended")?);
        }
    }

    /// Whether an event of this kind has been seen while waiting for others.
    pub fn has_seen(&self, event: &Event) -> bool {
        self.passed.contains(event)
    }

    /// Reads all output and waits for the exit.
    pub async fn finish(&mut self, id: &str, exec: Option<&str>, io: Io) -> Result<Outcome> {
        let Io { stdin, mut stdout, stderr } = io;
        drop(stdin);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let errors = async {
            match stderr {
                Some(mut stderr) => stderr.read_to_end(&mut err).await,
                None => Ok(0),
            }
        };
        let reading = async { tokio::try_join!(stdout.read_to_end(&mut out), errors) };
        tokio::time::timeout(SOON, reading).await.context("output does not end")??;
        let (code, oom_killed) = self.exited(id, exec).await?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Outcome { code, stdout: text(&out), stderr: text(&err), oom_killed })
    }

    /// Creates, starts, reads, waits and deletes.
    pub async fn run(&mut self, spec: Value) -> Result<Outcome> {
        let io = self.create("run", spec, Vec::new(), true).await?;
        self.start_container("run").await?;
        let outcome = self.finish("run", None, io).await?;
        self.call(Request::DeleteContainer { container: "run".to_owned() }).await?;
        Ok(outcome)
    }

    /// Shuts down by request and checks that the kernel's process ends well.
    pub async fn shut_down(mut self) -> Result<Duration> {
        let start = Instant::now();
        self.call(Request::Shutdown).await?;
        loop {
            if let Some(status) = self.process.0.try_wait()? {
                ensure!(status.success(), "{status}: {}", self.console());
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < SOON, "the guest does not end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Hangs up, and waits for the guest to end itself.
    pub async fn hang_up(self) -> Result<()> {
        let Self { link, events, mut process, directory, .. } = self;
        drop((link, events));
        let start = Instant::now();
        while process.0.try_wait()?.is_none() {
            let console = || format!("the guest goes on: {}", console_of(directory.path()));
            ensure!(start.elapsed() < SOON, console());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Hangs up and, when the guest has noticed, calls again: QEMU only, whose port can be
    /// connected anew.
    pub async fn call_again(self) -> Result<Self> {
        let Self { machine, link, events, process, directory, ready, passed } = self;
        drop((link, events));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let carrier = dial(&directory.path().join("link")).await?;
        let (link, events) = connect(carrier, SOON).await?;
        Ok(Self { machine, link, events, process, directory, ready, passed })
    }
}

/// Connects to the socket `path` as soon as it is there.
async fn dial(path: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > SOON => return Err(error.into()),
            Err(_not_yet) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

fn console_of(directory: &Path) -> String {
    let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
    ["console", "serial"].map(read).concat()
}

/// A guest's process; it ends with this value.
struct Process(Child);

impl Process {
    fn end(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A busybox image with a few users.
fn make_image(directory: &Path, layered: bool) -> Result<()> {
    let root = directory.join("tree");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/alice", "root", "usr/bin"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8(applets.stdout)?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nalice:x:1000:\nwheel:x:10:alice\n")?;
    fs::write(root.join("etc/plain"), "not executable\n")?;
    fs::write(root.join("bin/broken"), "no program\n")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    fs::set_permissions(root.join("bin/broken"), mode(0o755))?;
    fs::set_permissions(root.join("tmp"), mode(0o1777))?;
    let mut make = Command::new("mkfs.erofs");
    make.arg("--quiet");
    if layered {
        make.arg("--chunksize=4096")
            .arg(format!("--blobdev={}", directory.join("layer").display()));
    }
    let made = make.arg(directory.join("image")).arg(&root).output()?;
    ensure!(made.status.success(), "mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

fn make_upper(upper: &Path) -> Result<()> {
    File::create(upper)?.set_len(1 << 30)?;
    let made = Command::new("mke2fs")
        .args([
            "-q",
            "-t",
            "ext4",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        ])
        .arg(upper)
        .output()?;
    ensure!(made.status.success(), "mke2fs: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// A process as Docker asks for it.
pub fn process(args: &[&str]) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 1024}],
        "noNewPrivileges": false,
    })
}

/// A container as Docker asks for it.
pub fn spec(args: &[&str]) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"},
                {"type": "network", "path": "/var/run/netns/x"}, {"type": "cgroup"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "syscalls": [{"names": ["swapon", "mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            },
        },
    })
}

/// [`spec`] for a shell command.
pub fn shell(command: &str) -> Value {
    spec(&["sh", "-c", command])
}
