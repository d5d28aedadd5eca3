//! `-v`, `--mount`, `--volumes-from` and `--tmpfs`: from Docker's words to the engine's, and back.
//!
//! What has no word is refused by name. SELinux labels (`z`, `Z`) and consistency (`cached`, …) ask
//! for nothing here: no process of a container runs in the host's kernel, and there is one
//! consistency.

use std::collections::BTreeMap;

use bollard_stubs::models::{
    HostConfig, Mount as Wish, MountBindOptionsPropagationEnum as Propagation, MountType,
};
use hyper_engine::VolumeDriver;
use hyper_engine::spec::{HostSpec, Mount, MountKind};
use serde_json::{Value, json};

use super::create::sorted;
use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// Directories, files and volumes, in the order they were given.
pub(super) fn mounts(host: &HostConfig) -> ApiResult<Vec<Mount>> {
    let driver = host.volume_driver.clone().unwrap_or_default();
    let mut all = Vec::new();
    for text in host.binds.iter().flatten() {
        all.push(bind(text, &driver)?);
    }
    for wish in host.mounts.iter().flatten() {
        all.extend(mount(wish)?);
    }
    Ok(all)
}

/// `SOURCE:TARGET[:MODE]`, or an anonymous volume's target alone.
fn bind(text: &str, driver: &str) -> ApiResult<Mount> {
    let bad = |why: &str| ApiError::invalid(format!("invalid volume specification: '{text}'{why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, mode] => (source, target, mode),
        _ => return Err(bad("")),
    };
    if target.is_empty() || (parts.len() > 1 && source.is_empty()) {
        return Err(bad(""));
    }
    if !target.starts_with('/') {
        return Err(bad(&format!(
            ": invalid mount config: invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    let mut mount = Mount {
        kind: if source.starts_with('/') { MountKind::Bind } else { MountKind::Volume },
        source: source.to_owned(),
        target: target.to_owned(),
        mode: mode.to_owned(),
        create_source: true,
        ..Mount::default()
    };
    if mount.kind == MountKind::Volume {
        driver.clone_into(&mut mount.driver);
    }
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => mount.read_only = true,
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" if mount.kind == MountKind::Volume => mount.no_copy = true,
            "private" | "rprivate" => word.clone_into(&mut mount.propagation),
            "shared" | "rshared" | "slave" | "rslave" => return Err(propagation(word, target)),
            _ => return Err(ApiError::invalid(format!("invalid mode: {mode}"))),
        }
    }
    Ok(mount)
}

fn propagation(word: &str, target: &str) -> ApiError {
    ApiError::unsupported(format!(
        "bind propagation \"{word}\" of {target} is not supported: what is mounted on the host \
         later is not mounted in a guest, nor the other way round: use rprivate"
    ))
}

/// None: a tmpfs, which is [`tmpfs`]'s.
fn mount(wish: &Wish) -> ApiResult<Option<Mount>> {
    let target = wish.target.clone().unwrap_or_default();
    let no = |option: &str, why: &str| {
        Err(ApiError::unsupported(format!(
            "HostConfig.Mounts {target} {option} is not supported: {why}"
        )))
    };
    let invalid = |why: String| Err(ApiError::invalid(format!("invalid mount config for {why}")));
    let mut mount = Mount {
        source: wish.source.clone().unwrap_or_default(),
        target: target.clone(),
        read_only: wish.read_only == Some(true),
        ..Mount::default()
    };
    if target.is_empty() {
        return Err(ApiError::invalid("invalid mount config: field Target must not be empty"));
    }
    let kind = wish.typ.unwrap_or(MountType::VOLUME);
    if kind != MountType::BIND && wish.bind_options.is_some() {
        return invalid(format!("type \"{kind}\": field BindOptions must not be specified"));
    }
    if kind != MountType::VOLUME && wish.volume_options.is_some() {
        return invalid(format!("type \"{kind}\": field VolumeOptions must not be specified"));
    }
    if kind != MountType::TMPFS && wish.tmpfs_options.is_some() {
        return invalid(format!("type \"{kind}\": field TmpfsOptions must not be specified"));
    }
    match kind {
        MountType::BIND => {
            if mount.source.is_empty() {
                return invalid("type \"bind\": field Source must not be empty".to_owned());
            }
            if !mount.source.starts_with('/') {
                return invalid(format!(
                    "type \"bind\": invalid mount path: '{}' mount path must be absolute",
                    mount.source
                ));
            }
            let Some(options) = &wish.bind_options else { return Ok(Some(mount)) };
            mount.create_source = options.create_mountpoint == Some(true);
            mount.not_recursive = options.non_recursive == Some(true);
            if options.read_only_non_recursive == Some(true) && mount.read_only {
                return no(
                    "BindOptions.ReadOnlyNonRecursive",
                    "what is mounted below a read-only bind is read-only, too: use bind-recursive=disabled",
                );
            }
            match options.propagation {
                None | Some(Propagation::EMPTY) => {}
                Some(Propagation::PRIVATE | Propagation::RPRIVATE) => {
                    let word = options.propagation.map(|word| word.to_string());
                    mount.propagation = word.unwrap_or_default();
                }
                Some(word) => return Err(propagation(word.as_ref(), &target)),
            }
        }
        MountType::VOLUME => {
            mount.kind = MountKind::Volume;
            if mount.source.contains('/') {
                return invalid(format!(
                    "type \"volume\": '{}' is no name of a volume: use type=bind for a directory",
                    mount.source
                ));
            }
            let Some(options) = &wish.volume_options else { return Ok(Some(mount)) };
            mount.no_copy = options.no_copy == Some(true);
            mount.labels = sorted(options.labels.clone());
            if let Some(config) = &options.driver_config {
                mount.driver = config.name.clone().unwrap_or_default();
                mount.options = sorted(config.options.clone());
            }
            if options.subpath.as_ref().is_some_and(|path| !path.is_empty()) {
                return no(
                    "VolumeOptions.Subpath",
                    "a link in the volume could lead it to any directory of the host: mount the \
                     whole volume",
                );
            }
        }
        MountType::TMPFS => {
            if !mount.source.is_empty() {
                return invalid("type \"tmpfs\": field Source must not be specified".to_owned());
            }
            return Ok(None);
        }
        other => return no(&format!("of type \"{other}\""), "bind, volume and tmpfs are"),
    }
    Ok(Some(mount))
}

/// `--tmpfs`, and `--mount type=tmpfs`.
pub(super) fn tmpfs(host: &HostConfig) -> BTreeMap<String, String> {
    let mut all = sorted(host.tmpfs.clone());
    for mount in host.mounts.iter().flatten().filter(|mount| mount.typ == Some(MountType::TMPFS)) {
        let mut options = Vec::new();
        if let Some(sizes) = &mount.tmpfs_options {
            if let Some(size) = sizes.size_bytes.filter(|size| *size > 0) {
                options.push(format!("size={size}"));
            }
            if let Some(mode) = sizes.mode.filter(|mode| *mode > 0) {
                options.push(format!("mode={mode:o}"));
            }
            options.extend(sizes.options.iter().flatten().map(|option| option.join("=")));
        }
        if mount.read_only == Some(true) {
            options.push("ro".to_owned());
        }
        all.insert(mount.target.clone().unwrap_or_default(), options.join(","));
    }
    all
}

/// `Mounts` of an inspected or listed container. Places of volumes are those of their names.
pub(super) fn shown(app: &App, host: &HostSpec) -> Vec<Value> {
    let layout = &app.engine.config().layout;
    let mut all: Vec<Value> = host
        .mounts
        .iter()
        .map(|mount| match mount.kind {
            MountKind::Bind => json!({
                "Type": "bind", "Source": mount.source, "Destination": mount.target,
                "Mode": mount.mode, "RW": !mount.read_only,
                "Propagation": if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation },
            }),
            MountKind::Volume => {
                let directory = layout.volume(&mount.source);
                let source = match mount.driver.as_str() {
                    driver if driver == VolumeDriver::Local.word() => {
                        directory.join("_data").display().to_string()
                    }
                    driver if driver == VolumeDriver::Disk.word() => {
                        directory.join("disk.ext4").display().to_string()
                    }
                    _ => String::new(),
                };
                json!({
                    "Type": "volume", "Name": mount.source, "Source": source,
                    "Destination": mount.target, "Driver": mount.driver,
                    "Mode": if mount.mode.is_empty() { "z" } else { &mount.mode },
                    "RW": !mount.read_only, "Propagation": "",
                })
            }
        })
        .collect();
    all.extend(host.tmpfs.iter().map(|(path, options)| {
        json!({
            "Type": "tmpfs", "Source": "", "Destination": path, "Mode": options,
            "RW": !options.split(',').any(|option| option == "ro"), "Propagation": "",
        })
    }));
    all
}

/// Whether a container mounts `wanted`, the name of a volume or a path on either side.
pub(super) fn has(host: &HostSpec, wanted: &str) -> bool {
    host.mounts.iter().any(|mount| mount.source == wanted || mount.target == wanted)
}

#[cfg(test)]
mod test {
    use super::*;

    fn read(host: &str) -> ApiResult<Vec<Mount>> {
        mounts(&serde_json::from_str(host).unwrap())
    }

    #[test]
    fn binds_in_all_forms() {
        let all = read(
            r#"{"Binds":["/a:/b","/a:/c:ro,Z","name:/d:nocopy","/e","/x:/y:rprivate"],
            "VolumeDriver":"disk"}"#,
        )
        .unwrap();
        let kinds: Vec<_> = all.iter().map(|mount| mount.kind).collect();
        use MountKind::{Bind, Volume};
        assert_eq!(kinds, [Bind, Bind, Volume, Volume, Bind]);
        assert!(all[0].create_source && !all[0].read_only && all[1].read_only);
        assert_eq!((all[2].source.as_str(), all[2].no_copy), ("name", true));
        assert_eq!((all[3].source.as_str(), all[3].driver.as_str()), ("", "disk"));
        assert_eq!(all[4].propagation, "rprivate");
        for (bad, named) in [
            ("/a:/b:rshared", "rshared"),
            ("/a:b", "must be absolute"),
            ("/a:/b:x", "invalid mode: x"),
            ("a:/b:c:d", "a:/b:c:d"),
            (":/b", ":/b"),
            ("/a:/b:nocopy", "nocopy"),
        ] {
            let host = json!({ "Binds": [bad] }).to_string();
            assert!(read(&host).unwrap_err().message.contains(named), "{bad}");
        }
    }

    #[test]
    fn mounts_in_all_forms() {
        let all = read(
            r#"{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true},
            {"Type":"volume","Source":"v1","Target":"/c","VolumeOptions":{"NoCopy":true,
             "Labels":{"k":"v"},"DriverConfig":{"Name":"disk","Options":{"size":"1G"}}}},
            {"Type":"tmpfs","Target":"/t"}]}"#,
        )
        .unwrap();
        assert_eq!(all.len(), 2);
        assert!(all[0].read_only && !all[0].create_source);
        assert_eq!((all[1].driver.as_str(), all[1].options["size"].as_str()), ("disk", "1G"));
        assert!(all[1].no_copy && all[1].labels["k"] == "v");
        for (bad, named) in [
            (r#"{"Type":"bind","Target":"/b"}"#, "Source"),
            (r#"{"Type":"bind","Source":"a","Target":"/b"}"#, "'a'"),
            (
                r#"{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"Subpath":"x"}}"#,
                "Subpath",
            ),
            (
                r#"{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"rslave"}}"#,
                "rslave",
            ),
            (r#"{"Type":"npipe","Source":"/a","Target":"/b"}"#, "npipe"),
            (r#"{"Type":"tmpfs","Target":"/b","BindOptions":{}}"#, "BindOptions"),
        ] {
            let host = format!(r#"{{"Mounts":[{bad}]}}"#);
            assert!(read(&host).unwrap_err().message.contains(named), "{bad}");
        }
    }
}
