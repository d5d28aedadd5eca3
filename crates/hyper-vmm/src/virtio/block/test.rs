//! A driver that goes on offering requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Block, File};
use crate::virtio::Transport;

const RINGS: u64 = 0x1_0000;
const AVAILABLE: u64 = RINGS + 0x4000;
const USED: u64 = RINGS + 0x8000;
const HEADER: u64 = 0x3_0000;
const STATUS: u64 = 0x3_0100;
const DATA: u64 = 0x4_0000;
const BYTES: u32 = 512 << 10;
const ENTRIES: u16 = 32;

#[test]
fn a_disk_is_taken_from_a_driver_that_never_pauses() {
    let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
    let write = |bytes: &[u8], at: u64| memory.write_slice(bytes, GuestAddress(at)).unwrap();
    // One request, a read that takes longer than offering it again, in all entries of the ring.
    for (at, bytes, flags, index) in
        [(HEADER, 16_u32, 1_u16, 0_u16), (DATA, BYTES, 3, 1), (STATUS, 1, 2, 2)]
    {
        let place = RINGS + 16 * u64::from(index);
        write(&at.to_le_bytes(), place);
        write(&bytes.to_le_bytes(), place + 8);
        write(&flags.to_le_bytes(), place + 12);
        write(&(index + 1).to_le_bytes(), place + 14);
    }
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let disk = Block::spare("disk".to_owned(), false);
    let mut transport =
        Transport::new("disk".to_owned(), Box::new(disk), Arc::clone(&memory), line, false)
            .unwrap();
    let file = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES.into()).unwrap();
        File::new(vec![(file, BYTES.into())], false, true).unwrap()
    };
    transport.fill(file()).unwrap();
    for (offset, value) in [
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, ENTRIES.into()),
        (0x80, 0x1_0000),
        (0x90, 0x1_4000),
        (0xa0, 0x1_8000),
        (0x44, 1),
        (0x70, 15_u32),
    ] {
        transport.write(offset, &value.to_le_bytes());
    }
    let kick = transport.kicks()[0].try_clone().unwrap();
    let going = Arc::new(AtomicBool::new(true));
    let (goes, rings) = (Arc::clone(&going), Arc::clone(&memory));
    let driver = std::thread::spawn(move || {
        let (mut before, mut all) = (0_u16, 0_u64);
        while goes.load(Ordering::Relaxed) {
            let done: u16 = rings.read_obj(GuestAddress(USED + 2)).unwrap();
            rings.write_obj(done.wrapping_add(ENTRIES), GuestAddress(AVAILABLE + 2)).unwrap();
            let _ = kick.write(1);
            all += u64::from(done.wrapping_sub(before));
            before = done;
        }
        all
    });
    let (told, taken) = mpsc::channel();
    let rings = Arc::clone(&memory);
    std::thread::spawn(move || {
        let done = || rings.read_obj::<u16>(GuestAddress(USED + 2)).unwrap();
        let mut late = Vec::new();
        for _ in 0..41 {
            let before = done();
            transport.empty().unwrap();
            late.push(done().wrapping_sub(before));
            transport.fill(file()).unwrap();
            // Until the driver is at it: other threads may have the CPUs.
            let at = done();
            while done().wrapping_sub(at) < 3 * ENTRIES {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        told.send(late).unwrap();
    });
    let taken = taken.recv_timeout(Duration::from_secs(10));
    going.store(false, Ordering::Relaxed);
    let done = driver.join().unwrap();
    let mut late = taken.expect("the device's thread does not end");
    late.retain(|requests| *requests > 0);
    late.sort_unstable();
    // Requests from the wish to have the disk on, where there were some. A quarter may have been
    // done before the wish was heard.
    assert!(late.len() > 4 && late[late.len() * 3 / 4] <= 2 * ENTRIES, "{late:?}");
    assert!(done > 20, "the driver had {done} requests done: it was not busy");
}
