//! A living jail, seen from the supervisor.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::cgroup::{Cgroups, IoHeld, IoRates};
use crate::cpu::Waits;
use crate::spawn::{Keeper, start, unexpected};
use crate::spec::Bind;
use crate::wire::{self, LookedUp, Order, Report};
use crate::{JailError, JailUsage, cpu, usage};

/// How long the kernel may take to end killed processes before the harder way is tried.
const GRACE: Duration = Duration::from_secs(5);

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended by itself.
    Exited(i32),
    /// A signal ended it; 31 (SIGSYS) is the seccomp filter.
    Signaled(i32),
    /// [`Jailed::kill`] was called.
    Killed,
    /// The launcher was killed from outside, and the program with it.
    LauncherDied,
}

/// The end of a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailExit {
    pub outcome: Outcome,
    /// The OOM killer struck in the jail's cgroup.
    pub oom: bool,
    /// CPU time of the program and the children it waited for; zero when killed.
    pub cpu: Duration,
}

/// A running jail. Dropping it kills the program and removes the cgroup; that blocks for the
/// milliseconds the kernel needs, so call [`Jailed::kill`] first where that matters.
#[derive(Debug)]
pub struct Jailed {
    leash: Leash,
    launcher: PathBuf,
    uid: u32,
    pid: u32,
    init_pid: u32,
    init: OwnedFd,
    hypervisor: OwnedFd,
    missing: Vec<String>,
    socket: Mutex<Option<OwnedFd>>,
    exit: Mutex<Option<JailExit>>,
    killed: AtomicBool,
    cpu: Option<AbortOnDropHandle<()>>,
    /// It is to be on one CPU.
    one_cpu: bool,
    cpus: cpu::Allowed,
}

impl Jailed {
    pub(crate) fn new(
        mut leash: Leash,
        launcher: PathBuf,
        uid: u32,
        missing: Vec<String>,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, JailError> {
        let mut fds = fds.into_iter();
        let (Some(init), Some(hypervisor)) = (fds.next(), fds.next()) else {
            return Err(JailError::LauncherDied { name: leash.name.clone(), doing: "starting" });
        };
        let init_pid = pid_of(&leash.name, &init)?;
        let pid = pid_of(&leash.name, &hypervisor)?;
        // Should this fail, init has ended, and wait() will tell how.
        let _ = wire::send(leash.control(), &LookedUp, &[]);
        let kept = init.try_clone();
        leash.init = Some(kept.map_err(|source| leash.io("duplicate a pidfd", source))?);
        Ok(Self {
            leash,
            launcher,
            uid,
            pid,
            init_pid,
            init,
            hypervisor,
            missing,
            socket: Mutex::new(fds.next()),
            exit: Mutex::new(None),
            killed: AtomicBool::new(false),
            cpu: None,
            one_cpu: false,
            cpus: cpu::Allowed::all(),
        })
    }

    /// Starts the watch that moves a jail that waits for its CPU; it ends with the jail.
    pub(crate) fn keep_on_one_cpu(&mut self) {
        self.one_cpu = true;
        let Some(cgroups) = self.leash.cgroups.clone() else { return };
        let watch = tokio::spawn(cpu::watch(cgroups, self.pid, self.cpus.clone()));
        self.cpu = Some(AbortOnDropHandle::new(watch));
    }

    /// Keeps the jail on the CPU of the process `leader`, for as long as that one is on one: what works by turns with it
    /// is woken without an interrupt of another CPU. Within a tokio runtime.
    pub fn follow(&mut self, leader: u32) {
        let follow = cpu::follow(self.leash.cgroups.clone(), self.pid, leader);
        self.cpu = Some(AbortOnDropHandle::new(tokio::spawn(follow)));
    }

    /// Host pid of the program.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Host pid of the keeper; killing it ends the jail.
    pub fn keeper_pid(&self) -> u32 {
        self.leash.keeper.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Host pid of the jail's init; killing it ends the jail.
    pub fn init_pid(&self) -> u32 {
        self.init_pid
    }

    /// Uid and gid of the program on the host: its own when the supervisor is root, else the
    /// supervisor's.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// What was asked for and this host cannot give, one sentence each.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// The socket of [`crate::JailSpec::datagram_socket`]; `Some` once. It blocks: make it
    /// non-blocking where needed.
    pub fn take_socket(&self) -> Option<OwnedFd> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sends a signal to the program (not to its children).
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: i32) -> Result<(), JailError> {
        let signal = Signal::from_named_raw(signal).ok_or_else(|| JailError::Spec {
            what: format!("signal {signal}"),
            hint: "no such signal".to_owned(),
        })?;
        pidfd_send_signal(&self.hypervisor, signal)
            .map_err(|error| self.leash.io("send a signal", error.into()))
    }

    /// Waits until the program has ended and nothing is left of the jail. May be called often and
    /// at once from many tasks.
    pub async fn wait(&self) -> JailExit {
        loop {
            if let Some(exit) = self.seen_exit() {
                self.leash.settle().await;
                return exit;
            }
            let Ok(mut ready) = self.leash.keeper.control.ready(Interest::READABLE).await else {
                // The reactor is shutting down; nobody can wait any more.
                self.leash.take_down();
                self.set_exit(None);
                continue;
            };
            // A packet taken here is recorded before the next await: nothing is lost when this
            // future is dropped.
            match wire::receive::<Report>(self.leash.control()) {
                Ok(Some((Report::Ended { code, signal, oom, cpu_us }, _))) => {
                    let outcome = match (code, signal) {
                        (Some(code), _) => Outcome::Exited(code),
                        (None, Some(signal)) => Outcome::Signaled(signal),
                        (None, None) => Outcome::LauncherDied,
                    };
                    let cpu = Duration::from_micros(cpu_us);
                    self.set_exit(Some(JailExit { outcome, oom, cpu }));
                }
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Ok(None) | Err(_) => self.set_exit(None),
            }
        }
    }

    /// Ends everything in the jail at once; returns when all of it is gone, the cgroup included.
    pub async fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.leash.strike();
        self.leash.settle().await;
    }

    /// Whether [`Jailed::freeze`] works here.
    pub fn can_freeze(&self) -> bool {
        self.leash.cgroups.as_ref().is_some_and(Cgroups::can_freeze)
    }

    /// Stops all processes of the jail; returns when they stand still.
    ///
    /// # Errors
    /// This host has no freezer, or it took longer than 5 s.
    pub async fn freeze(&self) -> Result<(), JailError> {
        self.set_frozen(true).await
    }

    /// Continues after [`Jailed::freeze`].
    ///
    /// # Errors
    /// As [`Jailed::freeze`].
    pub async fn thaw(&self) -> Result<(), JailError> {
        self.set_frozen(false).await
    }

    async fn set_frozen(&self, stop: bool) -> Result<(), JailError> {
        let Some(cgroups) = self.leash.cgroups.as_ref().filter(|groups| groups.can_freeze()) else {
            return Err(JailError::Unsupported {
                name: self.leash.name.clone(),
                what: "freeze its processes",
                hint: "no cgroup v2 and no v1 freezer that we may use".to_owned(),
            });
        };
        cgroups.freeze(stop).map_err(|source| self.leash.io("write to the freezer", source))?;
        let doing = if stop { "freezing" } else { "thawing" };
        let deadline = Instant::now() + GRACE;
        loop {
            let state = cgroups.is_frozen();
            match state.map_err(|source| self.leash.io("read the freezer's state", source))? {
                now if now == stop => return Ok(()),
                _ if Instant::now() > deadline => {
                    let name = self.leash.name.clone();
                    return Err(JailError::Timeout { name, doing, after: GRACE });
                }
                _ => sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Changes the jail's share of the CPUs: weight 1 to 10000, and microseconds per period.
    ///
    /// # Errors
    /// [`JailError::Unsupported`] when this host has no cgroup for it; the kernel's.
    pub fn set_cpu(&self, weight: u64, quota: Option<(u64, u64)>) -> Result<(), JailError> {
        let set = self.leash.cgroups.as_ref().map(|cgroups| cgroups.set_cpu(weight, quota));
        match set {
            Some(Ok(true)) => Ok(()),
            Some(Err(error)) => Err(self.leash.io("set its share of the CPUs", error.source)),
            Some(Ok(false)) | None => Err(JailError::Unsupported {
                name: self.leash.name.clone(),
                what: "bound its CPU time",
                hint: "no cgroup with the controller cpu that we may use".to_owned(),
            }),
        }
    }

    /// Changes the CPUs that the jail runs on; `None`: all that this process has. What it starts later runs there,
    /// too. Reads and writes of `/proc`, short.
    ///
    /// # Errors
    /// This process has none of them; the kernel's.
    pub fn set_cpus(&self, cpus: Option<&BTreeSet<usize>>) -> Result<(), JailError> {
        if cpus.is_none() && !self.cpus.is_narrowed() {
            return Ok(());
        }
        let cgroups = self.leash.cgroups.as_ref();
        let placed = self.cpus.change(cpus);
        let placed = placed.and_then(|cpus| cpu::place(cgroups, self.pid, &cpus, self.one_cpu));
        placed.map_err(|source| self.leash.io("move it to its CPUs", source))
    }

    /// Changes the limit of the jail's memory.
    ///
    /// # Errors
    /// [`JailError::Unsupported`] when this host has no cgroup for it; the kernel's.
    pub fn set_memory(&self, bytes: u64) -> Result<(), JailError> {
        let set = self.leash.cgroups.as_ref().map(|cgroups| cgroups.set_memory(bytes));
        match set {
            Some(Ok(true)) => Ok(()),
            Some(Err(error)) => Err(self.leash.io("change its memory limit", error.source)),
            Some(Ok(false)) | None => Err(JailError::Unsupported {
                name: self.leash.name.clone(),
                what: "bound its memory",
                hint: "no cgroup with the controller memory that we may use".to_owned(),
            }),
        }
    }

    /// Bounds what the jail reads from and writes to the block device `device` (major, minor); says
    /// what of it this host does hold.
    ///
    /// # Errors
    /// [`JailError::Unsupported`] when this host has no cgroup for it; the kernel's.
    pub fn set_io(&self, device: (u32, u32), rates: IoRates) -> Result<IoHeld, JailError> {
        let set = self.leash.cgroups.as_ref().map(|cgroups| cgroups.set_io(device, rates));
        match set {
            Some(Ok(Some(held))) => Ok(held),
            Some(Err(error)) => Err(self.leash.io("bound its disk transfers", error.source)),
            Some(Ok(None)) | None => Err(JailError::Unsupported {
                name: self.leash.name.clone(),
                what: "bound its disk transfers",
                hint: "no cgroup with the controller io (or blkio) that we may use".to_owned(),
            }),
        }
    }

    /// What all processes of the jail use, launcher included.
    ///
    /// # Errors
    /// The jail has ended.
    pub async fn usage(&self) -> Result<JailUsage, JailError> {
        let cgroups = self.leash.cgroups.clone();
        let roots = [self.keeper_pid(), self.init_pid, self.pid];
        let read = tokio::task::spawn_blocking(move || usage::read(cgroups.as_ref(), &roots)).await;
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        read.map_err(|source| self.leash.io("read what the jail uses", source))
    }

    /// How long its tasks have waited for the host, so far.
    pub async fn waits(&self) -> Waits {
        let (cgroups, pid) = (self.leash.cgroups.clone(), self.pid);
        let read = tokio::task::spawn_blocking(move || cpu::waits(cgroups.as_ref(), pid)).await;
        read.unwrap_or_default()
    }

    /// Shows one more file of the host in the running jail.
    ///
    /// # Errors
    /// As [`crate::spawn`]; and [`JailError::Unsupported`] when the supervisor is not root.
    pub async fn bind(&self, bind: Bind) -> Result<(), JailError> {
        let what = "show another file in the running jail";
        self.order(&Order::Bind { bind, uid: self.uid }, what).await
    }

    /// Takes files out of the running jail that [`Jailed::bind`] has shown in it, by their targets:
    /// what its programs have open stays open.
    ///
    /// # Errors
    /// As [`Jailed::bind`]. Those that could be taken out are out.
    pub async fn unbind(&self, targets: Vec<PathBuf>) -> Result<(), JailError> {
        self.order(&Order::Unbind { targets }, "take a file out of the running jail").await
    }

    async fn order(&self, order: &Order, what: &'static str) -> Result<(), JailError> {
        if !rustix::process::geteuid().is_root() {
            return Err(JailError::Unsupported {
                name: self.leash.name.clone(),
                what,
                hint: "only root may".to_owned(),
            });
        }
        let name = &self.leash.name;
        let keeper = start(name, &self.launcher)?;
        let mut leash = Leash::new(name.clone(), keeper, None);
        wire::send(leash.control(), order, &[self.init.as_fd()])
            .map_err(|source| leash.io("send an order to the launcher", source))?;
        let report = leash.report(GRACE, what).await;
        leash.settle().await;
        match report? {
            (Report::Bound, _) => Ok(()),
            (report, _) => Err(unexpected(name, report)),
        }
    }

    fn seen_exit(&self) -> Option<JailExit> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the first word on the end; `None`: the launcher said nothing.
    fn set_exit(&self, exit: Option<JailExit>) {
        let silent =
            || JailExit { outcome: Outcome::LauncherDied, oom: false, cpu: Duration::ZERO };
        let mut exit = exit.unwrap_or_else(silent);
        if self.killed.load(Ordering::SeqCst) && exit.outcome == Outcome::LauncherDied {
            exit.outcome = Outcome::Killed;
        }
        let mut seen = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get_or_insert(exit);
    }
}

/// What holds a launcher: dropping it takes the jail down.
#[derive(Debug)]
pub(crate) struct Leash {
    name: String,
    keeper: Keeper,
    init: Option<OwnedFd>,
    cgroups: Option<Cgroups>,
}

impl Leash {
    pub(crate) fn new(name: String, keeper: Keeper, cgroups: Option<Cgroups>) -> Self {
        Self { name, keeper, init: None, cgroups }
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.keeper.control.get_ref().as_fd()
    }

    fn io(&self, doing: &'static str, source: io::Error) -> JailError {
        JailError::Io { name: self.name.clone(), doing, source }
    }

    /// The next report.
    pub(crate) async fn report(
        &mut self,
        patience: Duration,
        doing: &'static str,
    ) -> Result<(Report, Vec<OwnedFd>), JailError> {
        let take = self.keeper.control.async_io(Interest::READABLE, |fd| wire::receive(fd));
        match timeout(patience, take).await {
            Err(_) => {
                let name = self.name.clone();
                Err(JailError::Timeout { name, doing, after: patience })
            }
            Ok(Ok(Some(report))) => Ok(report),
            Ok(Ok(None)) => {
                let name = self.name.clone();
                Err(JailError::LauncherDied { name, doing })
            }
            Ok(Err(source)) => Err(self.io("read the launcher's report", source)),
        }
    }

    /// Kills what can be killed: init, and with it all of its pid namespace; before there is one,
    /// the keeper.
    fn strike(&self) {
        match &self.init {
            Some(init) => {
                let _ = pidfd_send_signal(init, Signal::KILL);
            }
            None => {
                let _ = pidfd_send_signal(self.keeper.pidfd.get_ref(), Signal::KILL);
            }
        }
        if let Some(cgroups) = &self.cgroups {
            // A frozen v1 process does not die before it is thawed.
            let _ = cgroups.freeze(false);
        }
    }

    /// Waits until the keeper has cleaned up and ended; helps after 5 s.
    pub(crate) async fn settle(&self) {
        let gone = async {
            while self.keeper_alive() {
                match self.keeper.pidfd.readable().await {
                    Ok(mut ready) => {
                        if self.keeper_alive() {
                            ready.clear_ready();
                        }
                    }
                    Err(_) => return,
                }
            }
        };
        if timeout(GRACE, gone).await.is_err() {
            self.strike();
            let _ = pidfd_send_signal(self.keeper.pidfd.get_ref(), Signal::KILL);
        }
        // Only a keeper that was killed leaves init to be waited for.
        let limit = Instant::now() + GRACE;
        while self.init_alive() && Instant::now() < limit {
            sleep(Duration::from_millis(1)).await;
        }
        self.reap();
        let Some(cgroups) = self.cgroups.clone() else { return };
        if cgroups.are_gone() {
            cgroups.remove_default_parent();
        } else {
            let _ = tokio::task::spawn_blocking(move || cgroups.remove(GRACE)).await;
        }
    }

    /// As strike and settle, without a runtime.
    fn take_down(&self) {
        if self.keeper_alive() {
            self.strike();
            wait_for(self.keeper.pidfd.get_ref(), GRACE);
            if self.keeper_alive() {
                let _ = pidfd_send_signal(self.keeper.pidfd.get_ref(), Signal::KILL);
                wait_for(self.keeper.pidfd.get_ref(), GRACE);
            }
        }
        if let Some(init) = &self.init {
            wait_for(init, GRACE);
        }
        self.reap();
        let Some(cgroups) = &self.cgroups else { return };
        if cgroups.are_gone() {
            cgroups.remove_default_parent();
        } else {
            let _ = cgroups.freeze(false);
            cgroups.remove(GRACE);
        }
    }

    fn keeper_alive(&self) -> bool {
        !is_readable(self.keeper.pidfd.get_ref(), Duration::ZERO)
    }

    fn init_alive(&self) -> bool {
        self.init.as_ref().is_some_and(|init| !is_readable(init, Duration::ZERO))
    }

    /// Takes exit statuses so that no zombie stays: the keeper's, which in a shim may be gone
    /// already; and init's, which is ours only if the keeper died first and we are a subreaper.
    fn reap(&self) {
        for pidfd in [Some(self.keeper.pidfd.get_ref()), self.init.as_ref()].into_iter().flatten() {
            let id = WaitId::PidFd(pidfd.as_fd());
            let _ = waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.take_down();
    }
}

fn wait_for(pidfd: &OwnedFd, patience: Duration) {
    is_readable(pidfd, patience);
}

fn is_readable(pidfd: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let span = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&span)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// The pid behind a pidfd, as this process numbers it (`proc(5)`, fdinfo).
fn pid_of(name: &str, pidfd: &OwnedFd) -> Result<u32, JailError> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = fs::read_to_string(&path).map_err(|source| JailError::Io {
        name: name.to_owned(),
        doing: "read fdinfo of a pidfd",
        source,
    })?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok())
        .ok_or_else(|| JailError::LauncherDied { name: name.to_owned(), doing: "starting" })
}
