//! Drivers with many requests, and such as never pause.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::driver::{CLEAR, Driver, FLUSH, READ, ROOM, SLOTS, WRITE, forget, number, numbered};
use super::{Block, File, Host};
use crate::config::HANDS;
use crate::virtio::Transport;
use crate::wire::Rates;

const RINGS: u64 = 0x1_0000;
const AVAILABLE: u64 = RINGS + 0x4000;
const USED: u64 = RINGS + 0x8000;
const HEADER: u64 = 0x3_0000;
const STATUS: u64 = 0x3_0100;
const DATA: u64 = 0x4_0000;
const BYTES: u32 = 512 << 10;
const ENTRIES: u16 = 32;

/// With threads, and with rings where this host has them.
fn hosts() -> [Host; 2] {
    if let Err(error) = super::Ring::new(8) {
        println!("threads alone: this host has no io_uring: {error}");
    }
    [false, true].map(|rings| Host { rings, ..Host::apart() })
}

#[test]
fn a_disk_is_taken_from_a_driver_that_never_pauses() {
    hosts().into_iter().for_each(taken_from_a_driver_that_never_pauses);
}

fn taken_from_a_driver_that_never_pauses(host: Host) {
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
    let disk = Block::spare("disk".to_owned(), false, host);
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

/// Files whose reads go to other threads: those of memory, of which nobody can tell whether a read
/// waits, and one that is not in the page cache (where that is a disk).
fn files(sectors: u64) -> [std::fs::File; 2] {
    let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let (cold, mut memory) = (numbered(sectors), std::fs::File::from(memory));
    let mut from = &cold;
    std::io::Seek::rewind(&mut from).unwrap();
    std::io::copy(&mut from, &mut memory).unwrap();
    forget(&cold);
    [memory, cold]
}

/// Each of them with each host.
fn each(sectors: u64) -> Vec<(std::fs::File, Host)> {
    let pairs = |file: std::fs::File| hosts().map(|host| (file.try_clone().unwrap(), host));
    files(sectors).into_iter().flat_map(pairs).collect()
}

fn disk(file: &std::fs::File, sectors: u64) -> File {
    File::new(vec![(file.try_clone().unwrap(), sectors * 512)], false, false).unwrap()
}

#[test]
fn many_requests_are_each_done_once_and_right() {
    let sectors = 8192_u64;
    for (file, host) in each(sectors) {
        let mut driver = Driver::on(Block::new("disk".to_owned(), disk(&file, sectors), host));
        // Reads of the first half; the second is written, cleared and flushed.
        let (mut wanted, mut state) = (vec![None; SLOTS.into()], 1_u64);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (state >> 33) % below
        };
        let mut offer = |driver: &mut Driver, slot: u16| {
            let kind = [READ, READ, READ, READ, READ, WRITE, CLEAR, FLUSH][random(8) as usize];
            let length = (1 + random(u64::from(ROOM) / 512)) as u32;
            // Each slot has a part of its own to write to.
            let own = sectors / 2 + u64::from(slot) * 64;
            match kind {
                READ => {
                    let sector = random(sectors / 2 - u64::from(length));
                    driver.offer(slot, kind, sector, length * 512);
                    return Some((sector, length));
                }
                WRITE => {
                    let value = random(u64::MAX >> 34);
                    driver.memory.write_obj(value, Driver::data(slot)).unwrap();
                    driver.offer(slot, kind, own, 512);
                }
                CLEAR => {
                    let range = Driver::data(slot);
                    driver.memory.write_obj(own + 32, range).unwrap();
                    driver.memory.write_obj(8_u64, GuestAddress(range.0 + 8)).unwrap();
                    driver.offer(slot, kind, 0, 16);
                }
                _ => driver.offer(slot, kind, 0, 0),
            }
            None
        };
        for slot in 0..SLOTS {
            wanted[usize::from(slot)] = Some(offer(&mut driver, slot));
        }
        driver.kick();
        let mut done = 0;
        while done < 4000 {
            for (slot, status) in driver.wait() {
                let asked = wanted[usize::from(slot)].take().expect("it was done twice");
                assert_eq!(status, 0);
                if let Some((sector, length)) = asked {
                    for at in 0..u64::from(length) {
                        let place = GuestAddress(Driver::data(slot).0 + at * 512);
                        let seen: u64 = driver.memory.read_obj(place).unwrap();
                        assert_eq!(seen, sector + at, "slot {slot} has another sector");
                    }
                }
                done += 1;
                wanted[usize::from(slot)] = Some(offer(&mut driver, slot));
            }
            driver.kick();
            if done % 1000 < 40 {
                forget(&file);
            }
        }
        driver.transport.halt();
        assert_eq!(number(&file, sectors / 2 - 1), sectors / 2 - 1);
    }
}

#[test]
fn what_is_in_flight_is_done_when_a_disk_is_halted() {
    let sectors = 8192_u64;
    for (file, host) in each(sectors) {
        let mut driver = Driver::on(Block::new("disk".to_owned(), disk(&file, sectors), host));
        for round in 0..200_u64 {
            for slot in 0..SLOTS {
                let sector = (round * 4099 + u64::from(slot) * 809) % (sectors - 8);
                driver.offer(slot, if slot == 7 { FLUSH } else { READ }, sector, 4096);
            }
            driver.kick();
            let mut done = Vec::new();
            if round % 2 == 0 {
                done = driver.wait();
            }
            driver.transport.halt();
            let state = serde_json::to_value(driver.transport.save()).unwrap();
            let queue = &state["queues"][0];
            assert_eq!(queue["next_avail"], queue["next_used"], "a save would lose requests");
            done.extend(driver.done());
            driver.transport.go_on();
            while done.len() < SLOTS.into() {
                done.extend(driver.wait());
            }
            done.sort_unstable();
            assert!(done.iter().copied().eq((0..SLOTS).map(|slot| (slot, 0))), "{done:?}");
            if round % 50 == 0 {
                forget(&file);
            }
        }
        driver.transport.halt();
    }
}

#[test]
fn threads_and_files_come_with_the_need_and_go_with_the_disk() {
    let (sectors, name) = (64, "needed");
    let [file, _] = files(sectors);
    let held = || {
        let own = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let inode = file.metadata().unwrap().ino();
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        let paths = all.filter_map(|entry| Some(entry.ok()?.path()));
        let same = paths.filter(|path| std::fs::read_link(path).is_ok_and(|to| to == own));
        same.filter(|path| std::fs::metadata(path).is_ok_and(|at| at.ino() == inode)).count()
    };
    let mut driver = Driver::on(Block::spare(name.to_owned(), false, Host::apart()));
    // Threads get their names, and leave the list, a moment after they were made and joined.
    let hands = |wanted: usize| {
        let late = Instant::now() + Duration::from_secs(10);
        while threads("needed+") != wanted && Instant::now() < late {
            std::thread::sleep(Duration::from_micros(200));
        }
        threads("needed+")
    };
    let burst = |driver: &mut Driver, requests: u16| {
        (0..requests).for_each(|slot| driver.offer(slot, READ, u64::from(slot), 512));
        driver.kick();
        let mut done = 0;
        while done < requests {
            done += driver.wait().iter().filter(|(_, status)| *status == 0).count() as u16;
        }
    };
    for _ in 0..20 {
        driver.transport.fill(disk(&file, sectors)).unwrap();
        assert_eq!((held(), hands(0)), (2, 0));
        burst(&mut driver, 1);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(hands(0), 0, "one request alone needs no other thread");
        burst(&mut driver, 8);
        assert_eq!(hands(HANDS), HANDS);
        driver.transport.halt();
        assert_eq!(hands(0), 0);
        driver.transport.go_on();
        burst(&mut driver, 8);
        assert_eq!(hands(HANDS), HANDS);
        driver.set_up();
        assert_eq!((held(), hands(0)), (2, 0), "a reset ends them");
        burst(&mut driver, 8);
        driver.transport.empty().unwrap();
        assert_eq!((held(), hands(0)), (1, 0), "a disk that was taken away is still open");
    }
}

/// What a ring is not made for the kernel refuses it.
#[test]
fn a_ring_does_nothing_else() {
    let Ok(ring) = super::Ring::new(8) else {
        println!("SKIPPED: this host has no io_uring");
        return;
    };
    assert_eq!(ring.tries_a_socket(), Some(-libc::EACCES));
}

#[test]
fn a_disk_is_held_to_its_rates_and_ends_while_it_waits() {
    hosts().iter().for_each(held_to_its_rates);
}

fn held_to_its_rates(host: &Host) {
    let sectors = 8192_u64;
    let [file, _] = files(sectors);
    let device = file.metadata().unwrap().dev();
    let bound = |write_bytes| {
        host.limits.set(vec![device], Rates { write_bytes, ..Rates::default() });
    };
    bound(Some(4 << 20));
    let mut driver = Driver::on(Block::new("slow".to_owned(), disk(&file, sectors), host.clone()));
    // 4 MiB and a quarter: a second and what a burst does not take.
    let start = Instant::now();
    let (mut offered, mut done) = (0_u16, 0);
    while done < 68 {
        while offered < 68 && offered - done < 8 {
            driver.offer(offered % 8, WRITE, u64::from(offered) * 100, 64 << 10);
            offered += 1;
        }
        driver.kick();
        for (_, status) in driver.wait() {
            assert_eq!(status, 0);
            done += 1;
        }
    }
    let took = start.elapsed();
    assert!(took > Duration::from_millis(850), "it was faster than its rate: {took:?}");
    // A disk that has to wait for an hour is halted at once, with nothing taken that is not done;
    // and a reset does not pay what is owed.
    bound(Some(16));
    for slot in 0..8 {
        driver.offer(slot, WRITE, 0, 4096);
    }
    driver.kick();
    let wrote = driver.wait().len();
    std::thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    driver.transport.halt();
    driver.transport.go_on();
    driver.transport.halt();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!((wrote, driver.done().len()), (1, 0));
    driver.set_up();
    driver.offer(0, READ, 0, 512);
    driver.kick();
    std::thread::sleep(Duration::from_millis(50));
    assert!(driver.done().is_empty(), "a reset pays");
    bound(None);
    assert_eq!(driver.wait(), [(0, 0)], "a bound that is gone still holds");
    driver.transport.halt();
}

/// Threads of this process by name.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    names.filter(|comm| comm.as_ref().is_ok_and(|comm| comm.trim_end() == name)).count()
}
