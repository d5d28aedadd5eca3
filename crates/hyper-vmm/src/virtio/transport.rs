//! virtio-mmio, version 2 (virtio 1.2, 4.2): a device's registers.
//!
//! States are the driver's status bits: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK; zero resets.
//! Registers of queues can be written only before DRIVER_OK, so that a device's thread never sees
//! a queue change.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT as _};
use vmm_sys_util::eventfd::EventFd;

use super::{COMMON, Device, DeviceState, F_EVENT_IDX, F_VERSION_1, Interrupt, Live, USED};
use crate::memory::Memory;
use crate::metrics::{DeviceCounters, DeviceMetrics, count};

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0x5059_4800;
const CONFIG: u64 = 0x100;

const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;

/// The registers of one device, and the device.
#[derive(Debug)]
pub(crate) struct Transport {
    name: String,
    device: Box<dyn Device>,
    memory: Memory,
    queues: Vec<Queue>,
    kicks: Vec<EventFd>,
    interrupt: Arc<Interrupt>,
    counters: Arc<DeviceCounters>,
    status: u32,
    features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    queue: u32,
    active: bool,
    /// Somebody else raises the line: the status says "used" whenever it is asked for.
    foreign: bool,
}

impl Transport {
    /// Registers for `device`; `line` is its interrupt.
    pub fn new(
        name: String,
        device: Box<dyn Device>,
        memory: Memory,
        line: EventFd,
        foreign: bool,
    ) -> std::io::Result<Self> {
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for size in device.queues() {
            queues.push(Queue::new(*size).map_err(std::io::Error::other)?);
            kicks.push(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        }
        let counters = Arc::new(DeviceCounters::default());
        let interrupt = Arc::new(Interrupt::new(line, Arc::clone(&counters)));
        Ok(Self {
            name,
            device,
            memory,
            queues,
            kicks,
            interrupt,
            counters,
            status: 0,
            features: 0,
            device_features_page: 0,
            driver_features_page: 0,
            queue: 0,
            active: false,
            foreign,
        })
    }

    /// What KVM signals when a queue is notified.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    pub fn metrics(&self) -> DeviceMetrics {
        self.counters.read(&self.name)
    }

    /// Puts a disk into it.
    pub fn fill(&mut self, file: super::File) -> std::io::Result<()> {
        self.device.fill(file)
    }

    /// Takes its disk out of it.
    pub fn empty(&mut self) -> std::io::Result<()> {
        self.device.empty()
    }

    /// Has the device reach `memory`: what it reaches now, and more.
    pub fn extend(&mut self, memory: Memory) -> std::io::Result<()> {
        self.memory = memory;
        if !self.active {
            return Ok(());
        }
        match self.device.extend(&self.memory) {
            Some(done) => done,
            None => {
                self.halt();
                self.go_on();
                Ok(())
            }
        }
    }

    /// Ends the device's thread; [`Self::go_on`] starts it again where it was.
    pub fn halt(&mut self) {
        let queues = self.device.stop();
        if !queues.is_empty() {
            self.queues = queues;
        }
    }

    /// After [`Self::halt`] or [`Self::load`].
    pub fn go_on(&mut self) {
        if self.active {
            self.activate();
            // One that was on its way when the guest was saved may be lost; one more does no harm.
            self.interrupt.used();
        }
    }

    pub fn cannot_be_saved(&self) -> Option<&'static str> {
        self.device.cannot_be_saved()
    }

    /// What a new transport needs to go on where this one is. Asked after [`Self::halt`].
    pub fn save(&self) -> TransportState {
        TransportState {
            name: self.name.clone(),
            status: self.status,
            features: self.features,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            queue: self.queue,
            active: self.active,
            interrupt: self.interrupt.status.load(Ordering::SeqCst),
            queues: self.queues.iter().map(QueueRegisters::of).collect(),
            device: self.device.save(),
        }
    }

    /// Takes over what another one knew. The state is checked as a driver's would be.
    pub fn load(&mut self, state: TransportState) -> Result<(), String> {
        let fits = state.name == self.name && state.queues.len() == self.queues.len();
        if !fits || state.features & !self.offered() != 0 {
            return Err(format!("`{}` was saved, `{}` is here", state.name, self.name));
        }
        let mut queues = Vec::new();
        for (saved, own) in state.queues.iter().zip(&self.queues) {
            if saved.max_size != own.max_size() {
                return Err(format!("queues of `{}` have another length", self.name));
            }
            queues.push(saved.queue().map_err(|error| format!("`{}`: {error}", self.name))?);
        }
        self.queues = queues;
        self.status = state.status;
        self.features = state.features;
        self.device_features_page = state.device_features_page;
        self.driver_features_page = state.driver_features_page;
        self.queue = state.queue;
        self.active = state.active;
        self.interrupt.status.store(state.interrupt, Ordering::SeqCst);
        self.device.load(state.device);
        Ok(())
    }

    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            data.fill(0);
            self.device.config(usize::try_from(at).unwrap_or(usize::MAX), data);
            return;
        }
        // All other registers are 32 bits wide and read so.
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else { return };
        *word = self.register(offset).to_le_bytes();
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(word);
        match offset {
            0x014 => self.device_features_page = value,
            0x020 => self.accept(value),
            0x024 => self.driver_features_page = value,
            0x030 => self.queue = value,
            0x038 => self.set(|queue| queue.set_size(u16::try_from(value).unwrap_or(0))),
            0x044 => self.set(|queue| queue.set_ready(value == 1)),
            // A notification that KVM did not take, e.g. of a queue that does not exist.
            0x050 => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    count(&self.counters.kicks, 1);
                    let _ = kick.write(1);
                }
            }
            0x064 => drop(self.interrupt.status.fetch_and(!value, Ordering::SeqCst)),
            0x070 => self.set_status(value),
            0x080 => self.set(|queue| queue.set_desc_table_address(Some(value), None)),
            0x084 => self.set(|queue| queue.set_desc_table_address(None, Some(value))),
            0x090 => self.set(|queue| queue.set_avail_ring_address(Some(value), None)),
            0x094 => self.set(|queue| queue.set_avail_ring_address(None, Some(value))),
            0x0a0 => self.set(|queue| queue.set_used_ring_address(Some(value), None)),
            0x0a4 => self.set(|queue| queue.set_used_ring_address(None, Some(value))),
            _ => {}
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue as usize);
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.device.kind(),
            0x00c => VENDOR,
            0x010 => page(self.offered(), self.device_features_page),
            0x034 => queue.map_or(0, |queue| queue.max_size().into()),
            0x044 => queue.map_or(0, |queue| queue.ready().into()),
            0x060 if self.foreign => self.interrupt.status.load(Ordering::SeqCst) | USED,
            0x060 => self.interrupt.status.load(Ordering::SeqCst),
            0x070 => self.status,
            // No shared memory regions: length -1.
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => self.device.generation(),
            _ => 0,
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON
    }

    fn accept(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let (shift, mask) = match self.driver_features_page {
            0 => (0, 0xffff_ffff_u64),
            1 => (32, 0xffff_ffff_u64 << 32),
            _ => return,
        };
        self.features = (self.features & !mask) | (u64::from(value) << shift);
    }

    /// Changes the selected queue, as long as the driver may.
    fn set(&mut self, change: impl FnOnce(&mut Queue)) {
        if self.status & DRIVER_OK == 0
            && let Some(queue) = self.queues.get_mut(self.queue as usize)
        {
            change(queue);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut value = value & 0xff & !NEEDS_RESET | (self.status & NEEDS_RESET);
        if value & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            let odd = self.features & !self.offered() != 0 || self.features & F_VERSION_1 == 0;
            if odd {
                // The driver reads it back and sees that the bit is not set.
                value &= !FEATURES_OK;
            }
        }
        let starts = value & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        self.status = value;
        if starts && value & FEATURES_OK != 0 {
            self.activate();
        }
    }

    fn activate(&mut self) {
        let event_idx = self.features & F_EVENT_IDX != 0;
        let mut live = Live {
            memory: Arc::clone(&self.memory),
            queues: Vec::new(),
            kicks: Vec::new(),
            interrupt: Arc::clone(&self.interrupt),
            features: self.features,
            counters: Arc::clone(&self.counters),
        };
        for (queue, kick) in self.queues.iter().zip(&self.kicks) {
            let Ok(mut queue) = Queue::try_from(queue.state()) else { return self.fail() };
            // What is not ready is not used by the driver; what is must lie in memory.
            if queue.ready() && !queue.is_valid(&*self.memory) {
                return self.fail();
            }
            queue.set_event_idx(event_idx);
            let Ok(kick) = kick.try_clone() else { return self.fail() };
            live.queues.push(queue);
            live.kicks.push(kick);
        }
        match self.device.activate(live) {
            Ok(()) => self.active = true,
            Err(error) => {
                eprintln!("hyper-vmm: {}: its driver cannot be served: {error}", self.name);
                self.fail();
            }
        }
    }

    fn fail(&mut self) {
        self.status |= NEEDS_RESET;
        self.interrupt.config_changed();
    }

    fn reset(&mut self) {
        drop(self.device.stop());
        self.device.reset();
        self.active = false;
        self.status = 0;
        self.features = 0;
        self.interrupt.status.store(0, Ordering::SeqCst);
        for queue in &mut self.queues {
            queue.reset();
        }
        for kick in &self.kicks {
            // Nothing to read is fine.
            let _ = kick.read();
        }
    }
}

/// A transport's registers and what its device knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransportState {
    name: String,
    status: u32,
    features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    queue: u32,
    active: bool,
    interrupt: u32,
    queues: Vec<QueueRegisters>,
    device: DeviceState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueRegisters {
    max_size: u16,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    next_avail: u16,
    next_used: u16,
}

impl QueueRegisters {
    fn of(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }

    fn queue(&self) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(QueueState {
            max_size: self.max_size,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: false,
        })
    }
}

fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::virtio::Entropy;

    fn transport() -> Transport {
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Transport::new("rng".to_owned(), Box::new(Entropy::default()), memory, line, false).unwrap()
    }

    fn read(transport: &mut Transport, offset: u64) -> u32 {
        let mut data = [0; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_up(transport: &mut Transport, used_ring: u32) {
        for (offset, value) in [
            (0x070, 3),
            (0x024, 1),
            (0x020, 1),
            (0x070, 11),
            (0x030, 0),
            (0x038, 16),
            (0x080, 0x1000),
            (0x090, 0x2000),
            (0x0a0, used_ring),
            (0x044, 1),
            (0x070, 15),
        ] {
            transport.write(offset, &u32::to_le_bytes(value));
        }
    }

    #[test]
    fn a_driver_comes_and_goes() {
        let mut transport = transport();
        assert_eq!((read(&mut transport, 0), read(&mut transport, 4)), (MAGIC, 2));
        set_up(&mut transport, 0x3000);
        assert_eq!(read(&mut transport, 0x70), 15);
        assert!(transport.active);
        // Queues of a live device do not move.
        transport.write(0x080, &0xdead_0000_u32.to_le_bytes());
        assert_eq!(transport.queues[0].desc_table(), 0x1000);
        transport.write(0x070, &[0; 4]);
        assert!(!transport.active);
        set_up(&mut transport, 0x3000);
        assert!(transport.active);
        transport.write(0x070, &[0; 4]);
    }

    #[test]
    fn rings_outside_of_memory_and_unknown_features_are_refused() {
        let mut outside = transport();
        set_up(&mut outside, 0xffff_f000);
        assert_eq!(read(&mut outside, 0x70) & NEEDS_RESET, NEEDS_RESET);
        assert!(!outside.active);
        let mut odd = transport();
        odd.write(0x024, &1_u32.to_le_bytes());
        odd.write(0x020, &u32::MAX.to_le_bytes());
        odd.write(0x070, &11_u32.to_le_bytes());
        assert_eq!(read(&mut odd, 0x70) & FEATURES_OK, 0);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let mut transport = transport();
        for offset in 0..0x200 {
            for width in [1, 2, 4, 8] {
                let mut data = vec![0xff; width];
                transport.read(offset, &mut data);
                transport.write(offset, &data);
            }
        }
        transport.write(0x030, &77_u32.to_le_bytes());
        assert_eq!(read(&mut transport, 0x034), 0);
    }
}
