//! The mounts of `config.json`: the guest's own kinds pass, small host files are injected, host
//! directories are refused.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_link::message::FileInjection;
use serde_json::{Value, json};

use crate::PodError;

/// Largest injected file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// All injected files of a container: one message to the agent carries them, as base64.
const MAX_FILES: u64 = 2 << 20;
/// Kinds that a guest kernel mounts by itself.
const GUEST_KINDS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// Takes the binds out of `value["mounts"]`; returns the files to inject. Blocking.
pub(crate) fn carry_mounts(value: &mut Value) -> Result<Vec<FileInjection>, PodError> {
    let mounts = value.get_mut("mounts").and_then(Value::as_array_mut);
    let Some(mounts) = mounts else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    let mut total = 0;
    let mut kept = Vec::with_capacity(mounts.len());
    for mount in mounts.drain(..) {
        let kind = mount["type"].as_str().unwrap_or_default().to_owned();
        if GUEST_KINDS.contains(&kind.as_str()) {
            kept.push(mount);
        } else if kind == "bind" || is_bind(&mount) {
            match bind(&mount)? {
                Bind::File(file, bytes) => {
                    total += bytes;
                    files.push(file);
                }
                Bind::Guest(mount) => kept.push(mount),
            }
        } else {
            return Err(PodError::Unsupported(format!(
                "mount of type `{kind}` at `{}`: a guest mounts {} only",
                destination(&mount),
                GUEST_KINDS.join(", ")
            )));
        }
    }
    if total > MAX_FILES {
        return Err(PodError::Unsupported(format!(
            "files bound into the container have {total} bytes together, more than {MAX_FILES}"
        )));
    }
    *mounts = kept;
    Ok(files)
}

enum Bind {
    File(FileInjection, u64),
    Guest(Value),
}

fn bind(mount: &Value) -> Result<Bind, PodError> {
    let destination = destination(mount);
    let source = Path::new(mount["source"].as_str().unwrap_or_default());
    // CRI shares one tmpfs of the host with a pod's containers; the guest has its own.
    if destination == "/dev/shm" {
        return Ok(Bind::Guest(json!({
            "destination": destination, "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        })));
    }
    let fail = || PodError::file("open bind mount source", source);
    // Looked at before opening, which would block on a FIFO.
    let meta = std::fs::metadata(source).map_err(fail())?;
    let kind = meta.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() {
            "host directory"
        } else if kind.is_socket() {
            "host socket"
        } else {
            "host device or FIFO"
        };
        return Err(PodError::Unsupported(format!(
            "{what} `{}` cannot be mounted at `{destination}`: host directories cannot be shared \
             with a guest yet, only regular files of up to 1 MiB",
            source.display()
        )));
    }
    let mut content = Vec::new();
    File::open(source)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
        .map_err(fail())?;
    let bytes = content.len() as u64;
    if bytes > MAX_FILE {
        return Err(PodError::Unsupported(format!(
            "host file `{}` cannot be mounted at `{destination}`: larger than {MAX_FILE} bytes",
            source.display()
        )));
    }
    let file = FileInjection {
        path: destination.to_owned(),
        content: STANDARD.encode(&content),
        mode: meta.mode() & 0o7777,
        read_only: options(mount).any(|option| option == "ro"),
    };
    Ok(Bind::File(file, bytes))
}

fn is_bind(mount: &Value) -> bool {
    options(mount).any(|option| option == "bind" || option == "rbind")
}

fn options(mount: &Value) -> impl Iterator<Item = &str> {
    mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn destination(mount: &Value) -> &str {
    mount["destination"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn files_are_injected_and_directories_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        std::fs::write(&file, "127.0.0.1 localhost\n").unwrap();
        let mut value = json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": file, "options": ["rbind", "ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind"]},
        ]});
        let files = carry_mounts(&mut value).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!((files[0].path.as_str(), files[0].read_only), ("/etc/hosts", true));
        assert_eq!(STANDARD.decode(&files[0].content).unwrap(), b"127.0.0.1 localhost\n");
        assert_eq!(value["mounts"][0]["type"], "proc");
        assert_eq!(value["mounts"][1]["type"], "tmpfs");

        for (mount, words) in [
            (json!({"destination": "/d", "type": "bind", "source": dir.path()}), "host directory"),
            (
                json!({"destination": "/d", "type": "none", "options": ["bind"], "source": "/dev/null"}),
                "host device",
            ),
            (json!({"destination": "/d", "type": "nfs"}), "`nfs`"),
            (json!({"destination": "/d", "type": "bind", "source": "/no/such"}), "/no/such"),
        ] {
            let error = carry_mounts(&mut json!({"mounts": [mount]})).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        let large = dir.path().join("large");
        std::fs::write(&large, vec![0; 1 + (1 << 20)]).unwrap();
        let mount = json!({"destination": "/d", "type": "bind", "source": large});
        assert!(carry_mounts(&mut json!({"mounts": [mount]})).is_err());
    }
}
