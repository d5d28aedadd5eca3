//! Checks of guests that are saved and continued.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::session::{Session, Shape, chain, config, disk};
use super::{Fixture, Verdict, hold};
use crate::{Disk, Hypervisor, VmError};

const BEATS: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest is saved in the middle of its work. It goes on itself, and so do two others, each on its
/// own, with their disks; what cannot be continued is refused.
pub async fn twice(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    // Some cannot save guests whose disks are stitched; without such disks they can.
    for (extents, may_refuse) in [(&[8192, 4096][..], true), (&[12288], false)] {
        if saved_with(hypervisor, fixture, extents, may_refuse).await? {
            break;
        }
    }
    Ok(())
}

/// Whether it could be saved, or need not be.
async fn saved_with(
    hypervisor: &dyn Hypervisor,
    fixture: &Fixture,
    extents: &[usize],
    may_refuse: bool,
) -> Result<bool, String> {
    let mut disks = vec![disk(fixture, &format!("kept{}", extents.len()), 3, extents)?];
    if hypervisor.capabilities().disk_map {
        let mapped = disk(fixture, &format!("mapped{}", extents.len()), 5, extents)?;
        disks.push(Disk { mapped: true, ..mapped });
    }
    let shape = || Shape { disks: disks.clone(), ..Shape::default() };
    let mut session = Session::boot(hypervisor, fixture, shape()).await?;
    let directory = fixture.work.join(format!("saved-guest{}", extents.len()));
    std::fs::create_dir(&directory).map_err(|error| error.to_string())?;
    if !hypervisor.capabilities().save {
        session.vm.pause().await.map_err(|error| format!("pause: {error}"))?;
        let saved = session.vm.save(&directory).await;
        let refused = matches!(&saved,
            Err(VmError::Unsupported { hypervisor: name, .. }) if *name == hypervisor.name());
        hold!(refused, "save: {saved:?}");
        session.vm.kill().await;
        return Ok(true);
    }
    session.send(&format!("beat {BEATS} 20"), b"").await?;
    for number in 0..5 {
        let line = session.line_within(PATIENCE).await?;
        hold!(line == Some(format!("beat {number}")), "came {line:?}, not beat {number}");
    }
    let early = session.vm.save(&directory).await;
    hold!(early.is_err(), "a running guest was saved");
    std::fs::remove_dir_all(&directory).map_err(|error| error.to_string())?;
    std::fs::create_dir(&directory).map_err(|error| error.to_string())?;
    session.vm.pause().await.map_err(|error| format!("pause: {error}"))?;
    let saved = session.vm.save(&directory).await;
    if may_refuse && matches!(saved, Err(VmError::Unsupported { .. })) {
        session.vm.kill().await;
        return Ok(false);
    }
    saved.map_err(|error| format!("save: {}", chain(&error)))?;

    session.vm.resume().await.map_err(|error| format!("resume: {}", chain(&error)))?;
    beats(&mut session, Some(5)).await.map_err(|why| format!("the saved guest: {why}"))?;
    session.power_off().await?;

    let mut clones = Vec::new();
    for _ in 0..2 {
        clones.push(Session::go_on(hypervisor, fixture, &directory, shape()).await?);
    }
    for (at, clone) in clones.iter_mut().enumerate() {
        beats(clone, None).await.map_err(|why| format!("clone {at}: {why}"))?;
        for (number, disk) in disks.iter().enumerate() {
            let node = hypervisor.guest_devices(&disks, number).concat();
            let seen = clone.fetch(&format!("read {node} 4096 8192")).await?;
            let wanted = disk.extents.iter().flat_map(|extent| std::fs::read(&extent.path));
            let wanted: Vec<u8> = wanted.flatten().collect();
            hold!(seen == wanted[4096..], "clone {at} reads another disk at {node}");
        }
    }
    for clone in clones {
        clone.power_off().await?;
    }
    other_shapes(hypervisor, fixture, &directory, shape()).await?;
    Ok(true)
}

/// Guests that the saved one cannot be.
async fn other_shapes(
    hypervisor: &dyn Hypervisor,
    fixture: &Fixture,
    directory: &Path,
    shape: Shape,
) -> Verdict {
    let mut larger = config(fixture, shape.clone())?;
    larger.memory_bytes *= 2;
    let more = Shape { vcpus: Some(2), ..shape.clone() };
    let fewer = Shape { disks: Vec::new(), ..shape.clone() };
    let others = [
        ("more memory", larger),
        ("more CPUs", config(fixture, more)?),
        ("fewer disks", config(fixture, fewer)?),
    ];
    for (what, config) in others {
        let refused = timeout(PATIENCE, hypervisor.restore(directory, config)).await;
        hold!(matches!(refused, Ok(Err(_))), "a guest with {what} went on");
    }
    // A byte of its state is not what it was.
    for entry in std::fs::read_dir(directory).map_err(|error| error.to_string())?.flatten() {
        let bytes = entry.metadata().map_or(u64::MAX, |meta| meta.len());
        if bytes < 1 << 20 {
            let mut state = std::fs::read(entry.path()).map_err(|error| error.to_string())?;
            let at = state.len() / 2;
            state[at] ^= 1;
            std::fs::write(entry.path(), state).map_err(|error| error.to_string())?;
        }
    }
    let refused = timeout(PATIENCE, hypervisor.restore(directory, config(fixture, shape)?)).await;
    hold!(matches!(refused, Ok(Err(_))), "a damaged guest went on");
    Ok(())
}

/// The rest of the beats: from `first` on, or from any but the first few.
async fn beats(session: &mut Session, first: Option<u32>) -> Verdict {
    let mut next = first;
    loop {
        let Some(line) = session.line_within(PATIENCE).await? else {
            return Err(session.blame(&format!("silence instead of beat {next:?}")));
        };
        if line == "ok" {
            hold!(next == Some(BEATS), "the beats ended before {next:?}");
            return Ok(());
        }
        let number = line.strip_prefix("beat ").and_then(|number| number.parse().ok());
        hold!(number.is_some_and(|number| next.unwrap_or(number) == number), "came {line:?}");
        hold!(number >= Some(5), "came {line:?}, which the saved guest had said");
        next = number.map(|number: u32| number + 1);
    }
}
