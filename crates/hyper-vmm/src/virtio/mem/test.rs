//! A driver without a guest, and what the device answers it.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::virtio::Transport;

const BASE: u64 = 4 << 30;
/// Six blocks, four of which are usable.
const SMALL: u64 = 64 << 10;
const BYTES: u64 = 6 * SMALL;
const USABLE: u64 = 4 * SMALL;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x4000;
const ANSWER: u64 = 0x5000;
/// What an answer's place has before.
const BLANK: u8 = 0xee;

/// A driver without a guest: one request at a time.
struct Driver {
    transport: Transport,
    memory: Memory,
    region: Arc<Region>,
    kick: EventFd,
    offered: u16,
}

impl Driver {
    fn new() -> Self {
        let parts = [(GuestAddress(0), 1 << 20), (GuestAddress(BASE), BYTES as usize)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&parts).unwrap());
        let region = Arc::new(Region::new(BASE, BYTES, SMALL));
        region.use_up_to(USABLE);
        let device = Box::new(Mem::new(Arc::clone(&region)));
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let transport =
            Transport::new("mem".to_owned(), device, Arc::clone(&memory), line, false).unwrap();
        let kick = transport.kicks()[0].try_clone().unwrap();
        let mut driver = Self { transport, memory, region, kick, offered: 0 };
        let rings = [(0x80, TABLE as u32), (0x90, AVAILABLE as u32), (0xa0, USED as u32)];
        for (offset, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, 16)]
            .into_iter()
            .chain(rings)
            .chain([(0x44, 1), (0x70, 15)])
        {
            driver.transport.write(offset, &u32::to_le_bytes(value));
        }
        driver
    }

    fn ask(&mut self, kind: u16, start: u64, blocks: u16) -> (u16, u16) {
        self.ask_with(kind, start, blocks, REQUEST_BYTES as u32, ANSWER_BYTES as u32).unwrap()
    }

    /// The answer; `None` when the device wrote none.
    fn ask_with(
        &mut self,
        kind: u16,
        start: u64,
        blocks: u16,
        readable: u32,
        writable: u32,
    ) -> Option<(u16, u16)> {
        let put = |at: u64, bytes: &[u8]| self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        put(REQUEST, &kind.to_le_bytes());
        put(REQUEST + 8, &start.to_le_bytes());
        put(REQUEST + 16, &blocks.to_le_bytes());
        put(ANSWER, &[BLANK; 16]);
        for (index, at, bytes, flags) in [(0, REQUEST, readable, 1_u16), (1, ANSWER, writable, 2)] {
            let place = TABLE + 16 * index;
            put(place, &at.to_le_bytes());
            put(place + 8, &bytes.to_le_bytes());
            put(place + 12, &flags.to_le_bytes());
            put(place + 14, &1_u16.to_le_bytes());
        }
        put(AVAILABLE + 4 + 2 * u64::from(self.offered % 16), &0_u16.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
        self.memory.store(self.offered, GuestAddress(AVAILABLE + 2), Ordering::SeqCst).unwrap();
        self.kick.write(1).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while self.memory.load::<u16>(GuestAddress(USED + 2), Ordering::Acquire).unwrap()
            != self.offered
        {
            assert!(Instant::now() < until, "no answer for 20 s");
            std::thread::yield_now();
        }
        let mut answer = [0; 16];
        self.memory.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        assert_eq!(answer[ANSWER_BYTES..], [BLANK; 6], "more was written than an answer");
        let half = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
        (answer[..2] != [BLANK; 2]).then(|| (half(0), half(8)))
    }

    fn config(&mut self, field: u64) -> u64 {
        let mut bytes = [0; 8];
        self.transport.read(0x100 + 8 * field, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn generation(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(0xfc, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn status(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(0x60, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.transport.halt();
    }
}

#[test]
fn a_driver_takes_what_it_is_asked_to_have_and_gives_it_back() {
    let mut driver = Driver::new();
    let fields: Vec<u64> = (0..7).map(|field| driver.config(field)).collect();
    assert_eq!(fields, [SMALL, 0, BASE, BYTES, USABLE, 0, 0]);
    assert_eq!(driver.ask(PLUG, BASE, 1).0, NACK, "nothing was asked for");
    let (before, _) = (driver.generation(), driver.transport.write(0x64, &3_u32.to_le_bytes()));
    driver.region.ask(2 * SMALL);
    assert_eq!(driver.status() & 2, 2, "the driver is told that the configuration changed");
    assert_ne!(driver.generation(), before);
    assert_eq!(driver.config(6), 2 * SMALL);
    assert_eq!(driver.ask(PLUG, BASE + SMALL, 3).0, NACK, "more than was asked for");
    assert_eq!(driver.ask(PLUG, BASE + SMALL, 2).0, ACK);
    assert_eq!((driver.region.has(), driver.config(5)), (2 * SMALL, 2 * SMALL));
    for (start, blocks, state) in
        [(0, 1, NONE), (1, 2, ALL), (0, 2, MIXED), (0, 4, MIXED), (3, 1, NONE)]
    {
        assert_eq!(driver.ask(STATE, BASE + start * SMALL, blocks), (ACK, state), "{start}");
    }
    let (lost, kept) = (GuestAddress(BASE + SMALL), GuestAddress(BASE + 2 * SMALL));
    driver.memory.write_obj(7_u64, lost).unwrap();
    driver.memory.write_obj(9_u64, kept).unwrap();
    assert!(driver.transport.cannot_be_saved().is_some());
    assert_eq!(driver.ask(UNPLUG, BASE + SMALL, 1).0, ACK);
    assert_eq!(driver.memory.read_obj::<u64>(lost).unwrap(), 0, "it went back to the host");
    assert_eq!(driver.memory.read_obj::<u64>(kept).unwrap(), 9);
    // A driver that comes anew still has it, and can give all back.
    driver.transport.halt();
    driver.transport.go_on();
    assert_eq!(driver.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(driver.memory.read_obj::<u64>(kept).unwrap(), 0);
    assert_eq!((driver.region.has(), driver.config(5)), (0, 0));
    driver.region.ask(0);
    assert!(driver.transport.cannot_be_saved().is_none());
    let counted = driver.transport.metrics();
    assert_eq!((counted.bytes_in, counted.bytes_out, counted.errors), (2 * SMALL, 2 * SMALL, 2));
}

#[test]
fn requests_that_are_none_are_errors_and_do_nothing() {
    let mut driver = Driver::new();
    driver.region.ask(USABLE);
    assert_eq!(driver.ask(PLUG, BASE, 1).0, ACK);
    driver.memory.write_obj(7_u64, GuestAddress(BASE)).unwrap();
    driver.memory.write_obj(9_u64, GuestAddress(0x8_0000)).unwrap();
    for (what, kind, start, blocks) in [
        ("twice", PLUG, BASE, 1),
        ("partly twice", PLUG, BASE, 2),
        ("no blocks", PLUG, BASE + SMALL, 0),
        ("unaligned", PLUG, BASE + SMALL + 4096, 1),
        ("below", PLUG, BASE - SMALL, 1),
        ("not usable", PLUG, BASE + USABLE, 1),
        ("partly not usable", PLUG, BASE + SMALL, 4),
        ("beyond", PLUG, BASE + BYTES, 1),
        ("far beyond", PLUG, u64::MAX - SMALL + 1, u16::MAX),
        ("not had", UNPLUG, BASE + SMALL, 1),
        ("partly not had", UNPLUG, BASE, 2),
        ("what it booted with", UNPLUG, 0x8_0000, 1),
        ("no blocks", UNPLUG, BASE, 0),
        ("unaligned", UNPLUG, BASE + 1, 1),
        ("state beyond", STATE, BASE + USABLE, 1),
        ("state of no blocks", STATE, BASE, 0),
        ("no request", 4, BASE, 1),
        ("no request", u16::MAX, BASE, 1),
    ] {
        assert_eq!(driver.ask(kind, start, blocks).0, ERROR, "{what}");
        assert_eq!(driver.region.has(), SMALL, "{what}");
    }
    for (readable, writable) in [(23, 10), (24, 9), (0, 0)] {
        assert_eq!(driver.ask_with(UNPLUG, BASE, 1, readable, writable), None);
    }
    assert_eq!(driver.region.has(), SMALL);
    assert_eq!(driver.memory.read_obj::<u64>(GuestAddress(BASE)).unwrap(), 7);
    assert_eq!(driver.memory.read_obj::<u64>(GuestAddress(0x8_0000)).unwrap(), 9);
}

fn place() -> impl Strategy<Value = (u64, u16)> {
    let start = prop_oneof![
        8 => (0..7_u64).prop_map(|block| BASE + block * SMALL),
        1 => BASE - 2 * SMALL..BASE + BYTES + SMALL,
        1 => any::<u64>(),
    ];
    (start, prop_oneof![8 => 0..6_u16, 1 => any::<u16>()])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    /// Any requests, against a model; memory that is had keeps what is in it.
    #[test]
    fn requests_do_what_they_say(
        asked in vec((0..5_u16, place(), prop::option::of(0..5_u64)), 1..40),
    ) {
        let mut driver = Driver::new();
        let (mut had, mut wanted) = ([false; 4], 0);
        for (kind, (start, number), change) in asked {
            if let Some(blocks) = change {
                wanted = blocks.min(4) * SMALL;
                driver.region.ask(wanted);
            }
            let first = start.checked_sub(BASE).filter(|at| at % SMALL == 0).map(|at| at / SMALL);
            let behind = first.and_then(|first| first.checked_add(number.into()));
            let inside = behind.is_some_and(|behind| behind <= 4) && number > 0;
            let all = 0..4;
            let range = match (first, behind) {
                (Some(first), Some(behind)) if inside => first as usize..behind as usize,
                _ => 0..0,
            };
            let (count, there) = (range.len(), had[range.clone()].iter().filter(|one| **one).count());
            let total = had.iter().filter(|one| **one).count() as u64 * SMALL;
            let right = match kind {
                UNPLUG_ALL => { had[all].fill(false); ACK }
                _ if !inside => ERROR,
                PLUG if there > 0 => ERROR,
                PLUG if total + count as u64 * SMALL > wanted => NACK,
                PLUG => { had[range].fill(true); ACK }
                UNPLUG if there < count => ERROR,
                UNPLUG => { had[range].fill(false); ACK }
                STATE => ACK,
                _ => ERROR,
            };
            prop_assert_eq!(driver.ask(kind, start, number).0, right);
            for (block, had) in (0_u64..).zip(had) {
                let at = GuestAddress(BASE + block * SMALL + 8);
                let read: u64 = driver.memory.read_obj(at).unwrap();
                // Marked below while it was had: gone with it, and only then.
                prop_assert!(had || read == 0, "block {} kept what was in it", block);
                prop_assert!(read == 0 || read == block + 1);
                if had {
                    driver.memory.write_obj(block + 1, at).unwrap();
                }
            }
            let now = had.iter().filter(|one| **one).count() as u64 * SMALL;
            prop_assert_eq!(driver.region.has(), now);
        }
    }
}
