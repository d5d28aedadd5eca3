//! UserPod's volumes of format `nas`: directories of NFS servers, as volumes that go with the pod.

use serde_json::{Value, json};

use super::{UserContainer, UserPod, UserVolume, VolumeReference};
use crate::{FieldResult, wrong};

/// Label of what goes with a pod, as the client removes it.
const OF_POD: &str = "io.hyper.pod";

/// The volume's format.
pub(super) fn is_nas(volume: &UserVolume) -> bool {
    volume.format == "nas"
}

/// The volume that a reference means, if there is one.
pub(super) fn meant<'a>(
    pod: &'a UserPod,
    reference: &'a VolumeReference,
) -> Option<&'a UserVolume> {
    let named = || pod.volumes.iter().find(|volume| volume.name == reference.volume);
    reference.detail.as_ref().or_else(named)
}

/// Docker's `Mounts` of a container's references to such volumes.
pub(super) fn mounts(pod: &UserPod, given: &UserContainer) -> FieldResult<Vec<Value>> {
    let mut mounts = Vec::new();
    for reference in &given.volumes {
        let Some(volume) = meant(pod, reference).filter(|volume| is_nas(volume)) else { continue };
        let field = |inner: &str| format!("volumes `{}`: {inner}", reference.path);
        for (name, given) in [
            ("fstype", !volume.fstype.is_empty()),
            ("cache", !volume.cache.is_empty()),
            ("option", volume.option.is_some()),
        ] {
            if given {
                return wrong(field(name), "it has no meaning for a directory of an NFS server");
            }
        }
        if volume.name.is_empty() {
            return wrong(field("name"), "a name for the volume is wanted");
        }
        let Some((server, path)) = volume.source.split_once(":/") else {
            let why = format!("`{}` is no ADDRESS:/PATH of an NFS server", volume.source);
            return wrong(field("source"), why);
        };
        if server.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err() {
            let why = format!("`{server}` is no IP address of an NFS server");
            return wrong(field("source"), why);
        }
        if !reference.path.starts_with('/') {
            return wrong(field("path"), "it is no absolute path");
        }
        let server = server.trim_matches(['[', ']']);
        mounts.push(json!({
            "Type": "volume",
            "Source": format!("{}-{}", pod.id, volume.name),
            "Target": reference.path,
            "ReadOnly": reference.read_only,
            "VolumeOptions": {
                "NoCopy": true,
                "Labels": { (OF_POD): pod.id },
                "DriverConfig": { "Name": "local", "Options": {
                    "type": "nfs", "o": format!("addr={server}"), "device": format!(":/{path}"),
                } },
            },
        }));
    }
    Ok(mounts)
}
