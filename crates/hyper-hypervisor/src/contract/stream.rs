//! Checks of the link and of pause.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::bytes::{difference, pattern};
use super::session::{Session, Shape};
use super::{Fixture, Verdict, hold};
use crate::Hypervisor;

const BULK: usize = 8 << 20;

/// Lines, every byte value, then 8 MB in both directions at once.
pub async fn link(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let mut session = Session::boot(hypervisor, fixture, Shape::default()).await?;
    let said = session.ask("echo to be, or not").await?;
    hold!(said == "to be, or not", "echo said {said:?}");
    // A terminal in between would eat or translate some of these.
    let all: Vec<u8> = (0..=255).collect();
    mirror(&mut session, &all).await?;
    mirror(&mut session, &pattern(1, BULK)).await?;
    let said = session.ask("echo still here").await?;
    hold!(said == "still here", "echo after the bulk said {said:?}");
    session.power_off().await
}

async fn mirror(session: &mut Session, sent: &[u8]) -> Verdict {
    session.ask(&format!("mirror {}", sent.len())).await?;
    let mut got = vec![0; sent.len()];
    let (mut reader, mut writer) = tokio::io::split(&mut session.link);
    let both = async {
        let (read, wrote) = tokio::join!(reader.read_exact(&mut got), async {
            writer.write_all(sent).await?;
            writer.flush().await
        });
        read.and(wrote)
    };
    match timeout(Duration::from_secs(60), both).await {
        Ok(Ok(())) => {}
        other => return Err(session.blame(&format!("mirror {}: {other:?}", sent.len()))),
    }
    difference(&got, sent).map_or(Ok(()), |how| Err(format!("mirror: {how}")))
}

/// A guest that speaks every 20 ms is silent while paused, and loses nothing.
pub async fn pausing(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    if !hypervisor.capabilities().pause {
        println!("contract: skipped: cannot pause");
        return Ok(());
    }
    const BEATS: u32 = 60;
    let mut session = Session::boot(hypervisor, fixture, Shape::default()).await?;
    session.send(&format!("beat {BEATS} 20"), b"").await?;
    let patience = Duration::from_secs(20);
    for wanted in 0..5 {
        expect_beat(&mut session, patience, wanted).await?;
    }
    session.vm.pause().await.map_err(|error| format!("pause: {error}"))?;
    // What was on its way may still arrive, but it comes to an end.
    let mut next = 5;
    while let Some(line) = session.line_within(Duration::from_millis(100)).await? {
        hold!(line == format!("beat {next}"), "while pausing came {line:?}, not beat {next}");
        next += 1;
    }
    hold!(next < BEATS, "the guest did all {BEATS} beats: it was not paused");
    let cpu = session.vm.usage().await.map_err(|error| error.to_string())?.cpu;
    if let Some(line) = session.line_within(Duration::from_millis(600)).await? {
        return Err(format!("a paused guest said {line:?}"));
    }
    let burnt = session.vm.usage().await.map_err(|error| error.to_string())?.cpu - cpu;
    hold!(burnt < Duration::from_millis(200), "a paused guest used {burnt:?} of CPU in 0.6 s");
    session.vm.resume().await.map_err(|error| format!("resume: {error}"))?;
    for wanted in next..BEATS {
        expect_beat(&mut session, patience, wanted).await?;
    }
    let end = session.line_within(patience).await?;
    hold!(end.as_deref() == Some("ok"), "after the beats came {end:?}");
    session.power_off().await
}

async fn expect_beat(session: &mut Session, limit: Duration, number: u32) -> Verdict {
    let line = session.line_within(limit).await?;
    hold!(line == Some(format!("beat {number}")), "came {line:?}, not beat {number}");
    Ok(())
}
