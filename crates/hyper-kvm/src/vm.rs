//! One guest: what the monitor is asked for, and how it tells the guest's end.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use hyper_adapter::{Guest, Places, Process, blocking, create_saved, node};
use hyper_hypervisor::{Disk, IoLimit, VmError, VmExit};
use hyper_vmm::wire::{Answer, End, Rates, Request};
use tokio::sync::Mutex;

use crate::control::Control;
use crate::memory::Memory;
use crate::{DISK, NAME, disk};

/// The parts of a running guest.
#[derive(Debug)]
pub struct KvmGuest {
    pub process: Process,
    pub control: Control,
    /// Disks at launch that are virtio-blk's.
    pub disks: usize,
    pub places: Mutex<Places>,
    /// It was given its memory for good.
    pub kept: bool,
    pub memory: Memory,
}

#[async_trait]
impl Guest for KvmGuest {
    fn process(&self) -> &Process {
        &self.process
    }

    async fn pause(&self) -> Result<(), VmError> {
        let paused = self.control.call(&Request::Pause, Vec::new()).await;
        paused.map(drop).map_err(|error| error.while_doing("pause the guest"))
    }

    async fn resume(&self) -> Result<(), VmError> {
        let running = self.control.call(&Request::Resume, Vec::new()).await;
        running.map(drop).map_err(|error| error.while_doing("resume the guest"))
    }

    async fn save(&self, directory: &Path) -> Result<(), VmError> {
        if self.kept {
            let what = "save a guest whose memory is reserved or prefaulted".to_owned();
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        let directory = directory.to_owned();
        let making = "make the files of a saved guest";
        let files = blocking(making, move || create_saved(&directory)).await?;
        let saved = self.control.save(files.into()).await;
        saved.map_err(|error| error.while_doing("save the guest"))
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        if disk.mapped {
            let what = "map a disk into a guest that runs".to_owned();
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        let read_only = disk.read_only;
        let (disk, files) = blocking("open the files of a disk", move || disk::open(&disk)).await?;
        let mut places = self.places.lock().await;
        let place = places.take(read_only)?;
        match self.control.call(&Request::AddDisk { place, disk }, files).await {
            Ok(_) => Ok(vec![node(DISK, self.disks + place)]),
            Err(error) => {
                places.give_back(place);
                Err(error.while_doing("add a disk"))
            }
        }
    }

    async fn remove_disk(&self, devices: &[String]) -> Result<(), VmError> {
        let mut places = self.places.lock().await;
        let place = places.of(devices, |place| node(DISK, self.disks + place))?;
        let removed = self.control.call(&Request::RemoveDisk { place }, Vec::new()).await;
        removed.map_err(|error| error.while_doing("remove a disk"))?;
        places.give_back(place);
        Ok(())
    }

    async fn counters(&self) -> Result<BTreeMap<String, u64>, VmError> {
        match self.control.call(&Request::Metrics, Vec::new()).await {
            Ok(Answer::Metrics { metrics }) => Ok(metrics.named()),
            Ok(_) => Ok(BTreeMap::new()),
            Err(error) => Err(error.while_doing("read the monitor's counters")),
        }
    }

    async fn set_memory(&self, bytes: u64) -> Result<u64, VmError> {
        if self.kept {
            let what = "change the memory of a guest whose memory is reserved or prefaulted";
            return Err(VmError::Unsupported { hypervisor: NAME, what: what.to_owned() });
        }
        self.memory.set(&self.control, &self.process.jailed, bytes).await
    }

    fn holds_io(&self) -> bool {
        true
    }

    async fn set_io(&self, rest: &[IoLimit]) -> Result<(), VmError> {
        for limit in rest {
            let rates = Rates {
                read_bytes: limit.read_bytes,
                write_bytes: limit.write_bytes,
                reads: limit.read_operations,
                writes: limit.write_operations,
            };
            let device = limit.device;
            let finding = "look at the partitions of a disk";
            let devices = blocking(finding, move || Ok(disk::parts(device))).await?;
            let told = self.control.call(&Request::Limit { devices, rates }, Vec::new()).await;
            told.map_err(|error| error.while_doing("bound the guest's disks"))?;
        }
        Ok(())
    }

    async fn quit(&self) {
        let _ = self.control.call(&Request::Quit, Vec::new()).await;
    }

    async fn exited(&self, code: i32) -> VmExit {
        let last = |what: &str| self.process.last(what);
        match (code, self.control.end().await) {
            (_, Some(End::Failed { why })) => VmExit::Failed { code: 1, detail: last(&why) },
            (0, Some(_)) => match self.process.console.panic() {
                Some(message) => VmExit::Panicked { message },
                None if self.process.console.restarting() => VmExit::PoweredOff,
                None => {
                    let detail = "the guest kernel reset its CPU without a word (triple fault)";
                    VmExit::Failed { code: 1, detail: last(detail) }
                }
            },
            _ => VmExit::Failed { code, detail: last("the monitor failed") },
        }
    }
}
