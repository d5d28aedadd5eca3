//! Checks of disks that are taken back from a guest that runs.

use std::os::unix::fs::MetadataExt as _;

use super::bytes::pattern;
use super::disk::{MANY, compare, host_read};
use super::session::{Session, Shape, chain, disk};
use super::{Fixture, Verdict, hold};
use crate::{Disk, Hypervisor, VmError};

/// What is taken back cannot be read any more, not even by a guest that does not let go; or it is
/// not taken back from one that does not.
pub async fn gone(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let can = hypervisor.capabilities();
    let mut session = boot(hypervisor, fixture).await?;
    let disks = [disk(fixture, "own", 1100, &[8192])?];
    let own = hypervisor.guest_devices(&disks, 0);
    let refused = session.vm.remove_disk(&own).await;
    hold!(refused.is_err(), "a disk of the launch was removed");
    if !can.disk_hotplug {
        return session.power_off().await;
    }
    let mut upper = disk(fixture, "gone", 1200, &[1 << 20])?;
    upper.read_only = false;
    let nodes = add(&mut session, &upper).await?;
    let node = nodes.concat();
    session.ask(&format!("hold {node}")).await?;
    match (session.vm.remove_disk(&nodes).await, can.disk_revoke) {
        (Ok(()), true) => {}
        (Err(VmError::Busy { .. }), false) => {
            compare(&mut session, &nodes, &upper, false).await?;
            session.ask("release").await?;
            remove(&mut session, &nodes).await?;
        }
        (Ok(()), false) => return Err("a disk that is in use was removed".to_owned()),
        (Err(error), _) => return Err(format!("a disk in use: {}", chain(&error))),
    }
    held_by(session.vm.pid(), &upper)?;
    unreadable(&mut session, &nodes).await?;
    let written = session.ask_with(&format!("write {node} 4096 4096"), &pattern(9, 4096)).await;
    hold!(written.is_err(), "a removed disk took a write");
    hold!(host_read(&upper, 0, 1 << 20)? == pattern(1200, 1 << 20), "a removed disk changed");
    session.ask("release").await?;
    let again = session.vm.remove_disk(&nodes).await;
    hold!(again.is_err(), "a disk was removed twice");
    compare(&mut session, &own, &disks[0], true).await?;
    session.power_off().await
}

/// Image and writable disk of one container after the other, more often than there are places,
/// while another one has its disk.
pub async fn often(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let can = hypervisor.capabilities();
    if !can.disk_hotplug {
        return Ok(());
    }
    let mut session = boot(hypervisor, fixture).await?;
    let mut seen: Option<[Vec<String>; 2]> = None;
    for round in 0..can.max_disks.min(MANY) * 3 {
        let seed = 3000 + 10 * round as u64;
        let length = 4096 * (1 + round % 7);
        let image = disk(fixture, &format!("image{round}"), seed, &[4096, length])?;
        let mut upper = disk(fixture, &format!("upper{round}"), seed + 5, &[length])?;
        (upper.read_only, upper.ephemeral) = (false, round % 2 == 0);
        let nodes = [add(&mut session, &image).await?, add(&mut session, &upper).await?];
        compare(&mut session, &nodes[0], &image, false).await?;
        compare(&mut session, &nodes[1], &upper, false).await?;
        let bytes = pattern(seed + 7, 4096);
        session.ask_with(&format!("write {} 0 4096", nodes[1].concat()), &bytes).await?;
        // In the order of their coming and against it.
        for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            remove(&mut session, &nodes[at])
                .await
                .map_err(|why| format!("round {round}: {why}"))?;
        }
        hold!(host_read(&upper, 0, 4096)? == bytes, "round {round}: a write is lost");
        match &seen {
            Some(seen) => hold!(*seen == nodes, "round {round}: {nodes:?}, before: {seen:?}"),
            None => {
                unreadable(&mut session, &nodes[0][nodes[0].len() - 1..]).await?;
                seen = Some(nodes);
            }
        }
        for extent in image.extents.iter().chain(&upper.extents) {
            std::fs::remove_file(&extent.path).map_err(|error| error.to_string())?;
        }
    }
    session.power_off().await
}

async fn boot(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Result<Session, String> {
    let own = disk(fixture, "own", 1100, &[8192])?;
    let shape = Shape { disks: vec![own], ..Shape::default() };
    Session::boot(hypervisor, fixture, shape).await
}

/// Adds a disk and has the guest forget what was in its place.
async fn add(session: &mut Session, disk: &Disk) -> Result<Vec<String>, String> {
    let added = session.vm.add_disk(disk.clone()).await;
    let nodes = added.map_err(|error| format!("add disk: {}", chain(&error)))?;
    for node in &nodes {
        session.ask(&format!("forget {node}")).await?;
    }
    Ok(nodes)
}

async fn remove(session: &mut Session, nodes: &[String]) -> Verdict {
    let removed = session.vm.remove_disk(nodes).await;
    removed.map_err(|error| format!("remove disk {nodes:?}: {}", chain(&error)))
}

/// Whether a process still has a disk's file open, or mounted where it can see it.
fn held_by(pid: u32, disk: &Disk) -> Verdict {
    let text = |error: std::io::Error| format!("look at process {pid}: {error}");
    let path = &disk.extents[0].path;
    let file = std::fs::metadata(path).map_err(text)?;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(text)? {
        // One may be closed meanwhile.
        let Ok(open) = std::fs::metadata(entry.map_err(text)?.path()) else { continue };
        let same = (open.dev(), open.ino()) == (file.dev(), file.ino());
        hold!(!same, "process {pid} has `{}` open after it was removed", path.display());
    }
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).map_err(text)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    hold!(!mounts.contains(name), "process {pid} sees `{name}` after it was removed");
    Ok(())
}

async fn unreadable(session: &mut Session, nodes: &[String]) -> Verdict {
    for node in nodes {
        // Where the node is gone there is nothing to forget.
        let _ = session.ask(&format!("forget {node}")).await;
        let read = session.ask(&format!("read {node} 0 4096")).await;
        hold!(read.is_err(), "`{node}` can be read after its disk was removed");
    }
    Ok(())
}
