//! Saved guests: QEMU's migration, to a file and from it.
//!
//! `memory` is the migration's stream, devices included, which QEMU checks itself as it reads.
//! `state` is ours: what the machine must be, the stream's length, and a checksum over both. A
//! stream is read as a whole: a clone's memory is its own from the start.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hyper_adapter::{blocking, create_saved, open_saved};
use hyper_hypervisor::{VmConfig, VmError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use crate::NAME;
use crate::commands::{Migrate, QueryMigrate, SetMigration};
use crate::control::{CallError, Control};
use crate::machine::Machine;

/// The form of `state`.
const VERSION: u32 = 1;
/// Longest `state`.
const MAX_STATE: u64 = 64 << 10;
/// Much more than any disk takes: nobody else shall have the bandwidth.
const BANDWIDTH: u64 = 64 << 30;
/// A guest of some gigabytes on a slow disk.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(2);

/// What a guest must be to go on from a saved one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub machine: Machine,
    pub vcpus: u32,
    pub memory_bytes: u64,
    pub kvm: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    shape: Shape,
    /// Of `memory`.
    bytes: u64,
}

impl Shape {
    pub fn of(config: &VmConfig, machine: Machine, kvm: bool) -> Self {
        Self { machine, vcpus: config.vcpus, memory_bytes: config.memory_bytes, kvm }
    }
}

/// Writes the paused guest.
pub async fn save(control: &Control, shape: &Shape, directory: &Path) -> Result<(), VmError> {
    let doing = "save the guest";
    let failed = |error: CallError| error.while_doing(doing);
    let place = directory.to_owned();
    let [state, memory] = blocking(doing, move || create_saved(&place)).await?;
    let theirs = memory.try_clone().map_err(|source| VmError::Io { what: doing, source })?;
    control.call(SetMigration { max_bandwidth: BANDWIDTH }).await.map_err(failed)?;
    control.name_fd(theirs, "saved").await.map_err(failed)?;
    control.call(Migrate { uri: "fd:saved" }).await.map_err(failed)?;
    ended(control, doing).await?;
    let shape = shape.clone();
    blocking(doing, move || {
        let failed = |source| VmError::Io { what: doing, source };
        let bytes = File::from(memory).metadata().map_err(failed)?.len();
        let text = serde_json::to_string(&State { version: VERSION, shape, bytes });
        let text = text.map_err(|error| failed(error.into()))?;
        File::from(state).write_all(format!("{} {text}", sum(&text)).as_bytes()).map_err(failed)
    })
    .await
}

/// The stream of the guest saved in `directory`, if `shape` is what it can go on as. Blocks.
pub fn open(directory: &Path, shape: &Shape) -> Result<OwnedFd, VmError> {
    let (state, memory) = open_saved(directory)?;
    let failed = |source| VmError::Io { what: "read a saved guest", source };
    let mut text = String::new();
    File::from(state).take(MAX_STATE).read_to_string(&mut text).map_err(failed)?;
    let memory = File::from(memory);
    let state = read(&text, memory.metadata().map_err(failed)?.len());
    let refused = |why: String| VmError::Launch {
        hypervisor: NAME,
        detail: format!("the guest saved in `{}`: {why}", directory.display()),
    };
    let saved = state.map_err(refused)?;
    if saved != *shape {
        return Err(refused(format!("it is {saved:?}, wanted is {shape:?}")));
    }
    Ok(memory.into())
}

/// Waits until a guest that is being read is there, paused.
pub async fn arrived(control: &Control) -> Result<(), VmError> {
    ended(control, "continue the saved guest").await
}

fn read(text: &str, bytes: u64) -> Result<Shape, String> {
    let (known, text) = text.split_once(' ').ok_or("its state is no state")?;
    if known != sum(text) {
        return Err("its state was changed".to_owned());
    }
    let state: State = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if state.version != VERSION {
        return Err(format!("its form is {}, not {VERSION}", state.version));
    }
    if state.bytes != bytes {
        return Err(format!("its memory has {bytes} bytes, not {}", state.bytes));
    }
    Ok(state.shape)
}

fn sum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn ended(control: &Control, doing: &'static str) -> Result<(), VmError> {
    let work = async {
        loop {
            let seen = control.call(QueryMigrate {}).await;
            let seen = seen.map_err(|error| error.while_doing(doing))?;
            match seen.status.as_deref() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let why = seen.error_desc.unwrap_or_else(|| "QEMU does not say why".to_owned());
                    let source = std::io::Error::other(format!("{why:.2000}"));
                    return Err(VmError::Io { what: doing, source });
                }
                _ => sleep(LOOK).await,
            }
        }
    };
    let silent = VmError::Silent { hypervisor: NAME, what: doing, seconds: PATIENCE.as_secs() };
    timeout(PATIENCE, work).await.unwrap_or(Err(silent))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_was_changed_is_no_state() {
        let shape =
            Shape { machine: Machine::of(1, 1, true), vcpus: 2, memory_bytes: 1 << 27, kvm: false };
        let state = State { version: VERSION, shape: shape.clone(), bytes: 5 };
        let text = serde_json::to_string(&state).unwrap();
        let good = format!("{} {text}", sum(&text));
        assert_eq!(read(&good, 5), Ok(shape));
        assert!(read(&good, 4).unwrap_err().contains("4 bytes, not 5"));
        assert!(read(&good.replace("\"vcpus\":2", "\"vcpus\":1"), 5).is_err());
        for wrong in ["", "x", "x {}"] {
            assert!(read(wrong, 5).is_err(), "{wrong}");
        }
    }
}
