//! Properties of devices, whatever a driver writes into its rings.
//!
//! Guest memory lies between two fences: bytes that nothing may write, and that nothing may take for
//! the guest's and carry to a disk or a card.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::mem::Region;
use super::{Block, Device, File as Disk, Host, Mem, Net, Transport};
use crate::memory::Memory;

const MEMORY: usize = 1 << 20;
const FENCE: usize = 64 << 10;
const POST: &[u8; 8] = b"fence!!\n";
/// Rings of the first queue, and from one queue's to the next's.
const RINGS: u64 = 0x1_0000;
const APART: u64 = 0x4_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// A table of indirect descriptors, headers of requests, and room for data.
const TABLE: u64 = 0x2_0000;
const HEADERS: u64 = 0x3_0000;
const DATA: u64 = 0xa_0000;
const ENTRIES: u16 = 16;
const DISK: u64 = 64 << 10;
const DISK_BYTE: u8 = 7;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Memory of a guest between fences.
struct Ground {
    memory: Memory,
    fences: [*const u8; 2],
}

impl Ground {
    fn take() -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let length = FENCE + MEMORY + FENCE;
        // SAFETY: a new mapping where the kernel has room.
        let whole = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(whole, libc::MAP_FAILED);
        let first = whole.cast::<u8>();
        let (inside, behind) = (first.wrapping_add(FENCE), first.wrapping_add(FENCE + MEMORY));
        for fence in [first, behind] {
            // SAFETY: `FENCE` bytes of the mapping, which nobody else knows yet.
            let bytes = unsafe { std::slice::from_raw_parts_mut(fence, FENCE) };
            bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(POST));
        }
        // SAFETY: `MEMORY` bytes inside the mapping, which is there as long as this value.
        let mapping = unsafe { MmapRegion::build_raw(inside, MEMORY, protection, flags) };
        let region = GuestRegionMmap::new(mapping.unwrap(), GuestAddress(0)).unwrap();
        let memory = Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap());
        Self { memory, fences: [first, behind] }
    }

    fn write(&self, bytes: &[u8], at: u64) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn holds(&self) -> bool {
        self.fences.iter().all(|fence| {
            // SAFETY: still mapped, and the threads that could have written have ended.
            let bytes = unsafe { std::slice::from_raw_parts(*fence, FENCE) };
            bytes.chunks_exact(8).all(|chunk| chunk == POST)
        })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // SAFETY: the mapping of `take`; the device that had it has ended.
        unsafe { libc::munmap(self.fences[0].cast_mut().cast(), FENCE + MEMORY + FENCE) };
    }
}

fn leaked(bytes: &[u8]) -> bool {
    bytes.windows(POST.len()).any(|window| window == POST)
}

#[derive(Debug, Clone)]
struct Descriptor {
    at: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let end = MEMORY as u64;
    let at = prop_oneof![
        4 => (0..16_u64).prop_map(|header| HEADERS + 16 * header),
        4 => DATA..end,
        2 => RINGS..RINGS + 0x9000,
        2 => Just(TABLE),
        2 => end - 4096..end + 4096,
        1 => any::<u64>(),
    ];
    let bytes = prop_oneof![
        4 => Just(16_u32),
        2 => Just(1_u32),
        4 => (0..16_u32).prop_map(|sectors| sectors * 512),
        2 => 0..70_000_u32,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0..4_u16, 2 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..ENTRIES, 1 => any::<u16>()];
    (at, bytes, flags, next).prop_map(|(at, bytes, flags, next)| Descriptor {
        at,
        bytes,
        flags,
        next,
    })
}

/// What a driver may write: a table, one for indirect descriptors, headers of requests, and what it
/// offers.
#[derive(Debug, Clone)]
struct Rings {
    table: Vec<Descriptor>,
    indirect: Vec<Descriptor>,
    headers: Vec<(u32, u64)>,
    offered: Vec<u16>,
    index: u16,
    features: u32,
}

fn rings() -> impl Strategy<Value = Rings> {
    let entries = usize::from(ENTRIES);
    let kind =
        prop_oneof![8 => prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13]), 1 => any::<u32>()];
    let sector = prop_oneof![8 => 0..140_u64, 1 => any::<u64>()];
    let index = prop_oneof![8 => 0..=ENTRIES, 1 => any::<u16>()];
    let features = vec(prop::sample::select(vec![0_u32, 1 << 28, 1 << 29, 1 << 15]), 0..4);
    (
        vec(descriptor(), entries),
        vec(descriptor(), entries),
        vec((kind, sector), entries),
        vec(prop_oneof![8 => 0..ENTRIES, 1 => any::<u16>()], entries),
        index,
        features,
    )
        .prop_map(|(table, indirect, headers, offered, index, features)| Rings {
            table,
            indirect,
            headers,
            offered,
            index,
            features: features.iter().fold(0, |all, one| all | one),
        })
}

impl Rings {
    fn write(&self, ground: &Ground, queue: u64) {
        let base = RINGS + queue * APART;
        put(ground, &self.table, base);
        put(ground, &self.indirect, TABLE);
        for (at, (kind, sector)) in (0..).zip(&self.headers) {
            ground.write(&kind.to_le_bytes(), HEADERS + 16 * at);
            ground.write(&sector.to_le_bytes(), HEADERS + 16 * at + 8);
        }
        ground.write(&self.index.to_le_bytes(), base + AVAILABLE + 2);
        for (at, head) in (0..).zip(&self.offered) {
            ground.write(&head.to_le_bytes(), base + AVAILABLE + 4 + 2 * at);
        }
    }
}

fn put(ground: &Ground, table: &[Descriptor], at: u64) {
    for (index, descriptor) in (0..).zip(table) {
        let place = at + 16 * index;
        ground.write(&descriptor.at.to_le_bytes(), place);
        ground.write(&descriptor.bytes.to_le_bytes(), place + 8);
        ground.write(&descriptor.flags.to_le_bytes(), place + 12);
        ground.write(&descriptor.next.to_le_bytes(), place + 14);
    }
}

/// Has a driver set up `queues`, which the device looks at once it is activated, and ends it.
fn serve(ground: &Ground, device: Box<dyn Device>, queues: u32, features: u32) {
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let memory = Arc::clone(&ground.memory);
    let mut transport = Transport::new("d".to_owned(), device, memory, line, false).unwrap();
    let write = |transport: &mut Transport, offset: u64, value: u32| {
        transport.write(offset, &value.to_le_bytes());
    };
    for (offset, value) in
        [(0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, features), (0x70, 11)]
    {
        write(&mut transport, offset, value);
    }
    for queue in 0..queues {
        let base = (RINGS + u64::from(queue) * APART) as u32;
        let (available, used) = (base + AVAILABLE as u32, base + USED as u32);
        for (offset, value) in [
            (0x30, queue),
            (0x38, ENTRIES.into()),
            (0x80, base),
            (0x90, available),
            (0xa0, used),
            (0x44, 1),
        ] {
            write(&mut transport, offset, value);
        }
    }
    write(&mut transport, 0x70, 15);
    let (told, ended) = mpsc::channel();
    std::thread::spawn(move || {
        transport.halt();
        // Whoever waited may have given up.
        let _ = told.send(());
    });
    if ended.recv_timeout(Duration::from_secs(30)).is_err() {
        // It may still write: no unwinding that would unmap what it has.
        eprintln!("the device's thread does not end");
        std::process::abort();
    }
}

/// `slow`: in a file of memory, of which nobody can tell whether a read waits, so that those of many
/// go to other threads.
fn disk(read_only: bool, slow: bool) -> (File, Box<dyn Device>) {
    let file = match slow {
        true => rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into(),
        false => tempfile::tempfile().unwrap(),
    };
    file.write_all_at(&[DISK_BYTE; DISK as usize], 0).unwrap();
    let disk = Disk::new(vec![(file.try_clone().unwrap(), DISK)], read_only, true).unwrap();
    (file, Box::new(Block::new("disk".to_owned(), disk, Host::apart())))
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = file;
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn no_driver_leads_a_disk_astray(rings in rings(), read_only: bool, slow: bool) {
        let ground = Ground::take();
        rings.write(&ground, 0);
        let (file, device) = disk(read_only, slow);
        serve(&ground, device, 1, rings.features & !(1 << 15));
        prop_assert!(ground.holds(), "written outside of memory");
        let bytes = contents(&file);
        prop_assert_eq!(bytes.len() as u64, DISK, "the file has another length");
        prop_assert!(!leaked(&bytes), "the host's memory is on the disk");
        prop_assert!(!read_only || bytes.iter().all(|byte| *byte == DISK_BYTE), "it was written to");
    }

    #[test]
    fn no_driver_leads_a_card_astray(
        receiving in rings(),
        sending in rings(),
        packets in vec(1..3000_usize, 0..6),
    ) {
        let ground = Ground::take();
        receiving.write(&ground, 0);
        sending.write(&ground, 1);
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        for length in &packets {
            theirs.send(&vec![9; *length]).unwrap();
        }
        let net = Net::untold("net".to_owned(), vec![OwnedFd::from(ours)]).unwrap();
        serve(&ground, Box::new(net), 2, receiving.features);
        prop_assert!(ground.holds(), "written outside of memory");
        let mut packet = vec![0; 128 << 10];
        while let Ok(length) = theirs.recv(&mut packet) {
            if length == 0 {
                break;
            }
            prop_assert!(!leaked(&packet[..length]), "the host's memory is on the network");
            prop_assert!(length <= 65_562, "a packet of {} bytes", length);
        }
    }

    /// Memory that comes and goes lies at the end, before the fence; see `mem/test.rs` for a model.
    #[test]
    fn no_driver_leads_memory_astray(rings in rings(), asked in 0..5_u64) {
        const BLOCK: u64 = 64 << 10;
        let ground = Ground::take();
        rings.write(&ground, 0);
        // Requests, where the table has its addresses.
        for (at, (kind, sector)) in (0..).zip(&rings.headers) {
            let start = DATA + (sector % 8) * BLOCK / (1 + u64::from(kind % 5 == 4));
            ground.write(&(u64::from(*kind % 5) | 1 << 48).to_le_bytes(), HEADERS + 16 * at);
            ground.write(&start.to_le_bytes(), HEADERS + 16 * at + 8);
        }
        let region = Arc::new(Region::new(DATA, MEMORY as u64 - DATA, BLOCK));
        region.use_up_to(MEMORY as u64 - DATA);
        region.ask(asked * BLOCK);
        serve(&ground, Box::new(Mem::new(Arc::clone(&region))), 1, rings.features & !(1 << 15));
        prop_assert!(ground.holds(), "memory that is not the guest's was given back");
        prop_assert!(region.has() <= asked * BLOCK, "it has {} bytes", region.has());
        prop_assert!(region.has().is_multiple_of(BLOCK));
    }

    /// Requests as a driver makes them, against a model: what fits into the disk is done, all else
    /// is refused and changes nothing.
    #[test]
    fn requests_do_what_they_say(
        write: bool,
        read_only: bool,
        sector in prop_oneof![8 => 0..140_u64, 1 => any::<u64>()],
        pieces in vec(1..9_u32, 1..5),
    ) {
        let ground = Ground::take();
        let total: u32 = pieces.iter().map(|sectors| sectors * 512).sum();
        let (length, status_at) = (total as usize, HEADERS + 0x100);
        let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        ground.write(&u32::from(write).to_le_bytes(), HEADERS);
        ground.write(&sector.to_le_bytes(), HEADERS + 8);
        ground.write(&[0xff], status_at);
        ground.write(&sent, DATA);
        let mut table = vec![Descriptor { at: HEADERS, bytes: 16, flags: NEXT, next: 1 }];
        let mut at = DATA;
        for (next, sectors) in (2..).zip(&pieces) {
            let flags = if write { NEXT } else { NEXT | WRITE };
            table.push(Descriptor { at, bytes: sectors * 512, flags, next });
            at += u64::from(sectors * 512);
        }
        table.push(Descriptor { at: status_at, bytes: 1, flags: WRITE, next: 0 });
        put(&ground, &table, RINGS);
        ground.write(&1_u16.to_le_bytes(), RINGS + AVAILABLE + 2);
        let (file, device) = disk(read_only, false);
        serve(&ground, device, 1, 0);

        let inside = sector.checked_mul(512).and_then(|from| from.checked_add(total.into()));
        let fits = inside.is_some_and(|end| end <= DISK);
        let done = fits && !(write && read_only);
        let status: u8 = ground.memory.read_obj(GuestAddress(status_at)).unwrap();
        prop_assert_eq!(status, u8::from(!done));
        let used: u16 = ground.memory.read_obj(GuestAddress(RINGS + USED + 2)).unwrap();
        prop_assert_eq!(used, 1);
        let mut wanted = vec![DISK_BYTE; DISK as usize];
        if done && write {
            let from = sector as usize * 512;
            wanted[from..from + length].copy_from_slice(&sent);
        }
        prop_assert!(contents(&file) == wanted, "the disk has something else");
        let mut seen = vec![0; length];
        ground.memory.read_slice(&mut seen, GuestAddress(DATA)).unwrap();
        let got = if done && !write { vec![DISK_BYTE; length] } else { sent };
        prop_assert!(seen == got, "the guest has something else");
        prop_assert!(ground.holds());
    }
}
