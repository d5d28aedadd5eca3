//! One guest: what QEMU is asked for, and how it tells the guest's end.

use std::path::Path;

use async_trait::async_trait;
use hyper_adapter::{Guest, Places, Process};
use hyper_hypervisor::{Disk, VmError, VmExit};
use qapi::qmp::ShutdownCause;
use tokio::sync::Mutex;

use crate::control::Control;
use crate::saved::{self, Shape};
use crate::{NAME, block};

/// The parts of a running guest.
#[derive(Debug)]
pub struct QemuGuest {
    pub process: Process,
    pub control: Control,
    /// Disks at launch.
    pub disks: usize,
    pub places: Mutex<Places>,
    pub shape: Shape,
    /// A disk is of several extents: QEMU's format for that cannot be saved.
    pub stitched: bool,
}

#[async_trait]
impl Guest for QemuGuest {
    fn process(&self) -> &Process {
        &self.process
    }

    async fn pause(&self) -> Result<(), VmError> {
        let stopped = self.control.call(qapi::qmp::stop {}).await;
        stopped.map(drop).map_err(|error| error.while_doing("pause the guest"))
    }

    async fn resume(&self) -> Result<(), VmError> {
        let running = self.control.call(qapi::qmp::cont {}).await;
        running.map(drop).map_err(|error| error.while_doing("resume the guest"))
    }

    async fn save(&self, directory: &Path) -> Result<(), VmError> {
        // A place that has its disk is not what it was at launch, as which it would go on.
        if self.places.lock().await.taken() > 0 {
            let what = "save a guest that was given disks while it ran".to_owned();
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        if self.stitched {
            let what = "save a guest with a disk of several extents".to_owned();
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        let state = self.control.call(qapi::qmp::query_status {}).await;
        if state.map_err(|error| error.while_doing("save the guest"))?.running {
            let what = "save a guest that is not paused".to_owned();
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        saved::save(&self.control, &self.shape, directory).await
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        let mut places = self.places.lock().await;
        Ok(vec![block::add(&self.control, self.disks, &mut places, disk).await?])
    }

    async fn remove_disk(&self, devices: &[String]) -> Result<(), VmError> {
        let mut places = self.places.lock().await;
        block::remove(&self.control, self.disks, &mut places, devices).await
    }

    async fn quit(&self) {
        let _ = self.control.call(qapi::qmp::quit {}).await;
    }

    async fn exited(&self, code: i32) -> VmExit {
        match code {
            // QEMU ends in peace when it is asked to.
            0 if self.control.shutdown() == Some(ShutdownCause::host_signal) => {
                VmExit::Signaled { signal: libc::SIGTERM, oom: false }
            }
            0 => match self.process.console.panic() {
                Some(message) => VmExit::Panicked { message },
                None => VmExit::PoweredOff,
            },
            _ => VmExit::Failed { code, detail: self.process.last("QEMU failed") },
        }
    }
}
