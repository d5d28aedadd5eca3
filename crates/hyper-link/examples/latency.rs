//! Measures a link over a socket pair: round trip of a call, and bulk throughput of a stream.
//!
//! `cargo run --release -p hyper-link --example latency`

use std::time::{Duration, Instant};

use hyper_link::{
    accept, connect,
    message::{AgentHello, Reply, Request},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

const CALLS: u32 = 20_000;
const BYTES: usize = 1 << 30;
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let agent = std::thread::spawn(move || -> std::io::Result<()> {
        runtime()?.block_on(async { agent(UnixStream::from_std(theirs)?).await })
    });
    runtime()?.block_on(async { supervisor(UnixStream::from_std(ours)?).await })?;
    agent.join().map_err(|_panic| "agent thread panicked")??;
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn supervisor(io: UnixStream) -> Result<(), Box<dyn std::error::Error>> {
    let (link, _events) = connect(io, DEADLINE).await?;
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let start = Instant::now();
        link.call(Request::Ping, DEADLINE).await?;
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "call: min {:?}, median {:?}, p99 {:?}",
        times[0],
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );

    let (id, mut reader, _writer) = link.open();
    link.call(Request::StartContainer { container: id.to_string() }, DEADLINE).await?;
    let start = Instant::now();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer).await? {
            0 => break,
            len => total += len,
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("stream: {total} bytes, {:.0} MB/s", total as f64 / seconds / 1e6);
    Ok(())
}

async fn agent(io: UnixStream) -> std::io::Result<()> {
    let hello = AgentHello {
        min_version: 1,
        max_version: 1,
        agent: "latency".to_owned(),
        kernel: "none".to_owned(),
        capabilities: Vec::new(),
        ready_us: 0,
    };
    let (link, mut requests) = accept(io, hello).await?;
    while let Some((request, replier)) = requests.recv().await {
        replier.send(Reply::Done);
        if let Request::StartContainer { container } = request {
            let id = container.parse().map_err(std::io::Error::other)?;
            let (_reader, mut writer) = link.open(id).map_err(std::io::Error::other)?;
            let block = vec![7; 64 << 10];
            for _ in 0..BYTES / block.len() {
                writer.write_all(&block).await?;
            }
            writer.shutdown().await?;
        }
    }
    Ok(())
}
