//! One running guest.

use std::path::Path;
use std::sync::{Mutex as StdMutex, PoisonError};

use async_trait::async_trait;
use hyper_adapter::{blocking, refused, set_cpu, set_io, usage};
use hyper_hypervisor::{Carrier, CpuShare, Disk, IoLimit, Vm, VmError, VmExit, VmUsage};
use hyper_jail::Jailed;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::console::Console;
use crate::mconsole::Mconsole;
use crate::{NAME, disk, exit};

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
        self.jail.freeze().await.map_err(refused(NAME))
    }

    async fn resume(&self) -> Result<(), VmError> {
        self.jail.thaw().await.map_err(refused(NAME))
    }

    async fn save(&self, _: &Path) -> Result<(), VmError> {
        Err(unsupported("save a guest".to_owned()))
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        let mut devices = self.devices.lock().await;
        let (first, max_disks, checked) = (*devices, self.max_disks, disk.clone());
        let check = move || disk::check(&[checked], first, max_disks);
        blocking("look at the files of a disk", check).await?;
        let mut nodes = Vec::new();
        for extent in &disk.extents {
            let index = *devices;
            // A number is used up even when the step after it fails: what was bound stays bound.
            *devices += 1;
            let bind = disk::bind(index, extent, disk.read_only);
            self.jail.bind(bind).await.map_err(refused(NAME))?;
            let setting = disk::setting(index, disk.read_only);
            self.mconsole.ask("add a disk", &format!("config {setting}")).await?;
            nodes.push(disk::node(index));
        }
        Ok(nodes)
    }

    async fn set_cpu(&self, share: CpuShare) -> Result<(), VmError> {
        set_cpu(NAME, &self.jail, share)
    }

    async fn set_io(&self, limits: &[IoLimit]) -> Result<(), VmError> {
        set_io(NAME, &self.jail, limits)
    }

    async fn usage(&self) -> Result<VmUsage, VmError> {
        usage(NAME, &self.jail).await
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
