//! hyperd's `config.json` for a runtime on the host: what a guest's agent would have looked up or
//! done is looked up here, and what cannot be had is refused by name.

use std::path::{Path, PathBuf};

use hyper_files::user;
use hyper_task::mount::{COPY, COPY_UP, DISK_KIND, LIVE, NFS_KIND, OWNER};
use serde_json::{Value, json};

use crate::ForeignError;
use crate::error::Result;

/// Annotation with the user as asked for; hyperd's.
const USER: &str = "io.hyper.user";
/// Annotation: a first process of ours.
const INIT: &str = "io.hyper.init";
/// Would make containerd's shim serve containers that are not its own.
const GROUP: &str = "io.containerd.runc.v2.group";

/// A directory that takes what the image has at `target`, while it is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyUp {
    pub target: String,
    pub directory: PathBuf,
}

/// The document for the runtime, with the merged root at `root`; and the volumes to fill first.
pub(crate) fn for_runtime(mut spec: Value, root: &Path) -> Result<(Value, Vec<CopyUp>)> {
    let note = |key: &str| spec["annotations"][key].as_str().map(str::to_owned);
    if note(INIT).is_some() {
        return Err(ForeignError::Invalid(
            "--init needs a guest, whose agent it is: take an image with an init, or a runtime \
             with a guest"
                .to_owned(),
        ));
    }
    let named = note(USER);
    if let Some(notes) = spec["annotations"].as_object_mut() {
        notes.retain(|key, _| !key.starts_with("io.hyper.") && key != GROUP);
    }
    spec["root"]["path"] = json!(root);
    become_user(&mut spec["process"], named.as_deref(), root)?;
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    if let Some(namespaces) = namespaces
        && !namespaces.iter().any(|namespace| namespace["type"] == "network")
    {
        // In a guest that is the guest's own.
        namespaces.push(json!({ "type": "network" }));
    }
    let mut volumes = Vec::new();
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        let target = mount["destination"].as_str().unwrap_or_default().to_owned();
        if mount["type"] == DISK_KIND {
            return Err(ForeignError::Invalid(format!(
                "volume at `{target}` is a disk with a file system that guests write, which the \
                 host does not mount: use a volume of driver local without a size, or a runtime \
                 with a guest"
            )));
        }
        if mount["type"] == NFS_KIND {
            return Err(ForeignError::Invalid(format!(
                "volume at `{target}` is a directory of an NFS server, which guests mount \
                 themselves: mount it on the host and use a volume of type=none,o=bind, or a \
                 runtime with a guest"
            )));
        }
        let source = mount["source"].as_str().map(PathBuf::from);
        if let Some(options) = mount["options"].as_array_mut() {
            let owner =
                options.iter().filter_map(Value::as_str).find_map(|o| o.strip_prefix(OWNER));
            if let (Some(owner), Some(source)) = (owner, &source) {
                give(source, owner, root, &target)?;
            }
            options.retain(|option| !option.as_str().is_some_and(|o| o.starts_with(OWNER)));
            let copy_up = options.iter().any(|option| option == COPY_UP);
            options.retain(|option| option != COPY_UP && option != LIVE && option != COPY);
            if let (true, Some(directory)) = (copy_up, source) {
                volumes.push(CopyUp { target, directory });
            }
        }
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        // A volume at /etc would hide our files in it.
        mounts.sort_by_key(|mount| {
            let at = mount["destination"].as_str().unwrap_or_default().trim_matches('/');
            at.matches('/').count()
        });
    }
    without_swap(&mut spec["linux"]["resources"], Path::new("/sys/fs/cgroup"));
    Ok((spec, volumes))
}

/// A file that was made for the container becomes that of a user of its image.
fn give(file: &Path, owner: &str, root: &Path, target: &str) -> Result<()> {
    let (passwd, group) = (user::read(root, "etc/passwd"), user::read(root, "etc/group"));
    let who = user::resolve(owner, &passwd, &group)
        .map_err(|error| ForeignError::Refused(format!("file {target}: {error}")))?;
    let mode = std::fs::symlink_metadata(file).map(|meta| meta.permissions());
    let given = mode.and_then(|mode| {
        std::os::unix::fs::lchown(file, Some(who.uid), Some(who.gid))?;
        // A change of owner takes the set-user-id bit away.
        std::fs::set_permissions(file, mode)
    });
    given.map_err(crate::error::file("set the owner of", file))
}

/// The OCI `process` of an exec.
pub(crate) fn exec(mut process: Value, root: &Path) -> Result<Value> {
    let named = process["user_name"].as_str().map(str::to_owned);
    become_user(&mut process, named.as_deref(), root)?;
    Ok(process)
}

/// Puts numbers for the names of users and groups, which the image knows.
fn become_user(process: &mut Value, named: Option<&str>, root: &Path) -> Result<()> {
    let unknown = |error: user::Unknown| ForeignError::Refused(error.to_string());
    let groups: Vec<String> = process["group_names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    let mut gids: Vec<Value> =
        process["user"]["additionalGids"].as_array().cloned().unwrap_or_default();
    let passwd = user::read(root, "etc/passwd");
    let group = user::read(root, "etc/group");
    let who = user::resolve(named.unwrap_or_default(), &passwd, &group).map_err(unknown)?;
    gids.extend(who.groups.iter().map(|gid| json!(gid)));
    for name in groups {
        gids.push(json!(user::group(&name, &group).map_err(unknown)?));
    }
    // A terminal of no size is an error to many programs.
    if process["terminal"] == true && process.get("consoleSize").is_none() {
        process["consoleSize"] = json!({ "height": 24, "width": 80 });
    }
    process["user"] = json!({ "uid": who.uid, "gid": who.gid, "additionalGids": gids });
    if let Some(fields) = process.as_object_mut() {
        fields.remove("user_name");
        fields.remove("group_names");
    }
    if let (Some(env), Some(home)) = (process["env"].as_array_mut(), who.home) {
        let set = |entry: &Value| entry.as_str().is_some_and(|entry| entry.starts_with("HOME="));
        if !env.iter().any(set) {
            env.push(json!(format!("HOME={home}")));
        }
    }
    Ok(())
}

/// Kernels that do not account for swap cannot limit it: as Docker does, the limit is left out.
fn without_swap(resources: &mut Value, cgroups: &Path) {
    let has_v1 = cgroups.join("memory/memory.memsw.limit_in_bytes").exists();
    let is_v1 = cgroups.join("memory").exists();
    if is_v1
        && !has_v1
        && let Some(memory) = resources["memory"].as_object_mut()
    {
        memory.remove("swap");
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn document() -> Value {
        json!({
            "root": {"path": "rootfs"},
            "annotations": {"io.hyper.user": "web", "io.hyper.hypervisor": "runc", "own": "1",
                "io.containerd.runc.v2.group": "g"},
            "process": {"env": ["A=1"], "user": {"uid": 0}, "group_names": ["video"]},
            "mounts": [{"destination": "/v/below", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/v", "type": "bind", "source": "/host",
                "options": ["rbind", LIVE, COPY_UP]}],
            "linux": {"namespaces": [{"type": "pid"}], "resources": {}},
        })
    }

    #[test]
    fn what_an_agent_would_do_is_done() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "web:x:33:34::/srv:/bin/sh\n").unwrap();
        std::fs::write(root.path().join("etc/group"), "video:x:44:\nadm:x:4:web\n").unwrap();
        let (spec, volumes) = for_runtime(document(), root.path()).unwrap();
        assert_eq!(
            spec["process"],
            json!({"env": ["A=1", "HOME=/srv"],
                "user": {"uid": 33, "gid": 34, "additionalGids": [4, 44]}})
        );
        assert_eq!(spec["annotations"], json!({"own": "1"}));
        assert_eq!(spec["mounts"][0]["options"], json!(["rbind"]));
        assert_eq!(volumes, [CopyUp { target: "/v".into(), directory: "/host".into() }]);
        assert_eq!(spec["linux"]["namespaces"][1], json!({"type": "network"}));
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        let error = for_runtime(document(), root.path()).unwrap_err().to_string();
        assert!(error.contains("unable to find user web"), "{error}");
    }

    #[test]
    fn disks_and_init_are_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let mut spec = document();
        spec["mounts"][1]["type"] = json!(DISK_KIND);
        spec["annotations"] = json!({});
        spec["process"]["group_names"] = json!([]);
        let error = for_runtime(spec.clone(), root.path()).unwrap_err().to_string();
        assert!(error.contains("`/v`"), "{error}");
        spec["annotations"][INIT] = json!("true");
        let error = for_runtime(spec, root.path()).unwrap_err().to_string();
        assert!(error.contains("--init"), "{error}");
    }
}
