//! Disks of a running guest: the placeholders, and the real files that take their place.

use std::os::fd::OwnedFd;

use hyper_hypervisor::{Disk, VmError};
use serde_json::json;

use crate::NAME;
use crate::commands::{BlockdevAdd, BlockdevDel, BlockdevReopen, QueryNodes};
use crate::control::{CallError, Control};
use crate::disk::{self, Opened};
use crate::machine::{self, Machine};

/// Descriptor sets reserved for each disk.
const SETS: u32 = 128;

/// The slots of one guest.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Used,
    Spare { read_only: bool },
}

/// First descriptor set of the disk in `slot`.
pub fn first_set(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX / SETS - 1) * SETS + 1
}

impl Slots {
    /// As the machine was launched.
    pub fn of(machine: &Machine) -> Self {
        let used = std::iter::repeat_n(Slot::Used, machine.disks);
        let spare = (0..machine.spares)
            .map(|spare| Slot::Spare { read_only: machine::spare_is_read_only(spare) });
        Self { slots: used.chain(spare).collect() }
    }

    /// Takes a slot for such a disk.
    fn take(&mut self, read_only: bool) -> Result<usize, VmError> {
        let wanted = Slot::Spare { read_only };
        let Some(at) = self.slots.iter().position(|slot| *slot == wanted) else {
            let kind = if read_only { "read-only" } else { "writable" };
            let what = format!("add another {kind} disk to this guest: its slots are used up");
            return Err(VmError::Unsupported { hypervisor: NAME, what });
        };
        self.slots[at] = Slot::Used;
        Ok(at)
    }

    fn give_back(&mut self, slot: usize, read_only: bool) {
        self.slots[slot] = Slot::Spare { read_only };
    }
}

/// Compares what QEMU made of the disks of the launch with what was asked.
pub async fn check(control: &Control, wanted: &[u64]) -> Result<(), VmError> {
    for (at, bytes) in wanted.iter().enumerate() {
        check_node(control, &machine::block_node(at), *bytes).await?;
    }
    Ok(())
}

/// Puts `disk` behind a placeholder and returns its device node.
pub async fn add(
    control: &Control,
    slots: &tokio::sync::Mutex<Slots>,
    disk: Disk,
) -> Result<String, VmError> {
    let mut slots = slots.lock().await;
    let slot = slots.take(disk.read_only)?;
    let read_only = disk.read_only;
    match attach(control, slot, disk).await {
        Ok(()) => Ok(machine::disk_node(slot)),
        Err(error) => {
            slots.give_back(slot, read_only);
            Err(error)
        }
    }
}

async fn attach(control: &Control, slot: usize, disk: Disk) -> Result<(), VmError> {
    let set = first_set(slot);
    let read_only = disk.read_only;
    let opened = tokio::task::spawn_blocking(move || disk::open(&disk, set)).await;
    let opened = opened.map_err(|error| VmError::Io {
        what: "open the files of a disk",
        source: std::io::Error::other(error),
    })??;
    let late = format!("late{slot}");
    let node = opened.node(&late, set);
    let Opened { files, bytes, .. } = opened;
    let sets = set..set + u32::try_from(files.len()).unwrap_or(SETS);
    let doing = "add a disk";
    let added = async {
        pass(control, files, set).await.map_err(|error| error.while_doing(doing))?;
        control.call(BlockdevAdd(node)).await.map_err(|error| error.while_doing(doing))?;
        check_node(control, &late, bytes).await?;
        let options = json!({
            "driver": "raw",
            "node-name": machine::block_node(slot),
            "read-only": read_only,
            "discard": "unmap",
            "file": late,
        });
        let reopen = BlockdevReopen { options: vec![options] };
        control.call(reopen).await.map_err(|error| error.while_doing(doing))
    };
    if let Err(error) = added.await {
        let deleted = control.call(BlockdevDel { node_name: late }).await;
        tracing::debug!(slot, ?deleted, "take back a disk that could not be added");
        control.remove_fds(sets).await;
        return Err(error);
    }
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
    fn slots_are_taken_by_kind_and_given_back() {
        let machine = Machine { kind: machine::Kind::Small, disks: 1, spares: 3, nics: 0 };
        let mut slots = Slots::of(&machine);
        assert_eq!(slots.take(false).unwrap(), 2);
        assert!(slots.take(false).unwrap_err().to_string().contains("another writable disk"));
        assert_eq!(slots.take(true).unwrap(), 1);
        assert_eq!(slots.take(true).unwrap(), 3);
        assert!(slots.take(true).is_err());
        slots.give_back(1, true);
        assert_eq!(slots.take(true).unwrap(), 1);
    }

    #[test]
    fn sets_of_disks_do_not_overlap() {
        assert!(first_set(1) - first_set(0) > u32::try_from(disk::MAX_EXTENTS).unwrap() + 1);
    }
}
