//! What is mounted in a container, decided when it is made: the client's wishes, other containers'
//! volumes, and the image's.
//!
//! Docker's order: what is named wins over `--volumes-from`, and that over the image's `VOLUME`s,
//! which become anonymous volumes where nothing else is mounted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::spec::{Mount, MountKind, Spec};
use crate::core::Core;
use crate::volume::{self, Volume, VolumeRequest};
use crate::{Error, Result};

/// Completes `spec.host.mounts`, making the volumes that are not there. Returns the names of
/// anonymous volumes that were made: the caller removes them should the container not come to be.
/// The caller holds the lock that `all` is of.
pub(crate) async fn resolve(
    core: &Arc<Core>,
    all: &mut BTreeMap<String, Volume>,
    spec: &mut Spec,
) -> Result<Vec<String>> {
    let mut mounts = Vec::new();
    for mut mount in std::mem::take(&mut spec.host.mounts) {
        mount.target = clean(&mount.target)?;
        if taken(&mounts, &mount.target) || spec.host.tmpfs.contains_key(&mount.target) {
            return Err(Error::Invalid(format!("Duplicate mount point: {}", mount.target)));
        }
        if mount.kind == MountKind::Bind && !mount.create_source {
            exists(&mount.source)?;
        }
        mounts.push(mount);
    }
    for wish in &spec.host.volumes_from {
        from(core, wish, &spec.host.tmpfs, &mut mounts)?;
    }
    for path in spec.volumes.iter().filter(|_| !spec.host.plain_volumes) {
        let target = clean(path)?;
        let given = spec.host.files.iter().any(|given| given.target == target);
        if !given && !taken(&mounts, &target) && !spec.host.tmpfs.contains_key(&target) {
            let kind = MountKind::Volume;
            let driver = spec.host.volume_driver.clone();
            mounts.push(Mount { kind, target, driver, ..Mount::default() });
        }
    }
    let mut made = Vec::new();
    for mount in mounts.iter_mut().filter(|mount| mount.kind == MountKind::Volume) {
        if let Err(error) = named(core, all, mount, &mut made).await {
            discard(core, all, &made).await;
            return Err(error);
        }
    }
    // Parents before children, as they are to be mounted.
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    spec.host.mounts = mounts;
    Ok(made)
}

/// Removes anonymous volumes of a container that did not come to be.
pub(crate) async fn discard(core: &Arc<Core>, all: &mut BTreeMap<String, Volume>, made: &[String]) {
    for name in made {
        if let Err(error) = volume::remove_unused(core, all, name).await {
            tracing::warn!(volume = name, error = error.chain(), "remove");
        }
    }
}

async fn named(
    core: &Arc<Core>,
    all: &mut BTreeMap<String, Volume>,
    mount: &mut Mount,
    made: &mut Vec<String>,
) -> Result<()> {
    let fresh = mount.source.is_empty();
    let request = VolumeRequest {
        name: mount.source.clone(),
        driver: mount.driver.clone(),
        options: mount.options.clone(),
        labels: mount.labels.clone(),
    };
    let volume = volume::make(core, all, request, fresh).await?;
    mount.source.clone_from(&volume.name);
    volume.driver.word().clone_into(&mut mount.driver);
    if fresh {
        mount.anonymous = true;
        made.push(volume.name);
    }
    Ok(())
}

/// `CONTAINER[:ro|rw]`: its volumes and binds, where nothing else is.
fn from(
    core: &Core,
    wish: &str,
    tmpfs: &BTreeMap<String, String>,
    mounts: &mut Vec<Mount>,
) -> Result<()> {
    let (name, mode) = wish.split_once(':').unwrap_or((wish, ""));
    let read_only = match mode {
        "" | "rw" | "z" | "Z" => false,
        "ro" => true,
        other => {
            return Err(Error::Invalid(format!("invalid mode for volumes-from: {other}")));
        }
    };
    // Not "not found": for clients that would mean the image.
    let other = core.find(name).map_err(|error| Error::Invalid(error.to_string()))?;
    let other = other.view.borrow().spec.clone();
    for mount in &other.host.mounts {
        if taken(mounts, &mount.target) || tmpfs.contains_key(&mount.target) {
            continue;
        }
        let mut mount = mount.clone();
        mount.read_only |= read_only;
        // It goes with the container it was made for.
        mount.anonymous = false;
        mounts.push(mount);
    }
    Ok(())
}

fn taken(mounts: &[Mount], target: &str) -> bool {
    mounts.iter().any(|mount| mount.target == target)
}

/// `/a//b/../c/` → `/a/c`.
fn clean(target: &str) -> Result<String> {
    let bad = |why: &str| Error::Invalid(format!("invalid mount path: '{target}' {why}"));
    if !target.starts_with('/') {
        return Err(bad("mount path must be absolute"));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    if parts.is_empty() {
        return Err(bad("destination can't be '/'"));
    }
    if target.contains('\0') {
        return Err(bad("holds a NUL character"));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn exists(source: &str) -> Result<()> {
    match std::fs::metadata(source) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::Invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {source}"
        ))),
        Err(error) => Err(Error::Invalid(format!(
            "invalid mount config for type \"bind\": {source}: {error}"
        ))),
    }
}

/// Makes the directories that `-v` binds and that are not there, but in the place of a socket. Blocks.
pub(crate) fn make_sources(mounts: &[Mount]) -> Result<()> {
    for mount in mounts.iter().filter(|mount| mount.kind == MountKind::Bind) {
        let path = std::path::Path::new(&mount.source);
        if mount.create_source {
            if !path.exists() {
                // A directory with a socket's name is of use to nobody, and in the way of who makes the socket.
                if path.extension().is_some_and(|end| end == "sock") {
                    return Err(Error::Invalid(format!(
                        "invalid mount config: there is no socket {}: start who listens there first, or \
                         name another one (hyperd's own is /run/hyper/hyper.sock, or what its -H says)",
                        path.display()
                    )));
                }
                std::fs::create_dir_all(path).map_err(Error::file("make bind directory", path))?;
            }
        } else {
            exists(&mount.source)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn targets_are_cleaned_as_docker_does() {
        assert_eq!(clean("/a//b/../c/").unwrap(), "/a/c");
        assert_eq!(clean("/../x").unwrap(), "/x");
        for bad in ["", "x", "/", "/a/.."] {
            assert!(clean(bad).is_err(), "{bad}");
        }
    }
}
