//! An in-memory hypervisor for tests: the guest is whatever the test makes of its [`Guest`].
//!
//! ```text
//! supervisor code under test                     test
//!   Fake::launch ──► Vm (link, pause, kill …)      Guests::next ──► Guest (link's far end, disks)
//!        └────────────── one duplex stream ───────────────┘
//! ```
//! What it keeps of the real thing: the guest makes no progress while paused, its stream ends with
//! it, it ends exactly once, and there is a process (an idle `cat`, gone with the test) whose id
//! can be signalled and whose use can be measured. The kernel is a file holding [`KERNEL`].

mod life;
mod usage;
mod wire;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::{
    Capabilities, Carrier, Disk, DiskModel, Finding, Hypervisor, Probe, Vm, VmConfig, VmError,
    VmExit, VmUsage, Wall,
};
use life::Life;
use wire::{Guard, Side};
pub use wire::{GuestLink, HostLink};

/// What the file of a kernel that [`Fake`] boots must hold.
pub const KERNEL: &[u8] = b"fake kernel\n";

const NAME: &str = "fake";
const MAX_DISKS: usize = 6;
const MIN_MEMORY: u64 = 16 << 20;
/// Bytes each direction of the link holds.
const LINK_BUFFER: usize = 64 << 10;

/// The hypervisor; its guests arrive at the [`Guests`] made with it.
#[derive(Debug)]
pub struct Fake {
    model: DiskModel,
    shares: bool,
    guests: mpsc::UnboundedSender<Guest>,
    refusals: Mutex<VecDeque<VmError>>,
}

/// The guests that a [`Fake`] launched, in order.
#[derive(Debug)]
pub struct Guests(mpsc::UnboundedReceiver<Guest>);

/// The inside of one guest.
#[derive(Debug)]
pub struct Guest {
    pub config: VmConfig,
    /// The link's far end; stalls while paused, ends with the guest.
    pub link: GuestLink,
    /// How the guest acts on itself and its host.
    pub power: Power,
}

/// What a guest, or a test on its behalf, can make happen.
#[derive(Debug, Clone)]
pub struct Power {
    life: Arc<Life>,
    disks: Arc<Mutex<Devices>>,
}

/// What is behind each device of a guest, by its number.
#[derive(Debug, Default)]
struct Devices {
    list: Vec<Option<Disk>>,
    /// So many are there since the launch.
    launched: usize,
}

impl Fake {
    /// A hypervisor that shows disks as `model` says, and the receiver of its guests.
    pub fn new(model: DiskModel) -> (Self, Guests) {
        let (guests, receiver) = mpsc::unbounded_channel();
        (Self { model, shares: false, guests, refusals: Mutex::default() }, Guests(receiver))
    }

    /// As one that can share directories: it connects to the device, and that is all.
    #[must_use]
    pub fn sharing(mut self) -> Self {
        self.shares = true;
        self
    }

    /// Makes the next launch that nothing else refuses fail with `error`.
    pub fn refuse(&self, error: VmError) {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).push_back(error);
    }

    fn check(&self, config: &VmConfig) -> Result<(), VmError> {
        let unsupported = |what: String| Err(VmError::Unsupported { hypervisor: NAME, what });
        let can = self.capabilities();
        if config.memory_bytes < MIN_MEMORY {
            return Err(VmError::MemoryTooSmall { bytes: config.memory_bytes, least: MIN_MEMORY });
        }
        if config.vcpus == 0 || config.vcpus > can.max_vcpus {
            return unsupported(format!("give a guest {} vCPUs", config.vcpus));
        }
        if config.nics.len() > can.max_nics {
            return unsupported(format!("give a guest {} network devices", config.nics.len()));
        }
        let devices: usize = config.disks.iter().map(|disk| parts(self.model, disk).len()).sum();
        if devices > MAX_DISKS {
            return unsupported(format!("give a guest {devices} disks, at most {MAX_DISKS}"));
        }
        if config.disks.iter().any(|disk| disk.mapped && !disk.read_only) {
            return unsupported("map a writable disk".to_owned());
        }
        if config.share.is_some() && !self.shares {
            return unsupported("share directories of the host".to_owned());
        }
        Ok(())
    }

    async fn check_files(&self, config: &VmConfig) -> Result<(), VmError> {
        let kernel = tokio::fs::read(&config.kernel.kernel)
            .await
            .map_err(file("read kernel", &config.kernel.kernel))?;
        if kernel != KERNEL {
            let detail = format!("`{}` is not a kernel", config.kernel.kernel.display());
            return Err(VmError::Launch { hypervisor: NAME, detail });
        }
        let initramfs = &config.kernel.initramfs;
        tokio::fs::metadata(initramfs).await.map_err(file("open initramfs", initramfs))?;
        if let Some(share) = &config.share {
            let socket = tokio::net::UnixStream::connect(&share.socket).await;
            socket.map_err(file("connect to the device of shared directories", &share.socket))?;
        }
        for disk in &config.disks {
            check_disk(disk).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for Fake {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            wall: Wall::SharedKernel,
            disk_model: self.model,
            max_disks: MAX_DISKS,
            disk_hotplug: true,
            disk_revoke: true,
            disk_map: true,
            max_vcpus: 4,
            max_nics: 1,
            nic_queues: 1,
            pause: true,
            share: self.shares,
            save: false,
            memory_growth: false,
            min_memory_bytes: MIN_MEMORY,
        }
    }

    async fn probe(&self) -> Probe {
        let detail = "in-memory guests for tests".to_owned();
        let finding = Finding { what: NAME.to_owned(), ok: true, detail };
        Probe { usable: true, version: None, findings: vec![finding] }
    }

    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        self.check(&config)?;
        self.check_files(&config).await?;
        if let Some(error) =
            self.refusals.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
        {
            return Err(error);
        }
        let life = Arc::new(Life::start()?);
        let (host, guest) = tokio::io::duplex(LINK_BUFFER);
        let list: Vec<_> =
            config.disks.iter().flat_map(|disk| parts(self.model, disk)).map(Some).collect();
        let disks = Arc::new(Mutex::new(Devices { launched: list.len(), list }));
        let power = Power { life: Arc::clone(&life), disks: Arc::clone(&disks) };
        let link = Guard::new(Side::Guest, guest, Arc::clone(&life.switch));
        // A test that does not look at its guests has a guest that hangs: its link must stay open.
        let unseen = self.guests.send(Guest { config, link, power }).err().map(|lost| lost.0);
        let link = Some(Guard::new(Side::Host, host, Arc::clone(&life.switch)));
        Ok(Box::new(FakeVm { model: self.model, life, link, disks, _unseen: unseen }))
    }

    async fn restore(&self, _: &Path, _: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        let what = "continue a saved guest".to_owned();
        Err(VmError::Unsupported { hypervisor: NAME, what })
    }

    fn guest_devices(&self, disks: &[Disk], disk: usize) -> Vec<String> {
        devices(self.model, disks, disk)
    }
}

impl Guests {
    /// The next guest; `None` when the [`Fake`] is gone.
    pub async fn next(&mut self) -> Option<Guest> {
        self.0.recv().await
    }
}

impl Power {
    /// Ends the guest in this way, unless it has ended already.
    pub fn end(&self, how: VmExit) {
        self.life.end(how);
    }

    /// Writes a line to the console.
    pub fn say(&self, line: &str) {
        self.life.say(line);
    }

    /// The host file behind a guest device, its extents and whether it may be written.
    pub fn device(&self, node: &str) -> Option<Disk> {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.list.get(number(node)?)?.clone()
    }
}

struct FakeVm {
    model: DiskModel,
    life: Arc<Life>,
    link: Option<HostLink>,
    disks: Arc<Mutex<Devices>>,
    _unseen: Option<Guest>,
}

#[async_trait]
impl Vm for FakeVm {
    fn take_link(&mut self) -> Option<Box<dyn Carrier>> {
        self.link.take().map(|link| Box::new(link) as Box<dyn Carrier>)
    }

    fn console(&self) -> String {
        self.life.console()
    }

    fn pid(&self) -> u32 {
        self.life.pid
    }

    async fn pause(&self) -> Result<(), VmError> {
        self.life.running("pause")?;
        self.life.switch.pause(true);
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmError> {
        self.life.running("resume")?;
        self.life.switch.pause(false);
        Ok(())
    }

    async fn save(&self, _: &Path) -> Result<(), VmError> {
        Err(VmError::Unsupported { hypervisor: NAME, what: "save a guest".to_owned() })
    }

    async fn add_disk(&self, disk: Disk) -> Result<Vec<String>, VmError> {
        self.life.running("add a disk")?;
        check_disk(&disk).await?;
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let more = parts(self.model, &disk);
        let used = disks.list.iter().flatten().count();
        if used + more.len() > MAX_DISKS {
            let what = format!("add a disk to the {used} a guest has, at most {MAX_DISKS}");
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        }
        disks.list.resize(MAX_DISKS, None);
        let mut free = (0..MAX_DISKS).filter(|at| disks.list[*at].is_none()).collect::<Vec<_>>();
        free.truncate(more.len());
        for (at, part) in free.iter().zip(more) {
            disks.list[*at] = Some(part);
        }
        Ok(free.into_iter().map(node).collect())
    }

    async fn remove_disk(&self, devices: &[String]) -> Result<(), VmError> {
        self.life.running("remove a disk")?;
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let added = |name: &String| {
            let at = number(name).filter(|at| *at >= disks.launched)?;
            disks.list.get(at)?.as_ref().map(|_| at)
        };
        let Some(numbers) = devices.iter().map(added).collect::<Option<Vec<_>>>() else {
            let what = format!("remove disk {devices:?}: it was not added to the running guest");
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        };
        for at in numbers {
            disks.list[at] = None;
        }
        Ok(())
    }

    async fn set_memory(&self, bytes: u64) -> Result<u64, VmError> {
        let what = format!("give a running guest {bytes} bytes of memory");
        Err(VmError::Unsupported { hypervisor: NAME, what })
    }

    async fn set_cpu(&self, _: crate::CpuShare) -> Result<(), VmError> {
        // It uses none of its own.
        Ok(())
    }

    async fn set_io(&self, _: &[crate::IoLimit]) -> Result<(), VmError> {
        // It reads no disks.
        Ok(())
    }

    async fn usage(&self) -> Result<VmUsage, VmError> {
        usage::process_usage(self.life.pid)
            .await
            .map_err(|source| VmError::Io { what: "read usage of the hypervisor process", source })
    }

    async fn wait(&self) -> VmExit {
        self.life.wait().await
    }

    async fn kill(&self) {
        self.life.end(VmExit::Killed);
        self.life.wait().await;
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.life.end(VmExit::Killed);
    }
}

fn devices(model: DiskModel, disks: &[Disk], disk: usize) -> Vec<String> {
    let count = |disk: &Disk| parts(model, disk).len();
    let first: usize = disks.iter().take(disk).map(count).sum();
    let own = disks.get(disk).map_or(0, count);
    (first..first + own).map(node).collect()
}

/// A disk as one for each device that it is.
fn parts(model: DiskModel, disk: &Disk) -> Vec<Disk> {
    let part = |extent: &crate::Extent| Disk { extents: vec![extent.clone()], ..disk.clone() };
    match model {
        DiskModel::Stitched => vec![disk.clone()],
        DiskModel::DevicePerExtent => disk.extents.iter().map(part).collect(),
    }
}

fn node(number: usize) -> String {
    format!("/dev/fake{number}")
}

fn number(node: &str) -> Option<usize> {
    node.strip_prefix("/dev/fake")?.parse().ok()
}

async fn check_disk(disk: &Disk) -> Result<(), VmError> {
    for extent in &disk.extents {
        let what = "open disk";
        let meta = tokio::fs::metadata(&extent.path).await.map_err(file(what, &extent.path))?;
        if meta.len() < extent.bytes {
            let short = format!("{} bytes, should hold {}", meta.len(), extent.bytes);
            return Err(file(what, &extent.path)(std::io::Error::other(short)));
        }
    }
    Ok(())
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VmError {
    move |source| VmError::File { what, path: path.to_owned(), source }
}
