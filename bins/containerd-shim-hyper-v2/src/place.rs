//! Where a pod's things are on the host: names that `start`, `serve` and `delete` agree on.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hyper_task::{annotation, environment};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// File in the bundle with the supervisor's address, as containerd's own shims have it.
pub const ADDRESS_FILE: &str = "address";
/// File in the pod's run directory with the supervisor's process id.
pub const PID_FILE: &str = "supervisor.pid";

/// Hash of a bundle's path: two containerds, or two namespaces, may use the same id.
pub fn bundle_hash(bundle: &Path) -> String {
    let canonical = std::fs::canonicalize(bundle).unwrap_or_else(|_| bundle.to_owned());
    hex(&Sha256::digest(canonical.as_os_str().as_encoded_bytes())[..8])
}

/// The supervisor's socket: containerd's naming, so that tools find it, but for a user who may not write there.
pub fn socket_path(address: &str, namespace: &str, pod: &str) -> PathBuf {
    let name = Path::new(address).join(namespace).join(pod);
    let hash = hex(&Sha256::digest(name.as_os_str().as_encoded_bytes()));
    match std::env::var_os(environment::RUN_DIR) {
        // A socket's path has 107 bytes at most.
        Some(own) => PathBuf::from(own).join("s").join(&hash[..32]),
        None => Path::new("/run/containerd/s").join(hash),
    }
}

/// The pod a bundle's container joins; `None`: it is the first of its own.
pub fn joined_pod(bundle: &Path) -> anyhow::Result<Option<String>> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: std::collections::BTreeMap<String, String>,
    }
    let path = bundle.join("config.json");
    let file = File::open(&path).with_context(|| format!("open `{}`", path.display()))?;
    let config: Config = serde_json::from_reader(std::io::BufReader::new(file))
        .with_context(|| format!("`{}`", path.display()))?;
    let of = |key: &str| config.annotations.get(key);
    Ok(match of(annotation::CRI_CONTAINER_TYPE).map(String::as_str) {
        Some("container") => of(annotation::CRI_SANDBOX_ID).cloned(),
        _ => None,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_socket_has_containerds_name() {
        // The value in containerd-shim's own test.
        assert_eq!(
            socket_path("/run/containerd/containerd.sock", "default", "123"),
            Path::new(
                "/run/containerd/s/0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0"
            )
        );
    }

    #[test]
    fn only_containers_of_kubernetes_join() {
        let dir = tempfile::tempdir().unwrap();
        for (annotations, pod) in [
            (r#"{}"#, None),
            (
                r#"{"annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"s"}}"#,
                None,
            ),
            (
                r#"{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s"}}"#,
                Some("s"),
            ),
        ] {
            std::fs::write(dir.path().join("config.json"), annotations).unwrap();
            assert_eq!(joined_pod(dir.path()).unwrap().as_deref(), pod);
        }
    }
}
