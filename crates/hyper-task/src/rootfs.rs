//! How a root file system of our image store is named in a Task `Create` request.
//!
//! hyperd sends one rootfs mount of type [`MOUNT_TYPE`] whose `source` is the path of a JSON
//! [`RootfsImage`] and whose options are [`RootfsOptions`]. containerd sends `overlay` and `bind`
//! mounts instead; the supervisor converts those directories to the same form.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Type of the rootfs mount.
pub const MOUNT_TYPE: &str = "hyper.erofs";

/// The read-only part of a root: EROFS metadata, then the layers it points into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsImage {
    pub metadata: DiskFile,
    /// Bottom layer first, in the order of the metadata's device table.
    pub layers: Vec<DiskFile>,
}

/// A file on the host that a guest sees as (part of) a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    pub path: PathBuf,
    /// Multiple of 4096.
    pub bytes: u64,
}

/// Options of the rootfs mount: `upper=PATH`, `ro`, `ephemeral`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsOptions {
    /// Sparse file with a fresh ext4; without it the container writes to guest memory.
    pub upper: Option<PathBuf>,
    /// The container may not write to its root.
    pub read_only: bool,
    /// The upper dies with the container: no need to sync it to the host's disk.
    pub ephemeral: bool,
}

/// An option that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rootfs option `{0}` is not one of upper=PATH, ro, ephemeral")]
pub struct UnknownOption(pub String);

impl RootfsOptions {
    /// As mount options.
    pub fn to_options(&self) -> Vec<String> {
        let mut options = Vec::new();
        if let Some(upper) = &self.upper {
            options.push(format!("upper={}", upper.display()));
        }
        if self.read_only {
            options.push("ro".to_owned());
        }
        if self.ephemeral {
            options.push("ephemeral".to_owned());
        }
        options
    }

    /// From mount options.
    pub fn from_options<S: AsRef<str>>(options: &[S]) -> Result<Self, UnknownOption> {
        let mut parsed = Self::default();
        for option in options {
            match option.as_ref() {
                "ro" => parsed.read_only = true,
                "rw" => parsed.read_only = false,
                "ephemeral" => parsed.ephemeral = true,
                other => match other.strip_prefix("upper=") {
                    Some(path) => parsed.upper = Some(PathBuf::from(path)),
                    None => return Err(UnknownOption(other.to_owned())),
                },
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn options_round_trip() {
        let options =
            RootfsOptions { upper: Some("/a/upper.ext4".into()), read_only: true, ephemeral: true };
        assert_eq!(RootfsOptions::from_options(&options.to_options()), Ok(options));
    }

    #[test]
    fn unknown_option_is_named() {
        let error = RootfsOptions::from_options(&["lowerdir=/x"]).unwrap_err();
        assert!(error.to_string().contains("lowerdir=/x"));
    }
}
