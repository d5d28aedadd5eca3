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
use hyper_hypervisor::{Carrier, CpuShare, Disk, IoLimit, Vm, VmError, VmExit, VmUsage, VmWaits};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::{Process, jail};

/// How long a process may take to end after it was asked to.
const QUIT: Duration = Duration::from_secs(3);

/// What an adapter's guests have of their own. Methods of [`Vm`]'s names do what they do there.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// Its process.
    fn process(&self) -> &Process;

    async fn pause(&self) -> Result<(), VmError>;

    async fn resume(&self) -> Result<(), VmError>;

    async fn save(&self, directory: &Path) -> Result<(), VmError>;

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError>;

    async fn remove_disk(&self, devices: &[String]) -> Result<(), VmError>;

    async fn counters(&self) -> Result<BTreeMap<String, u64>, VmError> {
        Ok(BTreeMap::new())
    }

    async fn set_memory(&self, bytes: u64) -> Result<u64, VmError> {
        let hypervisor = self.process().name.hypervisor;
        let what = format!("give a running guest {bytes} bytes of memory");
        Err(VmError::Unsupported { hypervisor, what })
    }

    /// Whether the process itself can hold limits of disk transfers.
    fn holds_io(&self) -> bool {
        false
    }

    /// Has it hold what the host's cgroups do not. Asked only where it can.
    async fn set_io(&self, _rest: &[IoLimit]) -> Result<(), VmError> {
        Ok(())
    }

    /// Asks the process to end, whose guest has halted; its answer may be lost with it.
    async fn quit(&self);

    /// How the guest ended whose process ended by itself with `code`. All it said has been read.
    async fn exited(&self, code: i32) -> VmExit;
}

/// The handle of a guest; dropping it ends the guest.
#[derive(Debug)]
pub struct Kept<G> {
    guest: Arc<G>,
    link: Option<UnixStream>,
    kill: watch::Sender<bool>,
    exit: watch::Receiver<Option<VmExit>>,
}

impl<G: Guest> Kept<G> {
    /// Hands a guest that runs to its keeper.
    pub fn start(guest: G, link: UnixStream) -> Self {
        let guest = Arc::new(guest);
        let (kill, killed) = watch::channel(false);
        let (publish, exit) = watch::channel(None);
        let kept = Arc::clone(&guest);
        // It ends with the guest, which ends with the handle.
        tokio::spawn(async move {
            let how = keep(&*kept, killed).await;
            publish.send_replace(Some(how));
        });
        Self { guest, link: Some(link), kill, exit }
    }
}

#[async_trait]
impl<G: Guest> Vm for Kept<G> {
    fn take_link(&mut self) -> Option<Box<dyn Carrier>> {
        self.link.take().map(|link| Box::new(link) as Box<dyn Carrier>)
    }

    fn console(&self) -> String {
        self.guest.process().console.text()
    }

    fn pid(&self) -> u32 {
        self.guest.process().jailed.pid()
    }

    async fn pause(&self) -> Result<(), VmError> {
        self.guest.pause().await
    }

    async fn resume(&self) -> Result<(), VmError> {
        self.guest.resume().await
    }

    async fn save(&self, directory: &Path) -> Result<(), VmError> {
        self.guest.save(directory).await
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        self.guest.add_disk(disk).await
    }

    async fn remove_disk(&self, devices: &[String]) -> Result<(), VmError> {
        self.guest.remove_disk(devices).await
    }

    async fn set_memory(&self, bytes: u64) -> Result<u64, VmError> {
        self.guest.set_memory(bytes).await
    }

    async fn set_cpu(&self, share: CpuShare) -> Result<(), VmError> {
        let process = self.guest.process();
        jail::set_cpu(process.name.hypervisor, &process.jailed, &share)
    }

    async fn set_io(&self, limits: &[IoLimit]) -> Result<(), VmError> {
        let process = self.guest.process();
        let (name, jailed) = (process.name.hypervisor, &process.jailed);
        let own = self.guest.holds_io();
        let (rest, why) = jail::set_io_or_rest(name, jailed, limits, own)?;
        match why {
            _ if own => self.guest.set_io(&rest).await,
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    async fn usage(&self) -> Result<VmUsage, VmError> {
        let process = self.guest.process();
        jail::usage(process.name.hypervisor, &process.jailed).await
    }

    async fn waits(&self) -> VmWaits {
        jail::waits(&self.guest.process().jailed).await
    }

    async fn counters(&self) -> Result<BTreeMap<String, u64>, VmError> {
        self.guest.counters().await
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

impl<G> Drop for Kept<G> {
    fn drop(&mut self) {
        self.kill.send_replace(true);
    }
}

async fn keep(guest: &impl Guest, mut killed: watch::Receiver<bool>) -> VmExit {
    let process = guest.process();
    let exit = tokio::select! {
        exit = process.jailed.wait() => exit,
        () = process.console.halt.notified() => {
            let asked = timeout(QUIT, async {
                guest.quit().await;
                process.jailed.wait().await
            });
            match asked.await {
                Ok(exit) => exit,
                Err(_) => process.end().await,
            }
        }
        // The sender is in the handle, whose drop sends first.
        () = async { drop(killed.wait_for(|killed| *killed).await) } => process.end().await,
    };
    process.settle().await;
    match process.judge(&exit) {
        Ok(how) => how,
        Err(code) => guest.exited(code).await,
    }
}
