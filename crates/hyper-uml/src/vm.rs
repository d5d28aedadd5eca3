//! One running guest.

use std::path::Path;
use std::sync::{Mutex as StdMutex, PoisonError};

use async_trait::async_trait;
use hyper_adapter::{blocking, refused, set_cpu, set_io, usage, waits};
use hyper_hypervisor::{
    Carrier, CpuShare, Disk, Extent, IoLimit, Vm, VmError, VmExit, VmUsage, VmWaits,
};
use hyper_jail::Jailed;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::console::Console;
use crate::disk::Numbers;
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
    /// The lock is held while disks come and go.
    pub(crate) numbers: Mutex<Numbers>,
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
        let mut numbers = self.numbers.lock().await;
        let (free, checked) = (numbers.free(), disk.clone());
        let check = move || disk::check(&[checked], free);
        blocking("look at the files of a disk", check).await?;
        let mut nodes = Vec::new();
        for extent in &disk.extents {
            let added = self.add_extent(&mut numbers, extent, disk.read_only).await;
            match added {
                Ok(number) => nodes.push(disk::node(number)),
                Err(error) => {
                    let undone = self.take_out(&mut numbers, &nodes).await;
                    tracing::debug!(?undone, "take back the extents before one that failed");
                    return Err(error);
                }
            }
        }
        Ok(nodes)
    }

    async fn remove_disk(&self, devices: &[String]) -> Result<(), VmError> {
        let mut numbers = self.numbers.lock().await;
        self.take_out(&mut numbers, devices).await
    }

    async fn set_memory(&self, bytes: u64) -> Result<u64, VmError> {
        let what = format!("give a running guest {bytes} bytes of memory");
        Err(VmError::Unsupported { hypervisor: NAME, what })
    }

    async fn set_cpu(&self, share: CpuShare) -> Result<(), VmError> {
        set_cpu(NAME, &self.jail, &share)
    }

    async fn set_io(&self, limits: &[IoLimit]) -> Result<(), VmError> {
        set_io(NAME, &self.jail, limits)
    }

    async fn usage(&self) -> Result<VmUsage, VmError> {
        usage(NAME, &self.jail).await
    }

    async fn waits(&self) -> VmWaits {
        waits(&self.jail).await
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

impl UmlVm {
    /// Adds one device; its number. One whose file cannot be taken out of the jail again keeps it.
    async fn add_extent(
        &self,
        numbers: &mut Numbers,
        extent: &Extent,
        read_only: bool,
    ) -> Result<usize, VmError> {
        let full = || unsupported("have another disk: its devices are used up".to_owned());
        let number = numbers.take(read_only).ok_or_else(full)?;
        if let Err(error) = self.jail.bind(disk::bind(number, extent, read_only)).await {
            numbers.give_back(number);
            return Err(refused(NAME)(error));
        }
        let setting = disk::setting(number, read_only);
        let added = self.mconsole.ask("add a disk", &format!("config {setting}")).await;
        if let Err(error) = added {
            // A kernel that has not answered may still open it.
            let refused = !matches!(error, VmError::Silent { .. });
            if refused && self.jail.unbind(vec![disk::place(number)]).await.is_ok() {
                numbers.give_back(number);
            }
            return Err(error);
        }
        Ok(number)
    }

    /// Removes the devices with these nodes, all or none.
    async fn take_out(&self, numbers: &mut Numbers, nodes: &[String]) -> Result<(), VmError> {
        let unknown =
            || unsupported(format!("remove disk {nodes:?}: it was not added to the running guest"));
        let devices = numbers.of(nodes).ok_or_else(unknown)?;
        for (at, (number, _)) in devices.iter().enumerate() {
            if let Err(error) = self.mconsole.remove(&format!("ubd{number}")).await {
                for (number, read_only) in &devices[..at] {
                    let command = format!("config {}", disk::setting(*number, *read_only));
                    let again = self.mconsole.ask("put back a disk", &command).await;
                    if let Err(error) = again {
                        tracing::warn!(number, %error, "a disk is not put back");
                    }
                }
                return Err(error);
            }
        }
        let places = devices.iter().map(|(number, _)| disk::place(*number)).collect();
        self.jail.unbind(places).await.map_err(refused(NAME))?;
        for (number, _) in devices {
            numbers.give_back(number);
        }
        Ok(())
    }
}

/// What cannot be had of this hypervisor.
pub(crate) fn unsupported(what: String) -> VmError {
    VmError::Unsupported { hypervisor: NAME, what }
}
