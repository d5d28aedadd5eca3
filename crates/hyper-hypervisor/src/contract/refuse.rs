//! Checks of what must not work.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::session::{Shape, chain, config, disk};
use super::{Fixture, Verdict, hold};
use crate::{Disk, DiskModel, Extent, Hypervisor, Share, VmConfig, VmError, VmExit};

/// Kernels that are missing, cut short or something else: an error, or an early and clear end.
pub async fn kernels(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let whole = std::fs::read(&fixture.kernel).map_err(|error| format!("read kernel: {error}"))?;
    let cases: [(&str, Option<&[u8]>); 4] = [
        ("missing", None),
        ("empty", Some(b"")),
        ("text", Some(b"#!/bin/sh\necho this is not a kernel\n")),
        ("half", Some(&whole[..whole.len() / 2])),
    ];
    for (name, content) in cases {
        let path = fixture.work.join(format!("kernel-{name}"));
        if let Some(content) = content {
            std::fs::write(&path, content).map_err(|error| error.to_string())?;
        }
        let mut config = config(fixture, Shape::default())?;
        config.kernel.kernel = path;
        fails(hypervisor, config, "kernel").await.map_err(|why| format!("{name}: {why}"))?;
    }
    let mut config = config(fixture, Shape::default())?;
    config.kernel.initramfs = fixture.work.join("no-initramfs");
    fails(hypervisor, config, "initramfs").await
}

/// Too little memory, too many devices, files that are not there or too short.
pub async fn excess(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let can = hypervisor.capabilities();
    let mut small = config(fixture, Shape::default())?;
    small.memory_bytes = can.min_memory_bytes - 1;
    let error = refused(hypervisor, small).await?;
    hold!(matches!(error, VmError::MemoryTooSmall { .. }), "too little memory: {error:?}");

    let one = disk(fixture, "many", 1, &[4096])?;
    let disks = vec![one.clone(); can.max_disks + 1];
    let error = refused(hypervisor, config(fixture, Shape { disks, ..Shape::default() })?).await?;
    hold!(matches!(error, VmError::Unsupported { .. }), "too many disks: {error:?}");

    let vcpus = Some(can.max_vcpus + 1);
    let error = refused(hypervisor, config(fixture, Shape { vcpus, ..Shape::default() })?).await?;
    hold!(matches!(error, VmError::Unsupported { .. }), "too many vCPUs: {error:?}");

    let path = fixture.work.join("no-disk");
    let absent = Disk { extents: vec![Extent { path, bytes: 4096 }], ..one.clone() };
    let mut short = one;
    short.extents[0].bytes = 8192;
    for (what, disk) in [("missing", absent), ("short", short)] {
        let named = disk.extents[0].path.clone();
        let shape = Shape { disks: vec![disk], ..Shape::default() };
        let error = refused(hypervisor, config(fixture, shape)?).await?;
        let told = matches!(&error, VmError::File { path, .. } if *path == named);
        hold!(told, "{what} disk: {}", chain(&error));
    }
    if can.disk_model == DiskModel::Stitched {
        let sizes = [4096; 16];
        let disks = vec![disk(fixture, "sixteen", 1, &sizes)?];
        let config = config(fixture, Shape { disks, ..Shape::default() })?;
        let vm = hypervisor.launch(config).await;
        let vm = vm.map_err(|error| format!("16 extents in one disk: {}", chain(&error)))?;
        vm.kill().await;
    }
    Ok(())
}

/// Shared directories: refused as such, or for want of their device, by its name.
pub async fn share(hypervisor: &dyn Hypervisor, fixture: &Fixture) -> Verdict {
    let socket = fixture.work.join("no-share.sock");
    let mut config = config(fixture, Shape::default())?;
    config.share = Some(Share { socket: socket.clone(), tag: "tag".to_owned() });
    let error = refused(hypervisor, config).await?;
    if hypervisor.capabilities().share {
        let named = chain(&error).contains("no-share.sock");
        hold!(named, "a missing device is not named: {}", chain(&error));
    } else {
        hold!(matches!(error, VmError::Unsupported { .. }), "shared directories: {error:?}");
    }
    Ok(())
}

async fn refused(hypervisor: &dyn Hypervisor, config: VmConfig) -> Result<VmError, String> {
    let run_dir = config.run_dir.clone();
    match timeout(Duration::from_secs(10), hypervisor.launch(config)).await {
        Ok(Err(error)) => empty(&run_dir).map(|()| error),
        Ok(Ok(_)) => Err("a guest that cannot be had was launched".to_owned()),
        Err(_) => Err("launch did not return in time".to_owned()),
    }
}

/// Fails at launch, or ends within bounded time, and says why.
async fn fails(hypervisor: &dyn Hypervisor, config: VmConfig, word: &str) -> Verdict {
    let run_dir = config.run_dir.clone();
    let launched = timeout(Duration::from_secs(10), hypervisor.launch(config)).await;
    let said = match launched.map_err(|_| "launch did not return in time".to_owned())? {
        Err(error) => chain(&error),
        Ok(vm) => match timeout(Duration::from_secs(20), vm.wait()).await {
            Ok(VmExit::Failed { detail, .. }) => detail,
            Ok(VmExit::Panicked { message }) => message,
            Ok(other) => return Err(format!("a guest with a bad {word} ended as {other:?}")),
            Err(_) => return Err(format!("a guest with a bad {word} did not end")),
        },
    };
    hold!(said.contains(word), "the {word} is not blamed: {said:?}");
    empty(&run_dir)
}

fn empty(run_dir: &Path) -> Verdict {
    let entries = std::fs::read_dir(run_dir).map_err(|error| error.to_string())?;
    let left: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    hold!(left.is_empty(), "left in the run directory: {left:?}");
    Ok(())
}
