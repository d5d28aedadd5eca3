//! Network device (virtio 1.2, 5.1) on a tap.
//!
//! ```text
//!  tap ─┬─ queue 0 ◀─▶ pair 0: thread, two queues of the driver's   [pair.rs], or the host's kernel's [kernel.rs]
//!       └─ queue 1 ◀─▶ pair 1
//!          attached, detached ◀── control queue: so many pairs are in use       [control.rs, tap.rs]
//! ```
//! A guest with several CPUs has a pair of queues for each; a card of one pair has no control queue.
//!
//! Both sides speak `virtio_net_hdr`, so checksums and segmentation are left to whoever has to do
//! them: between pods of one host nobody does. Packets for which the guest has no buffers wait in
//! the tap's own queue, whose length is the host's to bound; what the tap does not take is
//! dropped, as a wire would. Where the host has vhost-net its kernel does all of that ([`KernelNet`]).

mod control;
mod kernel;
mod pair;
mod tap;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_queue::Queue;

pub(crate) use kernel::KernelNet;

use super::worker::Worker;
use super::{Device, DeviceState, Live, copy_config};
use control::Control;
use pair::Pair;
use tap::Tap;

const KIND: u32 = 1;
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;
/// Entries of a queue of packets, and of the control queue.
const PACKETS: u16 = 256;
const CONTROL: u16 = 16;
/// `struct virtio_net_hdr_v1`, and where its number of buffers is.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;

/// What the driver is told of its card.
#[derive(Debug)]
struct Card {
    mac: [u8; 6],
    mtu: u16,
    pairs: u16,
    /// Lengths of its queues: those of each pair, then the control queue.
    queues: Vec<u16>,
}

impl Card {
    const FEATURES: u64 = F_GUEST_CSUM
        | F_GUEST_TSO4
        | F_GUEST_TSO6
        | F_CSUM
        | F_HOST_TSO4
        | F_HOST_TSO6
        | F_MAC
        | F_MTU
        | F_MRG_RXBUF;

    fn new(mac: [u8; 6], mtu: u16, pairs: usize) -> Self {
        let mut queues = vec![PACKETS; 2 * pairs];
        if pairs > 1 {
            queues.push(CONTROL);
        }
        Self { mac, mtu, pairs: u16::try_from(pairs).unwrap_or(u16::MAX), queues }
    }

    fn features(&self) -> u64 {
        Self::FEATURES | if self.pairs > 1 { F_MQ | F_CTRL_VQ } else { 0 }
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.mac);
        space[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        space[10..].copy_from_slice(&self.mtu.to_le_bytes());
        copy_config(&space, offset, data);
    }

    /// The queues of a driver with these features, taken apart.
    fn split(&self, live: Live) -> Split {
        let pairs = if live.features & F_MQ == 0 { 1 } else { usize::from(self.pairs) };
        let (mut queues, mut kicks) = (live.queues.into_iter(), live.kicks.into_iter());
        let mut take = |count: usize| Live {
            memory: Arc::clone(&live.memory),
            queues: queues.by_ref().take(count).collect(),
            kicks: kicks.by_ref().take(count).collect(),
            interrupt: Arc::clone(&live.interrupt),
            features: live.features,
            counters: Arc::clone(&live.counters),
        };
        let data = (0..pairs).map(|_| take(2)).collect();
        let control = (live.features & F_CTRL_VQ != 0).then(|| take(1));
        Split { data, control, unused: queues.collect() }
    }
}

/// What belongs together of a device's queues.
struct Split {
    /// Receiving and sending, pair by pair.
    data: Vec<Live>,
    control: Option<Live>,
    unused: Vec<Queue>,
}

/// The device.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
    card: Card,
    tap: Arc<Tap>,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    Busy { pairs: Vec<Worker<Pair>>, control: Option<Control>, unused: Vec<Queue> },
    Lost,
}

impl Net {
    /// A device on the queues of a tap, which must have `IFF_VNET_HDR` and not block.
    pub fn new(name: String, tap: Vec<OwnedFd>, mac: [u8; 6], mtu: u16) -> io::Result<Self> {
        let card = Card::new(mac, mtu, tap.len());
        let tap = Arc::new(Tap::new(tap)?);
        tap.set_header(HEADER)?;
        Ok(Self { name, card, tap, state: State::Idle })
    }

    /// A device on something that is no tap: for tests and the fuzz targets.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn untold(name: String, tap: Vec<OwnedFd>) -> io::Result<Self> {
        let card = Card::new([2, 0, 0, 0, 0, 1], 1500, tap.len());
        Ok(Self { name, card, tap: Arc::new(Tap::new(tap)?), state: State::Idle })
    }

    fn start(&mut self, live: Live) -> io::Result<()> {
        let Split { data, control, unused } = self.card.split(live);
        let mut pairs = Vec::new();
        for (at, live) in data.into_iter().enumerate() {
            let name = format!("{}.{at}", self.name);
            pairs.push(Pair::start(&name, Arc::clone(&self.tap), at, live)?);
        }
        let control = control
            .map(|live| Control::start(&self.name, Arc::clone(&self.tap), live))
            .transpose()?;
        self.state = State::Busy { pairs, control, unused };
        Ok(())
    }
}

impl Device for Net {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        self.card.features()
    }

    fn queues(&self) -> &[u16] {
        &self.card.queues
    }

    fn config(&self, offset: usize, data: &mut [u8]) {
        self.card.config(offset, data);
    }

    fn activate(&mut self, live: Live) -> io::Result<()> {
        if !matches!(self.state, State::Idle) {
            return Err(io::Error::other("it has a driver already"));
        }
        // That of tests and fuzz targets is none.
        if let Err(error) = self.tap.agree(live.features)
            && !cfg!(any(test, feature = "fuzzing"))
        {
            return Err(error);
        }
        // Queues that a thread took before another could not be started are gone with it.
        self.state = State::Lost;
        self.start(live)
    }

    fn stop(&mut self) -> Vec<Queue> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Busy { pairs, control, unused } => {
                // All end before any of them is asked what it has left.
                let ended: Vec<_> = pairs.into_iter().map(Pair::stop).collect();
                let ended = ended.into_iter().chain(control.map(Control::stop));
                let Some(queues) = ended.collect::<Option<Vec<_>>>() else { return Vec::new() };
                self.state = State::Idle;
                queues.into_iter().flatten().chain(unused).collect()
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }

    fn reset(&mut self) {
        self.tap.use_pairs(1);
    }

    fn save(&self) -> DeviceState {
        self.tap.save()
    }

    fn load(&mut self, state: DeviceState) {
        self.tap.use_pairs(state.pairs.unwrap_or(1));
    }
}
