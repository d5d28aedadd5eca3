//! One guest, and the task that keeps it until its end.
//!
//! ```text
//!            ┌── process ends ──────────────────┐
//! running ───┼── console says "halted" ─► quit ─┼─► jail empty ─► VmExit published
//!            └── kill, or the handle dropped ───┘
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_hypervisor::{Carrier, Console, CpuShare, Disk, Tail, Vm, VmError, VmExit, VmUsage};
use hyper_jail::{JailExit, Jailed, Outcome};
use qapi::qmp::ShutdownCause;
use tokio::net::{UnixStream, unix::pipe};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::NAME;
use crate::block::{self, Slots};
use crate::control::Control;

/// How long QEMU may take to end after `quit`.
const QUIT: Duration = Duration::from_secs(3);
/// How long the last bytes of console and standard error may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The parts of a running guest.
#[derive(Debug)]
pub struct Guest {
    pub jailed: Jailed,
    pub control: Control,
    pub console: Arc<Console>,
    pub tail: Arc<Tail>,
    pub slots: Mutex<Slots>,
}

/// The tasks that read what QEMU says.
#[derive(Debug)]
pub struct Readers([JoinHandle<()>; 2]);

impl Readers {
    pub fn start(
        console: &Arc<Console>,
        said: UnixStream,
        tail: &Arc<Tail>,
        errors: pipe::Receiver,
    ) -> Self {
        let (console, tail) = (Arc::clone(console), Arc::clone(tail));
        Self([
            tokio::spawn(async move { console.follow(said).await }),
            tokio::spawn(async move { tail.follow(errors).await }),
        ])
    }

    /// Until all is read, which is soon after QEMU's end.
    pub async fn finish(self) {
        for mut reader in self.0 {
            if timeout(LAST_WORDS, &mut reader).await.is_err() {
                reader.abort();
            }
        }
    }
}

/// Hands a guest to its keeper.
pub fn start(guest: Guest, readers: Readers, link: UnixStream) -> QemuVm {
    let guest = Arc::new(guest);
    let (kill, killed) = watch::channel(false);
    let (publish, exit) = watch::channel(None);
    let kept = Arc::clone(&guest);
    // It ends with the guest, which ends with the handle.
    tokio::spawn(async move {
        let how = keep(&kept, readers, killed).await;
        publish.send_replace(Some(how));
    });
    QemuVm { guest, link: Some(link), kill, exit }
}

/// The handle.
#[derive(Debug)]
pub struct QemuVm {
    guest: Arc<Guest>,
    link: Option<UnixStream>,
    kill: watch::Sender<bool>,
    exit: watch::Receiver<Option<VmExit>>,
}

#[async_trait]
impl Vm for QemuVm {
    fn take_link(&mut self) -> Option<Box<dyn Carrier>> {
        self.link.take().map(|link| Box::new(link) as Box<dyn Carrier>)
    }

    fn console(&self) -> String {
        self.guest.console.text()
    }

    fn pid(&self) -> u32 {
        self.guest.jailed.pid()
    }

    async fn pause(&self) -> Result<(), VmError> {
        let stopped = self.guest.control.call(qapi::qmp::stop {}).await;
        stopped.map(drop).map_err(|error| error.while_doing("pause the guest"))
    }

    async fn resume(&self) -> Result<(), VmError> {
        let running = self.guest.control.call(qapi::qmp::cont {}).await;
        running.map(drop).map_err(|error| error.while_doing("resume the guest"))
    }

    async fn save(&self, _: &Path) -> Result<(), VmError> {
        Err(VmError::Unsupported { hypervisor: NAME, what: "save a guest".to_owned() })
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        Ok(vec![block::add(&self.guest.control, &self.guest.slots, disk).await?])
    }

    async fn set_cpu(&self, share: CpuShare) -> Result<(), VmError> {
        self.guest.jailed.set_cpu(share.weight, share.quota).map_err(|error| VmError::Io {
            what: "set QEMU's share of the CPUs",
            source: std::io::Error::other(error),
        })
    }

    async fn usage(&self) -> Result<VmUsage, VmError> {
        let usage = self.guest.jailed.usage().await.map_err(|error| VmError::Io {
            what: "read what QEMU uses",
            source: std::io::Error::other(error),
        })?;
        Ok(VmUsage {
            cpu: usage.cpu,
            resident_bytes: usage.resident_bytes,
            private_bytes: usage.private_bytes,
        })
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.exit.clone();
        let told = exit.wait_for(Option::is_some).await.ok().and_then(|how| how.clone());
        // Only a runtime that shuts down takes the keeper away, and the guest with it.
        told.unwrap_or(VmExit::Killed)
    }

    async fn kill(&self) {
        self.kill.send_replace(true);
        self.wait().await;
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        self.kill.send_replace(true);
    }
}

async fn keep(guest: &Guest, readers: Readers, mut killed: watch::Receiver<bool>) -> VmExit {
    let exit = tokio::select! {
        exit = guest.jailed.wait() => exit,
        () = guest.console.halt.notified() => {
            // Its answer may be lost with it.
            let asked = timeout(QUIT, async {
                let _ = guest.control.call(qapi::qmp::quit {}).await;
                guest.jailed.wait().await
            });
            match asked.await {
                Ok(exit) => exit,
                Err(_) => end(guest).await,
            }
        }
        // The sender is in the handle, whose drop sends first.
        () = async { drop(killed.wait_for(|killed| *killed).await) } => end(guest).await,
    };
    readers.finish().await;
    judge(guest, &exit)
}

async fn end(guest: &Guest) -> JailExit {
    guest.jailed.kill().await;
    guest.jailed.wait().await
}

/// How the guest ended, from what the process, the monitor and the console told.
fn judge(guest: &Guest, exit: &JailExit) -> VmExit {
    let last = |what: &str| {
        let words = guest.tail.text();
        let words = words.trim_end();
        if words.is_empty() { what.to_owned() } else { format!("{what}: {words}") }
    };
    let cause = guest.control.shutdown();
    match exit.outcome {
        _ if guest.console.halted() => VmExit::PoweredOff,
        Outcome::Killed => VmExit::Killed,
        Outcome::Signaled(libc::SIGSYS) => {
            let detail = last("QEMU made a system call that its jail forbids");
            VmExit::Failed { code: 128 + libc::SIGSYS, detail }
        }
        Outcome::Signaled(signal) => VmExit::Signaled { signal, oom: exit.oom },
        // QEMU ends in peace when it is asked to.
        Outcome::Exited(0) if cause == Some(ShutdownCause::host_signal) => {
            VmExit::Signaled { signal: libc::SIGTERM, oom: false }
        }
        Outcome::Exited(0) => match guest.console.panic() {
            Some(message) => VmExit::Panicked { message },
            None => VmExit::PoweredOff,
        },
        Outcome::Exited(code) => VmExit::Failed { code, detail: last("QEMU failed") },
        Outcome::LauncherDied => {
            VmExit::Failed { code: -1, detail: last("QEMU's launcher was killed") }
        }
    }
}
