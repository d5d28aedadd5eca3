//! What threads beside the device's own bring, and an io_uring in their place, without a guest:
//! `cargo test --release -p hyper-vmm -- --ignored --nocapture disks_with_and_without`
//!
//! Each line is the same requests without, with threads and with a ring, by turns; medians.

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::driver::{Driver, FLUSH, READ, WRITE, forget, numbered};
use super::{Block, File, Host};
use crate::event::Maker;

const SECTORS: u64 = 1 << 20;
const ROUNDS: usize = 7;

struct Case {
    name: &'static str,
    kind: u32,
    bytes: u32,
    depth: u16,
    requests: u64,
    cold: bool,
    sequential: bool,
}

#[test]
#[ignore = "measures; takes minutes"]
fn disks_with_and_without() {
    let file = numbered(SECTORS);
    let case = |name, bytes, depth, requests| Case {
        name,
        kind: READ,
        bytes,
        depth,
        requests,
        cold: false,
        sequential: false,
    };
    let cold = |case: Case| Case { cold: true, ..case };
    let sequential = |case: Case| Case { cold: true, sequential: true, ..case };
    let write = |case: Case| Case { kind: WRITE, ..case };
    let cases = [
        case("read 4K, cached, depth 1", 4 << 10, 1, 20_000),
        case("read 4K, cached, depth 32", 4 << 10, 32, 40_000),
        case("read 64K, cached, depth 32", 64 << 10, 32, 10_000),
        cold(case("read 4K, cold, depth 1", 4 << 10, 1, 1500)),
        cold(case("read 4K, cold, depth 2", 4 << 10, 2, 2000)),
        cold(case("read 4K, cold, depth 32", 4 << 10, 32, 5000)),
        cold(case("read 64K, cold, depth 32", 64 << 10, 32, 1500)),
        sequential(case("read 4K in order, cold, depth 32", 4 << 10, 32, 40_000)),
        sequential(case("read 128K in order, cold, depth 1", 128 << 10, 1, 2000)),
        sequential(case("read 128K in order, cold, depth 8", 128 << 10, 8, 2000)),
        write(case("write 4K, depth 1", 4 << 10, 1, 5000)),
        write(case("write 4K, depth 32", 4 << 10, 32, 10_000)),
    ];
    println!("{:<36} {:>10} {:>10} {:>10}", "µs a request", "without", "threads", "ring");
    for case in &cases {
        let times = medians(|others| {
            forget(&file);
            if !case.cold {
                warm(&file);
            }
            run(case, &file, others)
        });
        print(case.name, times);
    }
    let times = medians(|others| {
        warm(&file);
        beside_flushes(&file, others)
    });
    print("read 4K, cached, beside flushes", times);
}

/// Who waits beside the device's thread.
#[derive(Clone, Copy)]
enum Others {
    Nobody,
    Threads,
    Ring,
}

fn print(name: &str, [without, threads, ring]: [f64; 3]) {
    let ratios = [threads / without, ring / without].map(|ratio| format!("{ratio:.2}"));
    let [of_threads, of_ring] = ratios;
    println!("{name:<36} {without:>10.2} {threads:>10.2} {ring:>10.2}   {of_threads} {of_ring}");
}

fn medians(mut run: impl FnMut(Others) -> f64) -> [f64; 3] {
    let mut all = [vec![], vec![], vec![]];
    for round in 0..ROUNDS {
        for at in 0..3 {
            let at = (at + round) % 3;
            all[at].push(run([Others::Nobody, Others::Threads, Others::Ring][at]));
        }
    }
    all.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}

fn warm(file: &fs::File) {
    let mut file = file;
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::copy(&mut file, &mut std::io::sink()).unwrap();
}

fn start(file: &fs::File, others: Others) -> Driver {
    let mut host = Host::apart();
    match others {
        Others::Nobody => host.maker = Maker::new(mpsc::channel().0),
        Others::Threads => {}
        Others::Ring => host.rings = true,
    }
    let disk = File::new(vec![(file.try_clone().unwrap(), SECTORS * 512)], false, false).unwrap();
    Driver::on(Block::new("disk".to_owned(), disk, host))
}

fn run(case: &Case, file: &fs::File, others: Others) -> f64 {
    let mut driver = start(file, others);
    let places = SECTORS * 512 / u64::from(case.bytes);
    // Every place once (an odd stride, a power of two of places), far from all before for long (the
    // golden ratio): nothing that would be read ahead.
    let stride = if case.sequential { 1 } else { (places * 618 / 1000) | 1 };
    let sector = |at: u64| (at * stride) % places * u64::from(case.bytes) / 512;
    let start = Instant::now();
    for slot in 0..case.depth {
        driver.offer(slot, case.kind, sector(slot.into()), case.bytes);
    }
    driver.kick();
    let (mut offered, mut done) = (u64::from(case.depth), 0);
    while done < case.requests {
        for (slot, status) in driver.wait() {
            assert_eq!(status, 0);
            done += 1;
            if offered < case.requests {
                driver.offer(slot, case.kind, sector(offered), case.bytes);
                offered += 1;
            }
        }
        driver.kick();
    }
    let micros = start.elapsed().as_secs_f64() * 1e6;
    driver.transport.halt();
    micros / case.requests as f64
}

/// One slot reads, one by one; another writes and flushes all the time.
fn beside_flushes(file: &fs::File, others: Others) -> f64 {
    let mut driver = start(file, others);
    let (mut reads, mut flushes) = (0_u64, 0_u64);
    let start = Instant::now();
    driver.offer(0, READ, 0, 4096);
    driver.offer(1, WRITE, 0, 4096);
    driver.kick();
    let mut writes = true;
    while start.elapsed() < Duration::from_secs(1) {
        for (slot, status) in driver.wait() {
            assert_eq!(status, 0);
            if slot == 0 {
                reads += 1;
                driver.offer(0, READ, reads * 8 % SECTORS, 4096);
            } else if writes {
                driver.offer(1, FLUSH, 0, 0);
                writes = false;
            } else {
                flushes += 1;
                driver.offer(1, WRITE, flushes * 808 % SECTORS / 8 * 8, 4096);
                writes = true;
            }
        }
        driver.kick();
    }
    let micros = start.elapsed().as_secs_f64() * 1e6;
    driver.transport.halt();
    micros / reads as f64
}
