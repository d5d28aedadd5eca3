//! Disks of a running guest: the placeholders, and the real files that take their place.
//!
//! ```text
//! vdN ─► diskN (raw) ─┬─► nothing, 1 TiB of zeros     since the launch
//!                     ├─► lateN ─► descriptor sets    a disk was added
//!                     └─► goneN: nothing, 0 bytes     it was removed: beyond the end, so errors
//! ```

use std::os::fd::OwnedFd;

use hyper_adapter::{Places, blocking, node};
use hyper_hypervisor::{Disk, VmError};
use serde_json::json;

use crate::commands::{
    BlockdevAdd, BlockdevDel, BlockdevReopen, QueryFdsets, QueryNodes, RemoveFd,
};
use crate::control::{CallError, Control};
use crate::disk::{self, Opened};
use crate::{DISK, NAME, machine};

/// Descriptor sets reserved for each disk.
const SETS: u32 = 128;

/// First descriptor set of the disk in `slot`.
pub fn first_set(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX / SETS - 1) * SETS + 1
}

/// Compares what QEMU made of the disks of the launch with what was asked.
pub async fn check(control: &Control, wanted: &[u64]) -> Result<(), VmError> {
    for (at, bytes) in wanted.iter().enumerate() {
        check_node(control, &machine::block_node(at), *bytes).await?;
    }
    Ok(())
}

/// Puts `disk` behind a placeholder, of which there are `places` behind the `launched` disks, and
/// returns its device node.
pub async fn add(
    control: &Control,
    launched: usize,
    places: &mut Places,
    disk: Disk,
) -> Result<String, VmError> {
    let place = places.take(disk.read_only)?;
    let slot = launched + place;
    match attach(control, slot, disk).await {
        Ok(()) => Ok(node(DISK, slot)),
        Err(error) => {
            places.give_back(place);
            Err(error)
        }
    }
}

/// Takes the disk with these nodes out of its place. After an error the place is not used again.
pub async fn remove(
    control: &Control,
    launched: usize,
    places: &mut Places,
    devices: &[String],
) -> Result<(), VmError> {
    let place = places.of(devices, |place| node(DISK, launched + place))?;
    let slot = launched + place;
    let (late, gone) = (late(slot), gone(slot));
    let removed = async {
        let nothing = json!({ "driver": "null-co", "node-name": gone, "size": 0 });
        control.call(BlockdevAdd(nothing)).await?;
        // Returns when no request is under way any more.
        reopen(control, slot, Places::is_read_only(place), &gone).await?;
        control.call(BlockdevDel { node_name: late }).await.map(drop)
    };
    removed.await.map_err(|error| error.while_doing("remove a disk"))?;
    let first = first_set(slot);
    let closed = async {
        for set in control.call(QueryFdsets {}).await? {
            if (first..first + SETS).contains(&set.fdset_id) {
                control.call(RemoveFd { fdset_id: set.fdset_id }).await?;
            }
        }
        Ok(())
    };
    closed.await.map_err(|error: CallError| error.while_doing("close a removed disk"))?;
    places.give_back(place);
    Ok(())
}

/// Names of the block nodes below that of a slot.
fn late(slot: usize) -> String {
    format!("late{slot}")
}

fn gone(slot: usize) -> String {
    format!("gone{slot}")
}

/// Puts the node `file` behind a slot's own.
async fn reopen(
    control: &Control,
    slot: usize,
    read_only: bool,
    file: &str,
) -> Result<(), CallError> {
    let options = json!({
        "driver": "raw",
        "node-name": machine::block_node(slot),
        "read-only": read_only,
        "discard": "unmap",
        "file": file,
    });
    control.call(BlockdevReopen { options: vec![options] }).await.map(drop)
}

async fn attach(control: &Control, slot: usize, disk: Disk) -> Result<(), VmError> {
    let set = first_set(slot);
    let read_only = disk.read_only;
    let opened = blocking("open the files of a disk", move || disk::open(&disk, set)).await?;
    let late = late(slot);
    let node = opened.node(&late, set);
    let Opened { files, bytes, .. } = opened;
    let sets = set..set + u32::try_from(files.len()).unwrap_or(SETS);
    let doing = "add a disk";
    let added = async {
        pass(control, files, set).await.map_err(|error| error.while_doing(doing))?;
        control.call(BlockdevAdd(node)).await.map_err(|error| error.while_doing(doing))?;
        check_node(control, &late, bytes).await?;
        let reopened = reopen(control, slot, read_only, &late).await;
        reopened.map_err(|error| error.while_doing(doing))
    };
    if let Err(error) = added.await {
        let deleted = control.call(BlockdevDel { node_name: late }).await;
        tracing::debug!(slot, ?deleted, "take back a disk that could not be added");
        control.remove_fds(sets).await;
        return Err(error);
    }
    // There after a disk was removed here, and of no more use.
    let deleted = control.call(BlockdevDel { node_name: gone(slot) }).await;
    tracing::trace!(slot, ?deleted, "what was in the place");
    Ok(())
}

async fn pass(control: &Control, files: Vec<OwnedFd>, first: u32) -> Result<(), CallError> {
    for (set, file) in (first..).zip(files) {
        control.add_fd(file, set).await?;
    }
    Ok(())
}

/// A wrong length means that QEMU understood the list of extents in another way than it was
/// meant: the guest would see shifted data.
async fn check_node(control: &Control, name: &str, bytes: u64) -> Result<(), VmError> {
    let nodes = control.call(QueryNodes { flat: true }).await;
    let nodes = nodes.map_err(|error| error.while_doing("list block nodes"))?;
    let found = nodes.iter().find(|node| node.node_name.as_deref() == Some(name));
    match found.map(|node| node.image.virtual_size) {
        Some(size) if size == bytes => Ok(()),
        size => {
            let detail = format!("disk `{name}` has {size:?} bytes in QEMU, should have {bytes}");
            Err(VmError::Launch { hypervisor: NAME, detail })
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sets_of_disks_do_not_overlap() {
        assert!(first_set(1) - first_set(0) > u32::try_from(disk::MAX_EXTENTS).unwrap() + 1);
    }
}
