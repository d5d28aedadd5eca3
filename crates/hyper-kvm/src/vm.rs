//! One guest, and the task that keeps it until its end.
//!
//! ```text
//!            ┌── process ends ──────────────────┐
//! running ───┼── console says "halted" ─► quit ─┼─► jail empty ─► VmExit published
//!            └── kill, or the handle dropped ───┘
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_hypervisor::{Carrier, Console, CpuShare, Disk, Tail, Vm, VmError, VmExit, VmUsage};
use hyper_jail::{JailExit, Jailed, Outcome};
use hyper_vmm::wire::{Answer, End, Request};
use tokio::net::{UnixStream, unix::pipe};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::control::Control;
use crate::disk::{self, Places};
use crate::saved;

/// How long the monitor may take to end after it was asked to.
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
    pub places: Mutex<Places>,
}

/// The tasks that read what the guest and its monitor say.
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

    /// Until all is read, which is soon after the monitor's end.
    pub async fn finish(self) {
        for mut reader in self.0 {
            if timeout(LAST_WORDS, &mut reader).await.is_err() {
                reader.abort();
            }
        }
    }
}

/// Hands a guest to its keeper.
pub fn start(guest: Guest, readers: Readers, link: UnixStream) -> KvmVm {
    let guest = Arc::new(guest);
    let (kill, killed) = watch::channel(false);
    let (publish, exit) = watch::channel(None);
    let kept = Arc::clone(&guest);
    // It ends with the guest, which ends with the handle.
    tokio::spawn(async move {
        let how = keep(&kept, readers, killed).await;
        publish.send_replace(Some(how));
    });
    KvmVm { guest, link: Some(link), kill, exit }
}

/// The handle.
#[derive(Debug)]
pub struct KvmVm {
    guest: Arc<Guest>,
    link: Option<UnixStream>,
    kill: watch::Sender<bool>,
    exit: watch::Receiver<Option<VmExit>>,
}

#[async_trait]
impl Vm for KvmVm {
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
        let paused = self.guest.control.call(&Request::Pause, Vec::new()).await;
        paused.map(drop).map_err(|error| error.while_doing("pause the guest"))
    }

    async fn resume(&self) -> Result<(), VmError> {
        let running = self.guest.control.call(&Request::Resume, Vec::new()).await;
        running.map(drop).map_err(|error| error.while_doing("resume the guest"))
    }

    async fn save(&self, directory: &Path) -> Result<(), VmError> {
        let directory = directory.to_owned();
        let made = tokio::task::spawn_blocking(move || saved::create(&directory)).await;
        let files = made.map_err(|error| VmError::Io {
            what: "make the files of a saved guest",
            source: std::io::Error::other(error),
        })??;
        let saved = self.guest.control.save(files.into()).await;
        saved.map_err(|error| error.while_doing("save the guest"))
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        let read_only = disk.read_only;
        let opened = tokio::task::spawn_blocking(move || disk::open(&disk)).await;
        let (disk, files) = opened.map_err(|error| VmError::Io {
            what: "open the files of a disk",
            source: std::io::Error::other(error),
        })??;
        let mut places = self.guest.places.lock().await;
        let place = places.take(read_only)?;
        match self.guest.control.call(&Request::AddDisk { place, disk }, files).await {
            Ok(_) => Ok(vec![places.node(place)]),
            Err(error) => {
                places.give_back(place);
                Err(error.while_doing("add a disk"))
            }
        }
    }

    async fn set_cpu(&self, share: CpuShare) -> Result<(), VmError> {
        self.guest.jailed.set_cpu(share.weight, share.quota).map_err(|error| VmError::Io {
            what: "set the monitor's share of the CPUs",
            source: std::io::Error::other(error),
        })
    }

    async fn usage(&self) -> Result<VmUsage, VmError> {
        let usage = self.guest.jailed.usage().await.map_err(|error| VmError::Io {
            what: "read what the monitor uses",
            source: std::io::Error::other(error),
        })?;
        Ok(VmUsage {
            cpu: usage.cpu,
            resident_bytes: usage.resident_bytes,
            private_bytes: usage.private_bytes,
        })
    }

    async fn counters(&self) -> Result<BTreeMap<String, u64>, VmError> {
        match self.guest.control.call(&Request::Metrics, Vec::new()).await {
            Ok(Answer::Metrics { metrics }) => Ok(metrics.named()),
            Ok(_) => Ok(BTreeMap::new()),
            Err(error) => Err(error.while_doing("read the monitor's counters")),
        }
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

impl Drop for KvmVm {
    fn drop(&mut self) {
        self.kill.send_replace(true);
    }
}

async fn keep(guest: &Guest, readers: Readers, mut killed: watch::Receiver<bool>) -> VmExit {
    let exit = tokio::select! {
        exit = guest.jailed.wait() => exit,
        () = guest.console.halt.notified() => {
            // It does not answer, but ends.
            let asked = timeout(QUIT, async {
                let _ = guest.control.call(&Request::Quit, Vec::new()).await;
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
    judge(guest, &exit, guest.control.end().await)
}

async fn end(guest: &Guest) -> JailExit {
    guest.jailed.kill().await;
    guest.jailed.wait().await
}

/// How the guest ended, from what process, monitor and console told.
fn judge(guest: &Guest, exit: &JailExit, told: Option<End>) -> VmExit {
    let last = |what: &str| {
        let words = guest.tail.text();
        let words = words.trim_end();
        if words.is_empty() { what.to_owned() } else { format!("{what}: {words}") }
    };
    match (exit.outcome.clone(), told) {
        _ if guest.console.halted() => VmExit::PoweredOff,
        (Outcome::Killed, _) => VmExit::Killed,
        (Outcome::Signaled(libc::SIGSYS), _) => {
            let detail = last("the monitor made a system call that its jail forbids");
            VmExit::Failed { code: 128 + libc::SIGSYS, detail }
        }
        (Outcome::Signaled(signal), _) => VmExit::Signaled { signal, oom: exit.oom },
        (Outcome::Exited(_), Some(End::Failed { why })) => {
            VmExit::Failed { code: 1, detail: last(&why) }
        }
        (Outcome::Exited(0), Some(_)) => match guest.console.panic() {
            Some(message) => VmExit::Panicked { message },
            None if guest.console.restarting() => VmExit::PoweredOff,
            None => {
                let detail = "the guest kernel reset its CPU without a word (triple fault)";
                VmExit::Failed { code: 1, detail: last(detail) }
            }
        },
        (Outcome::Exited(code), _) => VmExit::Failed { code, detail: last("the monitor failed") },
        (Outcome::LauncherDied, _) => {
            VmExit::Failed { code: -1, detail: last("the monitor's launcher was killed") }
        }
    }
}
