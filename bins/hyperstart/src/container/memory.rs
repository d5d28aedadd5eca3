//! Volumes in the guest's memory, which containers of a pod share: a tmpfs each.
//!
//! ```text
//!   agent, before a container is made: tmpfs ─► /run/memory/NAME      (once, until the guest's end)
//!   in the container:                           /run/memory/NAME ──bind──► destination
//! ```

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use hyper_link::message::MEMORY_VOLUME;
use rustix::mount::{MountFlags, mount};

use crate::{
    failure::{Doing as _, Outcome, invalid},
    oci::{mounts, spec::Mount},
};

const DIRECTORY: &str = "/run/memory";

/// Makes those that `mounts` name and that are not there yet. In the agent's own namespace.
pub(super) fn prepare(mounts: &[Mount]) -> Outcome<()> {
    for wanted in mounts {
        let Some(name) = name(wanted) else { continue };
        let path = path(name)?;
        let describe = || format!("make volume {name} in memory");
        fs::create_dir_all(DIRECTORY).doing(describe)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made.doing(describe)?,
        }
        let mut data = String::new();
        let data = CString::new(mounts::parse(&wanted.options, &mut data).data).doing(describe)?;
        let made = mount("tmpfs", &path, "tmpfs", MountFlags::empty(), data.as_c_str());
        if made.is_err() {
            let _left = fs::remove_dir(&path);
        }
        made.doing(describe)?;
    }
    Ok(())
}

/// The bind mount that `wanted` is in a container; `None`: it is no such volume.
pub(super) fn bind(wanted: &Mount) -> Outcome<Option<Mount>> {
    let Some(name) = name(wanted) else { return Ok(None) };
    let source = path(name)?.display().to_string();
    // What has a value is the file system's, and said already.
    let options = wanted.options.iter().filter(|word| !word.contains('=')).cloned().collect();
    let (kind, destination) = ("bind".to_owned(), wanted.destination.clone());
    Ok(Some(Mount { destination, kind, source, options }))
}

fn name(wanted: &Mount) -> Option<&str> {
    wanted.source.strip_prefix(MEMORY_VOLUME).filter(|_| wanted.kind == "tmpfs")
}

fn path(name: &str) -> Outcome<PathBuf> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') || name.len() > 255 {
        return Err(invalid(format!("volume `{name}` in memory: not a name")));
    }
    Ok(Path::new(DIRECTORY).join(name))
}
