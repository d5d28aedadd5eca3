//! Bounds on disk transfers (`--device-read-bps` and the like): which disk of the host they mean.
//!
//! All disks of a container are files in the engine's directory, so the only device that can be
//! bounded is the one that directory is on.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::spec::{Throttle, Transfer};
use crate::{Error, Result};

type Device = (u32, u32);

/// Fills in the devices of `throttles` for a container whose disks are in `directory`. Blocking.
pub(crate) fn resolve(throttles: &mut [Throttle], directory: &Path) -> Result<()> {
    for throttle in throttles {
        let path = &throttle.path;
        let invalid = |why: String| Err(Error::Invalid(format!("throttle of `{path}`: {why}")));
        let found = match fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => whole(number(found.rdev())),
            Ok(_) => return invalid("it is no block device".to_owned()),
            Err(error) => return invalid(error.to_string()),
        };
        let own = fs::metadata(directory).map_err(Error::file("look at", directory))?;
        let own = whole(number(own.dev()));
        if own.0 == 0 {
            return invalid(format!(
                "the container's disks are in {}, whose file system is on no block device",
                directory.display()
            ));
        }
        if found != own {
            return invalid(format!(
                "the container's disks are in {}, which is on {}: name that",
                directory.display(),
                name(own)
            ));
        }
        throttle.device = own;
    }
    Ok(())
}

/// OCI `linux.resources.blockIO`; null: nothing is bounded.
pub(crate) fn block_io(throttles: &[Throttle]) -> Value {
    let mut all = Value::Null;
    for one in throttles {
        let field = match one.what {
            Transfer::ReadBytes => "throttleReadBpsDevice",
            Transfer::WriteBytes => "throttleWriteBpsDevice",
            Transfer::ReadOperations => "throttleReadIOPSDevice",
            Transfer::WriteOperations => "throttleWriteIOPSDevice",
        };
        let (major, minor) = one.device;
        let bound = json!({ "major": major, "minor": minor, "rate": one.rate });
        match &mut all[field] {
            Value::Array(list) => list.push(bound),
            empty => *empty = json!([bound]),
        }
    }
    all
}

fn number(device: u64) -> Device {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

fn sysfs((major, minor): Device) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// The disk that a partition is on; any other device itself. A cgroup bounds whole disks only.
fn whole(device: Device) -> Device {
    let own = sysfs(device);
    if !own.join("partition").exists() {
        return device;
    }
    let disk = fs::canonicalize(own).ok().and_then(|path| {
        let text = fs::read_to_string(path.parent()?.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    disk.unwrap_or(device)
}

/// `/dev/vda`, or its number.
fn name(device: Device) -> String {
    let path = fs::canonicalize(sysfs(device)).ok();
    let name = path.as_deref().and_then(Path::file_name);
    name.map_or_else(
        || format!("device {}:{}", device.0, device.1),
        |name| format!("/dev/{}", name.to_string_lossy()),
    )
}

#[cfg(test)]
mod test {
    use super::*;

    fn throttle(path: &str) -> Throttle {
        Throttle { path: path.to_owned(), rate: 1, ..Throttle::default() }
    }

    #[test]
    fn what_is_no_disk_of_the_container_is_refused_by_name() {
        let told =
            |path: &str| resolve(&mut [throttle(path)], Path::new("/")).unwrap_err().to_string();
        assert!(told("/dev/null").contains("`/dev/null`: it is no block device"));
        assert!(told("/dev/no-such-disk").contains("No such file"));
    }

    /// Needs root, to make a device's node: the machine's own may be out of sight.
    #[test]
    fn disks_on_no_block_device_or_on_another_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("disk");
        let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::RUSR);
        // Numbers for experiments (Documentation/admin-guide/devices.txt): no file system is on it.
        let device = rustix::fs::makedev(240, 0);
        rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, device).unwrap();
        let mut all = [throttle(&node.display().to_string())];
        let told = resolve(&mut all, Path::new("/proc")).unwrap_err().to_string();
        assert!(told.contains("in /proc, whose file system is on no block device"), "{told}");
        let told = resolve(&mut all, dir.path()).unwrap_err().to_string();
        assert!(told.contains(&dir.path().display().to_string()), "{told}");
    }

    #[test]
    fn each_kind_has_its_list() {
        let both = [
            throttle("/dev/x"),
            Throttle { what: Transfer::WriteOperations, device: (8, 0), ..throttle("/dev/x") },
        ];
        let value = block_io(&both);
        assert_eq!(value["throttleReadBpsDevice"][0]["rate"], 1);
        assert_eq!(value["throttleWriteIOPSDevice"][0]["major"], 8);
        assert!(block_io(&[]).is_null());
    }
}
