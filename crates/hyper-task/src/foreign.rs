//! Runtimes of others: what hyperd tells a supervisor that is to drive another shim, and the words
//! for walls that both use.
//!
//! A bundle with a [`FILE`] is of such a container: its supervisor starts the shim it names instead
//! of a guest, and keeps logs, streams and exit records as for any other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// File in the bundle: a [`Foreign`].
pub const FILE: &str = "foreign.json";
/// The shim of OCI runtimes, which takes a program's path as an option.
pub const RUNC_TYPE: &str = "io.containerd.runc.v2";

/// Words for how strong a wall is, weakest first: `hyper_hypervisor::Wall` in kebab-case.
pub const WALLS: [&str; 5] =
    [SHARED_KERNEL, APPLICATION_KERNEL, "user-mode-kernel", "emulated", "hardware"];
/// Containers are processes of the host's kernel.
pub const SHARED_KERNEL: &str = "shared-kernel";
/// A kernel in user space serves the system calls.
pub const APPLICATION_KERNEL: &str = "application-kernel";

/// Place of a word in [`WALLS`]; `None` for what is no wall.
#[must_use]
pub fn strength(wall: &str) -> Option<usize> {
    WALLS.iter().position(|word| *word == wall)
}

/// A runtime of somebody else.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// What `--runtime` says.
    pub name: String,
    /// The shim's type, e.g. [`RUNC_TYPE`].
    pub kind: String,
    /// The shim's program.
    pub shim: PathBuf,
    /// The OCI runtime that the shim of [`RUNC_TYPE`] starts; empty for other shims.
    pub program: PathBuf,
    /// The same for containers without networks, where that takes another; empty: it does not.
    pub offline: PathBuf,
    /// As configured, for the shim: keys of its own options message.
    pub options: BTreeMap<String, Value>,
    /// One of [`WALLS`].
    pub wall: String,
}

impl Runtime {
    /// The containers are processes that the host sees, in namespaces of its kernel.
    #[must_use]
    pub fn shares_kernel(&self) -> bool {
        self.wall == SHARED_KERNEL
    }
}

/// Content of [`FILE`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Foreign {
    pub runtime: Runtime,
    /// Directory where the images' roots are mounted, shared by all containers of an hyperd.
    pub roots: PathBuf,
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn walls_are_ordered() {
        assert!(strength(SHARED_KERNEL) < strength(APPLICATION_KERNEL));
        assert!(strength("emulated") < strength("hardware"));
        assert_eq!(strength("brick"), None);
    }
}
