//! Checks of disks.

use std::os::unix::fs::FileExt;

use super::bytes::{difference, pattern};
use super::session::{Session, Shape, chain, disk};
use super::{Fixture, Verdict, hold};
use crate::{Disk, Hypervisor};

/// Extents of several lengths in several disks: each device has its bytes and no others.
pub async fn content(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let disks = vec![
        disk(fixture, "one", 100, &[8192, (1 << 20) + 4096, 65536])?,
        disk(fixture, "two", 200, &[4096])?,
        disk(fixture, "three", 300, &[3 << 20])?,
    ];
    let shape = Shape { disks: disks.clone(), ..Shape::default() };
    let mut session = Session::boot(hypervisor, fixture, shape).await?;
    for at in 0..disks.len() {
        let nodes = hypervisor.guest_devices(&disks, at);
        compare(&mut session, &nodes, &disks[at], true).await?;
    }
    session.power_off().await
}

/// A pod of many containers: as many disks as it says, or [`MANY`], each in its place.
pub async fn many(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let count = hypervisor.capabilities().max_disks.min(MANY);
    let made = (0..count).map(|at| disk(fixture, &format!("many{at}"), 2000 + at as u64, &[4096]));
    let disks = made.collect::<Result<Vec<_>, _>>()?;
    let shape = Shape { disks: disks.clone(), ..Shape::default() };
    let mut session = Session::boot(hypervisor, fixture, shape).await?;
    for at in 0..disks.len() {
        let nodes = hypervisor.guest_devices(&disks, at);
        compare(&mut session, &nodes, &disks[at], true).await?;
    }
    session.power_off().await
}

/// More than any machine of one bus has room for, and little to boot with.
pub const MANY: usize = 40;

/// What the guest writes is in the file, what it may not write is not, even if it insists.
pub async fn writing(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let kept = disk(fixture, "kept", 400, &[1 << 20])?;
    let mut written = disk(fixture, "written", 500, &[1 << 20])?;
    written.read_only = false;
    let mut fleeting = disk(fixture, "fleeting", 600, &[1 << 20])?;
    (fleeting.read_only, fleeting.ephemeral) = (false, true);
    let disks = vec![kept.clone(), written.clone(), fleeting.clone()];
    let shape = Shape { disks: disks.clone(), ..Shape::default() };
    let mut session = Session::boot(hypervisor, fixture, shape).await?;
    let bytes = pattern(7, 8192);
    let node = |at: usize| hypervisor.guest_devices(&disks, at).concat();
    let refused = session.ask_with(&format!("write {} 4096 8192", node(0)), &bytes).await;
    hold!(refused.is_err(), "a read-only disk took a write");
    for at in [1, 2] {
        session.ask_with(&format!("write {} 4096 8192", node(at)), &bytes).await?;
    }
    session.power_off().await?;
    hold!(host_read(&kept, 0, 1 << 20)? == pattern(400, 1 << 20), "the read-only disk changed");
    for (disk, seed) in [(written, 500), (fleeting, 600)] {
        let mut wanted = pattern(seed, 1 << 20);
        wanted[4096..12288].copy_from_slice(&bytes);
        if let Some(how) = difference(&host_read(&disk, 0, 1 << 20)?, &wanted) {
            return Err(format!("the disk written in the guest: {how}"));
        }
    }
    Ok(())
}

/// Disks that are mapped, between others: the same bytes in the same order, and what the guest
/// writes, and syncs, stays in the guest. Where they cannot be they are refused.
pub async fn mapped(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let mapped = |made: Disk| Disk { mapped: true, ..made };
    let disks = vec![
        mapped(disk(fixture, "stitched", 1100, &[8192, (2 << 20) + 4096, 65536])?),
        disk(fixture, "between", 1200, &[8192])?,
        mapped(disk(fixture, "whole", 1300, &[4 << 20])?),
    ];
    let shape = Shape { disks: disks.clone(), ..Shape::default() };
    if !hypervisor.capabilities().disk_map {
        let booted = Session::boot(hypervisor, fixture, shape).await;
        hold!(booted.is_err(), "a disk was mapped, but `disk_map` is false");
        return Ok(());
    }
    let mut session = Session::boot(hypervisor, fixture, shape).await?;
    for at in 0..disks.len() {
        let nodes = hypervisor.guest_devices(&disks, at);
        // Mapped ones end where a large page does.
        compare(&mut session, &nodes, &disks[at], !disks[at].mapped).await?;
    }
    let node = hypervisor.guest_devices(&disks, 2).concat();
    let bytes = pattern(9, 8192);
    let _ = session.ask_with(&format!("write {node} 4096 8192"), &bytes).await;
    session.power_off().await?;
    let kept = host_read(&disks[2], 0, 4 << 20)? == pattern(1300, 4 << 20);
    hold!(kept, "the guest changed the file of a mapped disk");
    let writable = Disk { read_only: false, ..disks[2].clone() };
    let shape = Shape { disks: vec![writable], ..Shape::default() };
    let booted = Session::boot(hypervisor, fixture, shape).await;
    hold!(booted.is_err(), "a writable disk was mapped");
    Ok(())
}

/// Disks that come later, up to the limit, one of them of several extents, one writable.
pub async fn adding(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let can = hypervisor.capabilities();
    let first = disk(fixture, "first", 700, &[8192])?;
    let shape = Shape { disks: vec![first.clone()], ..Shape::default() };
    let mut session = Session::boot(hypervisor, fixture, shape).await?;
    let image = disk(fixture, "image", 800, &[4096, 1 << 20])?;
    if !can.disk_hotplug {
        let answer = session.vm.add_disk(image).await;
        hold!(answer.is_err(), "a disk was added, but `disk_hotplug` is false");
        return session.power_off().await;
    }
    let mut upper = disk(fixture, "upper", 900, &[2 << 20])?;
    upper.read_only = false;
    let add = |error| format!("add disk: {}", chain(&error));
    let image_nodes = session.vm.add_disk(image.clone()).await.map_err(add)?;
    let upper_nodes = session.vm.add_disk(upper.clone()).await.map_err(add)?;
    for node in image_nodes.iter().chain(&upper_nodes) {
        session.ask(&format!("forget {node}")).await?;
    }
    let first_nodes = hypervisor.guest_devices(std::slice::from_ref(&first), 0);
    compare(&mut session, &first_nodes, &first, true).await?;
    compare(&mut session, &image_nodes, &image, false).await?;
    compare(&mut session, &upper_nodes, &upper, false).await?;
    let bytes = pattern(8, 4096);
    let write = |node: &str| format!("write {node} 1044480 4096");
    session.ask_with(&write(&upper_nodes.concat()), &bytes).await?;
    let last = image_nodes.last().cloned().unwrap_or_default();
    // Emulated placeholders may swallow the error: what counts is the file.
    let _ = session.ask_with(&write(&last), &bytes).await;
    session.power_off().await?;
    hold!(host_read(&upper, 1_044_480, 4096)? == bytes, "a write to an added disk is lost");
    hold!(host_read(&image, 0, 4096)? == pattern(800, 4096), "an added read-only disk changed");
    let second = Disk { extents: vec![image.extents[1].clone()], ..image };
    let unchanged = host_read(&second, 0, 1 << 20)? == pattern(801, 1 << 20);
    hold!(unchanged, "an added read-only disk changed");
    Ok(())
}

/// Reads every device of a disk whole and compares it with its files.
pub async fn compare(session: &mut Session, nodes: &[String], disk: &Disk, exact: bool) -> Verdict {
    let mut wanted: Vec<Vec<u8>> = Vec::new();
    for extent in &disk.extents {
        wanted.push(std::fs::read(&extent.path).map_err(|error| error.to_string())?);
    }
    if nodes.len() == 1 {
        wanted = vec![wanted.concat()];
    }
    hold!(nodes.len() == wanted.len(), "{} extents are {nodes:?}", disk.extents.len());
    for (node, wanted) in nodes.iter().zip(wanted) {
        let size: u64 = session.ask(&format!("size {node}")).await?.parse().map_err(|_| "size")?;
        let fits = if exact { size == wanted.len() as u64 } else { size >= wanted.len() as u64 };
        hold!(fits, "`{node}` has {size} bytes for {}", wanted.len());
        let got = session.fetch(&format!("read {node} 0 {}", wanted.len())).await?;
        if let Some(how) = difference(&got, &wanted) {
            return Err(format!("`{node}`: {how}"));
        }
    }
    Ok(())
}

pub fn host_read(disk: &Disk, offset: u64, count: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; count];
    let file = std::fs::File::open(&disk.extents[0].path).map_err(|error| error.to_string())?;
    file.read_exact_at(&mut bytes, offset).map_err(|error| error.to_string())?;
    Ok(bytes)
}
