//! What a guest costs: time to ready, memory, the life of a container, bytes per second.
//!
//! `cargo test --release -p hyperstart --test guest measure::uml -- --ignored --nocapture`, and
//! `HYPER_ROUNDS=20` for more rounds.

use std::time::{Duration, Instant};

use crate::machine::{Guest, Machine, process, spec};
use anyhow::{Context as _, Result, bail};
use hyper_link::message::{PodConfig, Reply, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const BULK: usize = 200 << 20;

#[tokio::test]
#[ignore = "takes a minute"]
async fn uml() -> Result<()> {
    measure(Machine::Uml).await
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn qemu() -> Result<()> {
    measure(Machine::Qemu).await
}

async fn measure(machine: Machine) -> Result<()> {
    let rounds = std::env::var("HYPER_ROUNDS").map_or(Ok(8), |text| text.parse())?;
    let mut times: [Vec<Duration>; 8] = Default::default();
    for round in 0..rounds {
        let Some(mut guest) = Guest::start(machine).await? else { bail!("no guest to measure") };
        if round == 0 {
            bulk(&mut guest).await?;
            continue;
        }
        times[0].push(guest.ready);
        times[1].push(Duration::from_micros(guest.link.hello().ready_us));
        let start = Instant::now();
        guest.call(Request::ConfigurePod(PodConfig::default())).await?;
        times[2].push(start.elapsed());
        let start = Instant::now();
        let io = guest.create("c", spec(&["echo", "hello"]), Vec::new(), true).await?;
        times[3].push(start.elapsed());
        let step = Instant::now();
        guest.start_container("c").await?;
        times[4].push(step.elapsed());
        let outcome = guest.finish("c", None, io).await?;
        anyhow::ensure!(outcome.stdout == "hello\n", "{outcome:?}");
        times[5].push(start.elapsed());
        let step = Instant::now();
        guest.call(Request::DeleteContainer { container: "c".to_owned() }).await?;
        times[6].push(step.elapsed());
        times[7].push(guest.shut_down().await?);
    }
    let names = [
        "start to hello",
        "guest clock at hello",
        "first call",
        "create",
        "start",
        "create to exit event",
        "delete",
        "shutdown",
    ];
    for (name, mut times) in names.into_iter().zip(times) {
        times.sort();
        if let (Some(min), Some(median)) = (times.first(), times.get(times.len() / 2)) {
            println!("{name:22} min {min:>10.2?}  median {median:>10.2?}");
        }
    }
    Ok(())
}

async fn bulk(guest: &mut Guest) -> Result<()> {
    let _io = guest.create("b", spec(&["sleep", "1000"]), Vec::new(), true).await?;
    let Reply::Stats(stats) = guest.call(Request::Stats { container: "b".to_owned() }).await?
    else {
        bail!("no stats");
    };
    let used = |stats: &hyper_link::message::Stats| {
        (stats.guest_memory_total_bytes - stats.guest_memory_free_bytes) >> 10
    };
    println!("memory: {} KiB used of {} KiB", used(&stats), stats.guest_memory_total_bytes >> 10);
    guest.start_container("b").await?;
    let meminfo = guest.exec("b", "m", process(&["cat", "/proc/meminfo"])).await?;
    let outcome = guest.finish("b", Some("m"), meminfo).await?;
    for line in outcome.stdout.lines() {
        let name = line.split(':').next().unwrap_or_default();
        if [
            "MemTotal",
            "MemFree",
            "MemAvailable",
            "Cached",
            "Shmem",
            "AnonPages",
            "Mapped",
            "Slab",
            "KernelStack",
            "PageTables",
            "Percpu",
        ]
        .contains(&name)
        {
            println!("  {line}");
        }
    }
    let mut calls: Vec<Duration> = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        guest.call(Request::Ping).await?;
        calls.push(start.elapsed());
    }
    calls.sort();
    println!("ping: min {:?} median {:?}", calls[0], calls[100]);
    let mut forks: Vec<Duration> = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        let resources = serde_json::json!({});
        guest.call(Request::Update { container: "b".to_owned(), resources }).await?;
        forks.push(start.elapsed());
    }
    forks.sort();
    println!("fork aside: min {:?} median {:?}", forks[0], forks[50]);
    let mut execs: Vec<Duration> = Vec::new();
    for number in 0..20 {
        let start = Instant::now();
        let id = format!("e{number}");
        let io = guest.exec("b", &id, process(&["true"])).await?;
        guest.finish("b", Some(&id), io).await?;
        execs.push(start.elapsed());
    }
    execs.sort();
    println!("exec true: min {:?} median {:?}", execs[0], execs[10]);

    let start = Instant::now();
    let zeroes = format!("bs=64k count={}", BULK >> 16);
    let args: Vec<&str> = ["dd", "if=/dev/zero"].into_iter().chain(zeroes.split(' ')).collect();
    let mut io = guest.exec("b", "out", process(&args)).await?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match io.stdout.read(&mut buffer).await? {
            0 => break,
            len => total += len,
        }
    }
    report("guest to host", total, start);

    let start = Instant::now();
    let mut io = guest.exec("b", "in", process(&["sh", "-c", "cat >/dev/null"])).await?;
    for _ in 0..BULK / buffer.len() {
        io.stdin.write_all(&buffer).await?;
    }
    io.stdin.shutdown().await?;
    guest.exited("b", Some("in")).await.context("cat")?;
    report("host to guest", BULK, start);

    let start = Instant::now();
    let io = guest.exec("b", "cat", process(&["cat"])).await?;
    let (mut stdin, mut stdout) = (io.stdin, io.stdout);
    let sending = tokio::spawn(async move {
        let block = vec![7; 256 << 10];
        for _ in 0..BULK / block.len() {
            stdin.write_all(&block).await?;
        }
        stdin.shutdown().await
    });
    let mut total = 0;
    loop {
        match stdout.read(&mut buffer).await? {
            0 => break,
            len => total += len,
        }
    }
    sending.await??;
    report("through cat", total, start);
    Ok(())
}

fn report(what: &str, bytes: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{what}: {} MiB in {seconds:.2} s, {:.0} MB/s",
        bytes >> 20,
        bytes as f64 / seconds / 1e6
    );
}
