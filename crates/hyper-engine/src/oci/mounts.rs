//! File systems mounted in a container: Docker's, the tmpfs asked for, and our files in /etc.

use std::path::Path;

use serde_json::{Value, json};

use hyper_task::annotation::FILES_ONLY;
use hyper_task::mount::{COPY, COPY_UP, DISK_KIND, LIVE, MEMORY_VOLUME, NFS_KIND, OWNER};

use super::Surroundings;
use crate::container::spec::{Mount, MountKind, Spec};
use crate::volume::Backing;
use crate::{Error, Result};

const SHM_BYTES: u64 = 64 << 20;

/// The `mounts` array, parents before children.
pub(super) fn list(spec: &Spec, surroundings: &Surroundings) -> Result<Vec<Value>> {
    let own = |at: &str| {
        spec.host.mounts.iter().any(|mount| mount.target == at)
            || surroundings.given.iter().any(|given| given.target == at)
    };
    let privileged = spec.host.security.privileged;
    let kernel = if privileged { "rw" } else { "ro" };
    let shm = match spec.host.shm_bytes {
        0 => SHM_BYTES,
        bytes => bytes,
    };
    let mount = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", kernel]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", kernel]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        json!({
            "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", format!("size={shm}")],
        }),
    ];
    if spec.host.ipc == "none" {
        mounts.pop();
    }
    mounts.retain(|mount| !mount["destination"].as_str().is_some_and(own));
    for (host, container) in surroundings.files.iter().filter(|(_, at)| !own(at)) {
        mounts.push(json!({
            "destination": container, "type": "bind", "source": host,
            "options": ["rbind", "rprivate"],
        }));
    }
    for (at, options) in &spec.host.tmpfs {
        mounts.push(tmpfs(at, options)?);
    }
    for mount in &spec.host.mounts {
        mounts.extend(given(spec, mount, surroundings)?);
    }
    // Last: what is given is seen, whatever is mounted above it.
    for given in &surroundings.given {
        let access = if given.writable { "rw" } else { "ro" };
        let options = ["rbind", access, "rprivate", "nosuid", "nodev", COPY].map(str::to_owned);
        let owner = given.owner.iter().map(|owner| format!("{OWNER}{owner}"));
        mounts.push(json!({
            "destination": given.target, "type": "bind", "source": given.source,
            "options": options.into_iter().chain(owner).collect::<Vec<_>>(),
        }));
    }
    Ok(mounts)
}

/// A directory of the host or a volume; a volume that is not looked up yet is nothing.
fn given(spec: &Spec, mount: &Mount, surroundings: &Surroundings) -> Result<Option<Value>> {
    let directory = |source: &Path, copy_up: bool| {
        let private = if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation };
        let mut options = vec![
            if mount.not_recursive { "bind" } else { "rbind" },
            if mount.read_only { "ro" } else { "rw" },
            private,
            LIVE,
        ];
        options.extend(copy_up.then_some(COPY_UP));
        json!({
            "destination": mount.target, "type": "bind", "source": source, "options": options,
        })
    };
    if mount.kind == MountKind::Bind {
        return Ok(Some(directory(Path::new(&mount.source), false)));
    }
    let copy_up = surroundings.first && !mount.no_copy && !mount.read_only;
    Ok(match surroundings.volumes.get(&mount.source) {
        None => None,
        Some(Backing::Directory(path)) => Some(directory(path, copy_up)),
        Some(Backing::Disk(path)) => {
            let mut options = vec![if mount.read_only { "ro" } else { "rw" }];
            options.extend(copy_up.then_some(COPY_UP));
            Some(json!({
                "destination": mount.target, "type": DISK_KIND, "source": path,
                "options": options,
            }))
        }
        Some(Backing::Memory(options)) => {
            let options = if mount.read_only { format!("{options},ro") } else { options.clone() };
            let mut shared = tmpfs(&mount.target, &options)?;
            shared["source"] = json!(format!("{MEMORY_VOLUME}{}", mount.source));
            Some(shared)
        }
        Some(Backing::Nfs(_)) if spec.host.annotations.contains_key(FILES_ONLY) => {
            // A container that does not run has no network: its place cannot be written.
            Some(tmpfs(&mount.target, "ro,size=4k,mode=000")?)
        }
        Some(Backing::Nfs(nfs)) => {
            let mut options = nfs.options.clone();
            if mount.read_only {
                options.push("ro".to_owned());
            }
            Some(json!({
                "destination": mount.target, "type": NFS_KIND, "source": nfs.source,
                "options": options,
            }))
        }
    })
}

/// Refuses what [`list`] would.
pub(crate) fn check(at: &str, options: &str) -> Result<()> {
    tmpfs(at, options).map(drop)
}

fn tmpfs(at: &str, options: &str) -> Result<Value> {
    let bad = |why: String| Error::Invalid(format!("invalid tmpfs `{at}`: {why}"));
    if !at.starts_with('/') || at.split('/').any(|part| part == "..") {
        return Err(bad("the path must be absolute and without `..`".to_owned()));
    }
    if at.trim_matches('/').is_empty() {
        return Err(bad("it would hide the whole root".to_owned()));
    }
    let mut all = vec!["noexec".to_owned(), "nosuid".to_owned(), "nodev".to_owned()];
    for option in options.split(',').map(str::trim).filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value.is_empty()) {
            (
                "ro" | "rw" | "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" | "sync"
                | "async" | "atime" | "noatime" | "diratime" | "nodiratime" | "relatime"
                | "norelatime" | "strictatime" | "nostrictatime",
                true,
            ) => {
                // The opposite may be a default.
                let opposite =
                    key.strip_prefix("no").map_or_else(|| format!("no{key}"), str::to_owned);
                all.retain(|known| *known != opposite && known != key);
                all.push(key.to_owned());
            }
            ("size" | "mode" | "uid" | "gid" | "nr_inodes" | "nr_blocks", false) => {
                all.push(option.to_owned());
            }
            _ => return Err(bad(format!("option `{option}` is not one of a tmpfs"))),
        }
    }
    Ok(json!({ "destination": at, "type": "tmpfs", "source": "tmpfs", "options": all }))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn options_override_the_defaults() {
        let mount = tmpfs("/run", "exec,size=64m,mode=1770").unwrap();
        assert_eq!(mount["options"], json!(["nosuid", "nodev", "exec", "size=64m", "mode=1770"]));
    }

    #[test]
    fn bad_ones_are_named() {
        for (at, options, named) in [
            ("run", "", "`run`"),
            ("/a/../..", "", ".."),
            ("/", "", "whole root"),
            ("/run", "huge=always", "huge=always"),
            ("/run", "size", "`size`"),
        ] {
            let error = check(at, options).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
