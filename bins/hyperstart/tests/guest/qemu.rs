//! The agent in a guest under QEMU, on a virtio console port.

use crate::machine::{Guest, Machine, process, shell};
use anyhow::Result;
use hyper_link::message::{PodConfig, Request};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn containers_live_on_a_virtio_port_too() -> Result<()> {
    let Some(mut guest) = Guest::start(Machine::Qemu).await? else { return Ok(()) };
    guest.call(Request::ConfigurePod(PodConfig::default())).await?;
    let outcome = guest.run(shell("echo out; echo err >&2; exit 17")).await?;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (17, "out\n"), "{}", guest.console());
    assert_eq!(outcome.stderr, "err\n");

    let io = guest.create("c", shell("sleep 1000"), Vec::new(), true).await?;
    guest.start_container("c").await?;
    let mut run = guest.exec("c", "cat", process(&["cat"])).await?;
    let block: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
    run.stdin.write_all(&block).await?;
    let outcome = guest.finish("c", Some("cat"), run).await?;
    assert_eq!((outcome.code, outcome.stdout.chars().count()), (0, block.len()));
    let mut terminal = process(&["sh", "-c", "tty; stty size"]);
    terminal["terminal"] = json!(true);
    terminal["consoleSize"] = json!({"height": 5, "width": 6});
    let run = guest.exec("c", "tty", terminal).await?;
    assert_eq!(guest.finish("c", Some("tty"), run).await?.stdout, "/dev/pts/0\r\n5 6\r\n");
    drop(io);
    guest.shut_down().await?;
    Ok(())
}

#[tokio::test]
async fn without_containers_the_agent_waits_for_the_next_supervisor() -> Result<()> {
    let Some(guest) = Guest::start(Machine::Qemu).await? else { return Ok(()) };
    guest.call(Request::Ping).await?;
    let mut guest = guest.call_again().await?.call_again().await?;
    assert_eq!(guest.run(shell("echo again")).await?.stdout, "again\n");
    let _io = guest.create("c", shell("sleep 1000"), Vec::new(), true).await?;
    guest.start_container("c").await?;
    guest.hang_up().await
}
