//! Checks of guests that are given more memory while they run.

use std::time::{Duration, Instant};

use super::session::{Session, Shape, chain};
use super::{Fixture, Verdict, hold};
use crate::{Hypervisor, VmError};

const MIB: u64 = 1 << 20;
/// Beyond what the guest booted with, and the part of it that its program takes.
const MORE: u64 = 200 * MIB;
const TAKEN: u64 = 150 * MIB;

/// A guest grows, uses what it was given, gives it back, and grows again; what it has in memory
/// stays. What it booted with it keeps.
pub async fn grows(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let mut session = Session::boot(hypervisor, fixture, Shape::default()).await?;
    let booted = fixture.memory_bytes;
    if !hypervisor.capabilities().memory_growth {
        let refused = session.vm.set_memory(booted + MORE).await;
        let right = matches!(&refused,
            Err(VmError::Unsupported { hypervisor: name, .. }) if *name == hypervisor.name());
        hold!(right, "set_memory: {refused:?}");
        return session.power_off().await;
    }
    let small = session.vm.set_memory(booted - MIB).await;
    hold!(small.is_err(), "it has less than it booted with: {small:?}");
    let huge = session.vm.set_memory(u64::MAX - MIB).await;
    hold!(huge.is_err(), "it has more than any host: {huge:?}");
    let before = total(&mut session).await?;
    session.ask(&format!("take 1 {}", 8 * MIB)).await?;
    for round in 0..2 {
        set(&mut session, booted + MORE).await?;
        grown(&mut session, before + MORE * 9 / 10).await?;
        session.ask(&format!("take 2 {TAKEN}")).await?;
        session.ask("look 1").await.map_err(|why| format!("round {round}: {why}"))?;
        session.ask("look 2").await.map_err(|why| format!("round {round}: {why}"))?;
        let used = resident(&mut session).await?;
        session.ask("drop 2").await?;
        set(&mut session, booted).await?;
        let shrunk = total(&mut session).await?;
        hold!(shrunk <= before + 4 * MIB, "{before} bytes before, {shrunk} after");
        let left = resident(&mut session).await?;
        hold!(left + TAKEN * 8 / 10 <= used, "the host has {left} of {used} bytes in use still");
        session.ask("look 1").await.map_err(|why| format!("after round {round}: {why}"))?;
    }
    // The guest stays as it is where not all of it can be given back.
    set(&mut session, booted + MORE).await?;
    grown(&mut session, before + MORE * 9 / 10).await?;
    session.ask(&format!("take 2 {TAKEN}")).await?;
    let shrunk = session.vm.set_memory(booted).await;
    let told = matches!(&shrunk, Err(VmError::Memory { wanted, got, .. })
        if *wanted == booted && *got > booted);
    hold!(told, "memory that is in use was taken back: {shrunk:?}");
    session.ask("look 1").await?;
    session.ask("look 2").await?;
    session.ask("drop 2").await?;
    set(&mut session, booted).await?;
    session.ask("look 1").await?;
    session.power_off().await
}

async fn set(session: &mut Session, bytes: u64) -> Verdict {
    let has = session.vm.set_memory(bytes).await.map_err(|error| session.blame(&chain(&error)))?;
    hold!((bytes..bytes + 4 * MIB).contains(&has), "{has} bytes instead of {bytes}");
    Ok(())
}

/// Waits until the guest's kernel has put what it took to use.
async fn grown(session: &mut Session, wanted: u64) -> Verdict {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let has = total(session).await?;
        if has >= wanted {
            return Ok(());
        }
        hold!(Instant::now() < until, "the guest's kernel has {has} bytes, not {wanted}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn resident(session: &mut Session) -> Result<u64, String> {
    let usage = session.vm.usage().await.map_err(|error| format!("usage: {error}"))?;
    Ok(usage.resident_bytes)
}

/// What the guest's kernel has, in bytes.
async fn total(session: &mut Session) -> Result<u64, String> {
    let text = session.fetch("cat /proc/meminfo").await?;
    let text = String::from_utf8_lossy(&text);
    let kib = text.strip_prefix("MemTotal:").and_then(|rest| rest.trim_start().split(' ').next());
    let kib: Option<u64> = kib.and_then(|kib| kib.parse().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| "no MemTotal".to_owned())
}
