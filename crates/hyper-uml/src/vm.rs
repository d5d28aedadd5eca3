//! One running guest.

use std::path::Path;
use std::sync::{Mutex as StdMutex, PoisonError};

use async_trait::async_trait;
use hyper_hypervisor::{Carrier, CpuShare, Disk, Vm, VmError, VmExit, VmUsage};
use hyper_jail::Jailed;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::console::Console;
use crate::mconsole::Mconsole;
use crate::{NAME, disk, exit, jail_error};

/// A guest kernel in its jail. Dropping it ends the guest.
#[derive(Debug)]
pub struct UmlVm {
    // Before the console: dropping the jail ends the process, then the console has its end.
    pub(crate) jail: Jailed,
    pub(crate) console: Console,
    pub(crate) link: StdMutex<Option<UnixStream>>,
    pub(crate) mconsole: Mconsole,
    /// Devices so far; the lock keeps two additions from taking one number.
    pub(crate) devices: Mutex<usize>,
    pub(crate) max_disks: usize,
}

#[async_trait]
impl Vm for UmlVm {
    fn take_link(&mut self) -> Option<Box<dyn Carrier>> {
        let link = self.link.get_mut().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::new(link))
    }

    fn console(&self) -> String {
        self.console.text()
    }

    fn pid(&self) -> u32 {
        self.jail.pid()
    }

    /// The whole jail is frozen. mconsole's `stop` would leave the kernel's process running in a
    /// loop of its own, and SIGSTOP disturbs a kernel that traces its processes.
    async fn pause(&self) -> Result<(), VmError> {
        self.jail.freeze().await.map_err(|error| jail_error(&error))
    }

    async fn resume(&self) -> Result<(), VmError> {
        self.jail.thaw().await.map_err(|error| jail_error(&error))
    }

    async fn save(&self, _: &Path) -> Result<(), VmError> {
        Err(unsupported("save a guest".to_owned()))
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        let mut devices = self.devices.lock().await;
        let (first, max_disks, checked) = (*devices, self.max_disks, disk.clone());
        tokio::task::spawn_blocking(move || disk::check(&[checked], first, max_disks))
            .await
            .map_err(|error| VmError::Io {
                what: "look at the files of a disk",
                source: std::io::Error::other(error),
            })??;
        let mut nodes = Vec::new();
        for extent in &disk.extents {
            let index = *devices;
            // A number is used up even when the step after it fails: what was bound stays bound.
            *devices += 1;
            let bind = disk::bind(index, extent, disk.read_only);
            self.jail.bind(bind).await.map_err(|error| jail_error(&error))?;
            let setting = disk::setting(index, disk.read_only);
            self.mconsole.ask("add a disk", &format!("config {setting}")).await?;
            nodes.push(disk::node(index));
        }
        Ok(nodes)
    }

    async fn set_cpu(&self, share: CpuShare) -> Result<(), VmError> {
        self.jail.set_cpu(share.weight, share.quota).map_err(|error| jail_error(&error))
    }

    async fn usage(&self) -> Result<VmUsage, VmError> {
        let used = self.jail.usage().await.map_err(|error| jail_error(&error))?;
        Ok(VmUsage {
            cpu: used.cpu,
            resident_bytes: used.resident_bytes,
            private_bytes: used.private_bytes,
        })
    }

    async fn wait(&self) -> VmExit {
        let ended = self.jail.wait().await;
        self.console.settle().await;
        exit::from_jail(&ended, &self.console.text())
    }

    async fn kill(&self) {
        self.jail.kill().await;
    }
}

/// What cannot be had of this hypervisor.
pub(crate) fn unsupported(what: String) -> VmError {
    VmError::Unsupported { hypervisor: NAME, what }
}
