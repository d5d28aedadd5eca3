//! Where things are on the host.
//!
//! ```text
//! DATA_ROOT/                     survives a reboot
//!   hyperd.lock                  held by the one hyperd of this root; its pid
//!   state.db                     SQLite
//!   images/                      the image store (hyper-image)
//!   templates/                   empty ext4 disks, one per size
//!   containers/ID/               upper.ext4, ID-json.log or ID-local.log, hosts, hostname, resolv.conf
//!   volumes/NAME/                _data/ or disk.ext4
//! EXEC_ROOT/                     a tmpfs: gone after a reboot
//!   events.sock                  supervisors publish here
//!   pods/ID/                     the bundle of a running container
//!   secrets/ID/                  what a container was given as secrets
//!   netns/ID                     the network namespace of a running container's pod
//!   networks/ID.json, pod-ID.json  names that resolvers know, per network and per pod
//!   rules                        there: the packet filter has a table of ours
//! ```

use std::path::{Path, PathBuf};

/// The two roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
}

impl Layout {
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.data_root.join("state.db")
    }

    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.data_root.join("images")
    }

    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.data_root.join("templates")
    }

    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.data_root.join("volumes")
    }

    #[must_use]
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }

    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.data_root.join("containers")
    }

    #[must_use]
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    #[must_use]
    pub fn upper(&self, id: &str) -> PathBuf {
        self.container(id).join("upper.ext4")
    }

    /// What a container of another runtime writes: `upper` and `work` of an overlay.
    #[must_use]
    pub fn writes(&self, id: &str) -> PathBuf {
        self.container(id).join("fs")
    }

    /// Where images' roots are mounted for runtimes of others.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.exec_root.join("roots")
    }

    #[must_use]
    pub fn log(&self, id: &str, driver: &str) -> PathBuf {
        let kind = if driver == "json-file" { "json" } else { "local" };
        self.container(id).join(format!("{id}-{kind}.log"))
    }

    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.exec_root.join("pods")
    }

    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.pods().join(id)
    }

    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.exec_root.join("secrets")
    }

    #[must_use]
    pub fn secrets_of(&self, id: &str) -> PathBuf {
        self.secrets().join(id)
    }

    #[must_use]
    pub fn namespaces(&self) -> PathBuf {
        self.exec_root.join("netns")
    }

    #[must_use]
    pub fn namespace(&self, id: &str) -> PathBuf {
        self.namespaces().join(id)
    }

    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.exec_root.join("networks")
    }

    #[must_use]
    pub fn network_names(&self, network: &str) -> PathBuf {
        self.networks().join(format!("{network}.json"))
    }

    #[must_use]
    pub fn pod_names(&self, id: &str) -> PathBuf {
        self.networks().join(format!("pod-{id}.json"))
    }

    /// What is pinned for the names of a pod's policies.
    #[must_use]
    pub fn pod_pins(&self, id: &str) -> PathBuf {
        self.networks().join(format!("pod-{id}.pins"))
    }

    #[must_use]
    pub fn rules_lock(&self) -> PathBuf {
        self.networks().join("rules.lock")
    }

    #[must_use]
    pub fn rules_mark(&self) -> PathBuf {
        self.exec_root.join("rules")
    }

    #[must_use]
    pub fn events_socket(&self) -> PathBuf {
        self.exec_root.join("events.sock")
    }
}

/// Makes a directory, with its parents, that others may pass through but not list: the jailed
/// hypervisor runs under a uid of its own.
pub(crate) fn private_directory(path: &Path) -> crate::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(crate::Error::file("make directory", path))
}
