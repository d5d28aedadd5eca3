//! Virtio 1.2 devices behind virtio-mmio.
//!
//! ```text
//!  driver's registers ─► Transport ── activate(Live) ─► Device ─► Worker: a thread with the queues
//!                            │                                       ▲ kicks (ioeventfd)
//!                            └── reset: stop() joins the thread      └ interrupts (irqfd)
//! ```

mod balloon;
mod block;
mod buffers;
mod console;
mod entropy;
pub(crate) mod mem;
mod net;
mod pmem;
#[cfg(test)]
mod properties;
mod requests;
mod share;
mod transport;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

pub(crate) use balloon::Balloon;
pub(crate) use block::{Block, File, Host, Limits, rings};
pub(crate) use console::Console;
pub(crate) use entropy::Entropy;
pub(crate) use mem::Mem;
pub(crate) use net::{KernelNet, Net};
pub(crate) use pmem::Pmem;
pub(crate) use share::Share;
pub(crate) use transport::{Transport, TransportState};

use crate::memory::Memory;
use crate::metrics::{DeviceCounters, count};

/// Feature bits of all devices (virtio 1.2, 6).
pub(crate) const F_INDIRECT: u64 = 1 << 28;
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
pub(crate) const F_VERSION_1: u64 = 1 << 32;
const COMMON: u64 = F_INDIRECT | F_EVENT_IDX | F_VERSION_1;

/// One device, as its transport needs it.
pub(crate) trait Device: Send + std::fmt::Debug {
    /// Device id (virtio 1.2, 5).
    fn kind(&self) -> u32;

    /// Features it offers, without those of all devices.
    fn features(&self) -> u64;

    /// Most entries of each of its queues.
    fn queues(&self) -> &[u16];

    /// Reads of its configuration space; `data` is zero, what is outside stays so.
    fn config(&self, offset: usize, data: &mut [u8]);

    /// Changes with what the configuration space says.
    fn generation(&self) -> u32 {
        0
    }

    /// The driver is there: the device works from now on.
    fn activate(&mut self, live: Live) -> io::Result<()>;

    /// Ends the thread: returns when nothing of the device touches guest memory any more, with the
    /// queues as they were left; none when it is not active. It can be activated again with them.
    fn stop(&mut self) -> Vec<Queue>;

    /// There is more memory than [`Live`] said; what there was stays. `None`: for that it has to be
    /// stopped and activated again.
    fn extend(&mut self, _memory: &Memory) -> Option<io::Result<()>> {
        None
    }

    /// The driver is gone: what was agreed with it is forgotten. Called when stopped.
    fn reset(&mut self) {}

    /// What the device knows beside its queues. Asked when stopped.
    fn save(&self) -> DeviceState {
        DeviceState::default()
    }

    /// Takes over what another one knew. Told before it is activated.
    fn load(&mut self, _state: DeviceState) {}

    /// Why a guest with this device cannot be saved.
    fn cannot_be_saved(&self) -> Option<&'static str> {
        None
    }

    /// Somebody else works on its queues and raises its interrupt.
    fn is_served_elsewhere(&self) -> bool {
        false
    }

    /// Puts a disk into a place for one; only block devices have some.
    fn fill(&mut self, _file: File) -> io::Result<()> {
        Err(io::Error::other("this device takes no disk"))
    }

    /// Takes the disk out of a place for one.
    fn empty(&mut self) -> io::Result<()> {
        Err(io::Error::other("this device has no disk"))
    }
}

/// What a device knows beside its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceState {
    /// The console's: its port is open; words for the driver; bytes of the oldest buffer from the
    /// guest that have been sent already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleState>,
    /// A network card's: pairs of queues that its driver uses, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsoleState {
    pub open: bool,
    pub words: Vec<[u8; 8]>,
    pub sent: usize,
}

/// What a device works with while its driver is there.
#[derive(Debug)]
pub(crate) struct Live {
    pub memory: Memory,
    /// Those that the driver has set up, at their index.
    pub queues: Vec<Queue>,
    pub kicks: Vec<EventFd>,
    pub interrupt: Arc<Interrupt>,
    /// What the driver accepted.
    pub features: u64,
    pub counters: Arc<DeviceCounters>,
}

/// The device's interrupt line.
#[derive(Debug)]
pub(crate) struct Interrupt {
    status: AtomicU32,
    line: EventFd,
    counters: Arc<DeviceCounters>,
}

/// Bits of `InterruptStatus`.
const USED: u32 = 1;
const CONFIG: u32 = 2;

impl Interrupt {
    pub fn new(line: EventFd, counters: Arc<DeviceCounters>) -> Self {
        Self { status: AtomicU32::new(0), line, counters }
    }

    /// There are used buffers.
    pub fn used(&self) {
        self.raise(USED);
    }

    /// The configuration space has changed.
    pub fn config_changed(&self) {
        self.raise(CONFIG);
    }

    /// The line itself, for whoever raises it without us. Its status reads as "used" then.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        count(&self.counters.interrupts, 1);
        // An eventfd fails only when 2^64 - 2 raises are unread.
        let _ = self.line.write(1);
    }
}

/// Copies what `space` has at `offset` to `data`.
fn copy_config(space: &[u8], offset: usize, data: &mut [u8]) {
    if let Some(from) = space.get(offset..) {
        let length = from.len().min(data.len());
        data[..length].copy_from_slice(&from[..length]);
    }
}
