//! Volumes: data that outlives containers.
//!
//! | driver | is | shared by pods | options |
//! | --- | --- | --- | --- |
//! | `local` | a directory of the host, `volumes/NAME/_data`; or, with `type` and `device`, a directory elsewhere, a tmpfs or a directory of an NFS server | yes, live | as Docker's |
//! | `disk` | a sparse ext4 file, a block device of the guest: no file system of the host in its way | no: one writes, or several read | `size` |
//! | `tmpfs` | memory of the guest, gone with it | no | those of a tmpfs |
//!
//! States: a volume is there or not. Containers that name it keep it, whether they run or not.
//!
//! Invariants:
//! - What makes, uses or removes a volume holds [`Volumes::all`] meanwhile: none is removed under
//!   a container that is just being made.
//! - The host reads no file system that a guest has written; a `local` volume's files it never
//!   follows further than their own names.

mod nfs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::container::spec::{Mount, MountKind};
use crate::core::Core;
use crate::engine::Engine;
use crate::event::Kind;
use crate::{Error, Result, id, layout};

pub(crate) use nfs::Nfs;

/// Docker's label of a volume that nobody named.
const ANONYMOUS: &str = "com.docker.volume.anonymous";
/// Of a `disk` volume without `size`; sparse.
const DISK_BYTES: u64 = 10 << 30;
/// The least that has room for a file system, its journal, and something in it.
const MIN_DISK_BYTES: u64 = 64 << 20;

/// The drivers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    #[default]
    Local,
    Disk,
    Tmpfs,
}

impl Driver {
    pub const WORDS: [&str; 3] = ["disk", "local", "tmpfs"];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Disk => "disk",
            Self::Tmpfs => "tmpfs",
        }
    }

    fn parse(word: &str) -> Result<Self> {
        match word {
            "" | "local" => Ok(Self::Local),
            "disk" => Ok(Self::Disk),
            "tmpfs" => Ok(Self::Tmpfs),
            other => Err(Error::Invalid(format!(
                "error looking up volume plugin {other}: plugin \"{other}\" not found: this engine \
                 has {}",
                Self::WORDS.join(", ")
            ))),
        }
    }
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Volume {
    pub name: String,
    pub driver: Driver,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// Made for one container, which takes it along when it is removed with its volumes.
    pub anonymous: bool,
}

/// What a volume is made from; empty name: one is made up.
#[derive(Debug, Clone, Default)]
pub struct VolumeRequest {
    pub name: String,
    pub driver: String,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// A volume and who has it.
#[derive(Debug, Clone)]
pub struct VolumeView {
    pub volume: Volume,
    /// Where it is on the host; empty: nowhere.
    pub mountpoint: PathBuf,
    /// Ids of containers that mount it.
    pub users: Vec<String>,
}

/// All of them, by name.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    pub all: tokio::sync::Mutex<BTreeMap<String, Volume>>,
}

/// What is mounted in a container for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backing {
    Directory(PathBuf),
    Disk(PathBuf),
    /// Options of a tmpfs.
    Memory(String),
    /// The guest mounts it.
    Nfs(Nfs),
}

impl Volume {
    /// What it is on the host.
    pub(crate) fn backing(&self, layout: &layout::Layout) -> Result<Backing> {
        let option = |key: &str| self.options.get(key).map_or("", String::as_str);
        Ok(match self.driver {
            Driver::Disk => Backing::Disk(layout.volume(&self.name).join("disk.ext4")),
            Driver::Tmpfs => Backing::Memory(tmpfs_options(&self.options)),
            Driver::Local => match (option("type"), option("device")) {
                ("", "") => Backing::Directory(layout.volume(&self.name).join("_data")),
                ("tmpfs", _) => Backing::Memory(option("o").to_owned()),
                ("nfs" | "nfs4", device) => Backing::Nfs(
                    // Looked at when it was made.
                    Nfs::parse(device, option("o")).unwrap_or_default(),
                ),
                _ => Backing::Directory(option("device").into()),
            },
        })
    }
}

/// `size=1m,mode=700`, in the order of the keys.
fn tmpfs_options(options: &BTreeMap<String, String>) -> String {
    let words = options.iter().map(|(key, value)| match value.as_str() {
        "" => key.clone(),
        value => format!("{key}={value}"),
    });
    words.collect::<Vec<_>>().join(",")
}

impl Engine {
    /// Makes a volume; one that is there with this name and driver is as good.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Conflict`] when it has another driver.
    pub async fn create_volume(&self, request: VolumeRequest) -> Result<VolumeView> {
        let core = self.core.clone();
        self.detached(async move {
            let mut all = core.volumes.all.lock().await;
            let volume = make(&core, &mut all, request, false).await?;
            Ok(view(&core, &volume))
        })
        .await
    }

    /// # Errors
    /// [`Error::NoSuchVolume`].
    pub async fn volume(&self, name: &str) -> Result<VolumeView> {
        let all = self.core.volumes.all.lock().await;
        all.get(name).map(|volume| view(&self.core, volume)).ok_or_else(|| missing(name))
    }

    /// All volumes, by name.
    pub async fn volumes(&self) -> Vec<VolumeView> {
        let all = self.core.volumes.all.lock().await;
        all.values().map(|volume| view(&self.core, volume)).collect()
    }

    /// Removes a volume that no container has.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::Conflict`] when it is in use.
    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        let (core, name) = (self.core.clone(), name.to_owned());
        self.detached(async move {
            let mut all = core.volumes.all.lock().await;
            remove_unused(&core, &mut all, &name).await
        })
        .await
    }

    /// Bytes that it takes on the host.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn volume_bytes(&self, volume: &Volume) -> Result<u64> {
        let backing = volume.backing(&self.core.layout)?;
        // A directory elsewhere is not ours to count.
        let own = self.core.layout.volume(&volume.name);
        crate::core::blocking(move || match backing {
            Backing::Directory(path) | Backing::Disk(path) if path.starts_with(&own) => used(&own),
            _ => Ok(0),
        })
        .await
    }

    /// The anonymous volumes of a container.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::AmbiguousContainer`].
    pub fn anonymous_volumes(&self, reference: &str) -> Result<Vec<String>> {
        let handle = self.core.find(reference)?;
        let names = anonymous(&handle.view.borrow().spec.host.mounts);
        Ok(names)
    }

    /// Removes those of `names` that are anonymous and that no container has.
    pub async fn remove_orphans(&self, names: Vec<String>) {
        remove_orphans(&self.core, names).await;
    }
}

/// Names of the volumes among `mounts` that were made for their container.
pub(crate) fn anonymous(mounts: &[Mount]) -> Vec<String> {
    let own = mounts.iter().filter(|mount| mount.kind == MountKind::Volume && mount.anonymous);
    own.map(|mount| mount.source.clone()).collect()
}

pub(crate) async fn remove_orphans(core: &Arc<Core>, names: Vec<String>) {
    let mut all = core.volumes.all.lock().await;
    for name in names {
        match remove_unused(core, &mut all, &name).await {
            // Another container took it over (--volumes-from), or somebody was faster.
            Ok(()) | Err(Error::Conflict(_) | Error::NoSuchVolume(_)) => {}
            Err(error) => tracing::warn!(volume = name, error = error.chain(), "remove"),
        }
    }
}

/// Makes a volume, or finds it. The caller holds the lock.
pub(crate) async fn make(
    core: &Arc<Core>,
    all: &mut BTreeMap<String, Volume>,
    request: VolumeRequest,
    anonymous: bool,
) -> Result<Volume> {
    let driver = Driver::parse(&request.driver)?;
    let named = !request.name.is_empty();
    let name = if named { request.name } else { id::fresh() };
    if !id::is_name(&name) {
        return Err(Error::Invalid(format!(
            "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, \
             use absolute path"
        )));
    }
    if let Some(known) = all.get(&name) {
        // No driver named means: whatever it has.
        if !request.driver.is_empty() && known.driver != driver {
            return Err(Error::Conflict(format!(
                "A volume named {name} already exists with the {} driver. Choose a different volume \
                 name.",
                known.driver.word()
            )));
        }
        if !request.options.is_empty() && known.options != request.options {
            return Err(Error::Conflict(format!(
                "a volume named {name} exists with other options: remove it, or choose another name"
            )));
        }
        return Ok(known.clone());
    }
    let mut volume = Volume {
        name,
        driver,
        options: request.options,
        labels: request.labels,
        created_ns: hyper_stdio::now_ns(),
        anonymous,
    };
    if anonymous || !named {
        volume.labels.insert(ANONYMOUS.to_owned(), String::new());
    }
    check(&volume)?;
    let (layout, made) = (core.layout.clone(), volume.clone());
    let templates = core.layout.templates();
    let directory = core.layout.volume(&volume.name);
    let done = crate::core::blocking(move || place(&layout, &templates, &made)).await;
    let done = match done {
        Ok(()) => core.store.insert_volume(&volume).await,
        failed => failed,
    };
    if let Err(error) = done {
        let _ = tokio::fs::remove_dir_all(&directory).await;
        return Err(error);
    }
    all.insert(volume.name.clone(), volume.clone());
    event(core, &volume, "create");
    Ok(volume)
}

/// Options that mean something, with values that are possible.
fn check(volume: &Volume) -> Result<()> {
    let bad = |why: String| Err(Error::Invalid(format!("volume {}: {why}", volume.name)));
    let known: &[&str] = match volume.driver {
        Driver::Local => &["type", "device", "o"],
        Driver::Disk => &["size"],
        Driver::Tmpfs => &["size", "mode", "uid", "gid", "nr_inodes"],
    };
    if let Some(key) = volume.options.keys().find(|key| !known.contains(&key.as_str())) {
        return bad(format!(
            "invalid option: \"{key}\": driver `{}` has {}",
            volume.driver.word(),
            known.join(", ")
        ));
    }
    let option = |key: &str| volume.options.get(key).map_or("", String::as_str);
    match volume.driver {
        Driver::Local if volume.options.is_empty() => Ok(()),
        Driver::Local => match option("type") {
            "tmpfs" => crate::oci::check_tmpfs("/volume", option("o")),
            "nfs" | "nfs4" => match Nfs::parse(option("device"), option("o")) {
                Ok(_) => Ok(()),
                Err(why) => bad(format!("type=nfs: {why}")),
            },
            "none" | "bind" | ""
                if option("o").split(',').any(|o| matches!(o, "bind" | "rbind")) =>
            {
                if Path::new(option("device")).is_absolute() {
                    Ok(())
                } else {
                    bad(format!("device \"{}\" is no absolute path", option("device")))
                }
            }
            kind => bad(format!(
                "type \"{kind}\" with device \"{}\" is not mounted: type=tmpfs, type=nfs, and \
                 type=none with o=bind are",
                option("device")
            )),
        },
        Driver::Disk => disk_bytes(volume).map(drop),
        Driver::Tmpfs => crate::oci::check_tmpfs("/volume", &tmpfs_options(&volume.options)),
    }
}

fn disk_bytes(volume: &Volume) -> Result<u64> {
    let Some(text) = volume.options.get("size") else { return Ok(DISK_BYTES) };
    let least = MIN_DISK_BYTES;
    match bytes(text) {
        Some(size) if size >= least => Ok(size.next_multiple_of(4096)),
        _ => Err(Error::Invalid(format!(
            "volume {}: size \"{text}\" is none: {} MiB at least, e.g. 10G",
            volume.name,
            least >> 20
        ))),
    }
}

/// A size as people write it: `10`, `10k`, `10M`, `10GB`, `10GiB`; units of 1024, below 1 PiB.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let number: u64 = lower[..digits].parse().ok()?;
    let unit = match lower[digits..].trim() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit).filter(|bytes| *bytes < 1 << 50)
}

/// Makes what is on the host. Blocks.
fn place(layout: &layout::Layout, templates: &Path, volume: &Volume) -> Result<()> {
    let directory = layout.volume(&volume.name);
    layout::private_directory(&directory)?;
    match volume.backing(layout)? {
        Backing::Directory(path) if path.starts_with(&directory) => {
            use std::os::unix::fs::PermissionsExt as _;
            let fail = || Error::file("make directory", &path);
            // Left by a hyperd that was killed in between.
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(fail()(error));
                }
                _ => {}
            }
            // As Docker: the guest's users are to reach it, whatever hyperd's umask.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(fail())
        }
        Backing::Disk(path) => {
            let _ = std::fs::remove_file(&path);
            hyper_disk::fresh_ext4_from(templates, &path, disk_bytes(volume)?).map_err(Error::Disk)
        }
        Backing::Directory(_) | Backing::Memory(_) | Backing::Nfs(_) => Ok(()),
    }
}

/// Removes a volume. The caller holds the lock.
pub(crate) async fn remove_unused(
    core: &Arc<Core>,
    all: &mut BTreeMap<String, Volume>,
    name: &str,
) -> Result<()> {
    let volume = all.get(name).cloned().ok_or_else(|| missing(name))?;
    let users = users(core, name);
    if !users.is_empty() {
        return Err(Error::Conflict(format!(
            "remove {name}: volume is in use - [{}]",
            users.join(", ")
        )));
    }
    // The record first: a directory without one is removed when hyperd starts.
    core.store.delete_volume(name).await?;
    all.remove(name);
    let directory = core.layout.volume(name);
    let gone = crate::core::blocking(move || {
        std::fs::remove_dir_all(&directory).map_err(Error::file("remove", &directory))
    });
    if let Err(error) = gone.await {
        tracing::warn!(
            volume = name,
            error = error.chain(),
            "its directory stays until hyperd starts again"
        );
    }
    event(core, &volume, "destroy");
    Ok(())
}

/// At the start of the engine: the records, and nothing beside them.
pub(crate) async fn restore(core: &Arc<Core>) -> Result<()> {
    let records = core.store.volumes().await?;
    let mut all = core.volumes.all.lock().await;
    all.extend(records.into_iter().map(|volume| (volume.name.clone(), volume)));
    let known: Vec<String> = all.keys().cloned().collect();
    let directory = core.layout.volumes();
    crate::core::blocking(move || {
        let fail = || Error::file("read", &directory);
        for entry in std::fs::read_dir(&directory).map_err(fail())? {
            let entry = entry.map_err(fail())?;
            let unknown =
                entry.file_name().to_str().is_none_or(|name| !known.iter().any(|k| k == name));
            if unknown {
                std::fs::remove_dir_all(entry.path())
                    .map_err(Error::file("remove", entry.path()))?;
            }
        }
        Ok(())
    })
    .await
}

fn users(core: &Core, name: &str) -> Vec<String> {
    let uses = |mounts: &[Mount]| {
        mounts.iter().any(|mount| mount.kind == MountKind::Volume && mount.source == name)
    };
    let views = core.views().into_iter().filter(|view| uses(&view.spec.host.mounts));
    views.map(|view| view.spec.id.clone()).collect()
}

fn view(core: &Core, volume: &Volume) -> VolumeView {
    let mountpoint = match volume.backing(&core.layout) {
        Ok(Backing::Directory(_)) if volume.driver == Driver::Local => {
            core.layout.volume(&volume.name).join("_data")
        }
        Ok(Backing::Directory(path) | Backing::Disk(path)) => path,
        _ => PathBuf::new(),
    };
    VolumeView { volume: volume.clone(), mountpoint, users: users(core, &volume.name) }
}

fn event(core: &Core, volume: &Volume, action: &str) {
    let attributes = BTreeMap::from([("driver".to_owned(), volume.driver.word().to_owned())]);
    core.events.publish(Kind::Volume, action, &volume.name, attributes);
}

fn missing(name: &str) -> Error {
    Error::NoSuchVolume(format!("get {name}: no such volume"))
}

/// Blocks below a directory; links are not followed.
fn used(directory: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            // A container is at work in it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::file("read", directory)(error)),
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            (bytes("10g"), bytes("5MiB"), bytes("7")),
            (Some(10 << 30), Some(5 << 20), Some(7))
        );
        assert_eq!((bytes("x"), bytes("1z"), bytes("")), (None, None, None));
    }

    fn volume(driver: Driver, options: &[(&str, &str)]) -> Volume {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Volume { name: "v1".into(), driver, options, ..Volume::default() }
    }

    #[test]
    fn options_are_checked_by_driver() {
        for (driver, options) in [
            (Driver::Local, &[][..]),
            (Driver::Local, &[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,uid=7")]),
            (Driver::Local, &[("type", "none"), ("device", "/srv"), ("o", "bind")]),
            (Driver::Disk, &[("size", "64M")]),
            (Driver::Tmpfs, &[("size", "1m"), ("mode", "700")]),
        ] {
            check(&volume(driver, options)).unwrap();
        }
        for (driver, options, named) in [
            (Driver::Local, &[("type", "nfs"), ("device", ":/x"), ("o", "addr=h")][..], "addr=h"),
            (Driver::Local, &[("type", "cifs"), ("device", "//h/x")], "cifs"),
            (Driver::Local, &[("type", "none"), ("device", "x"), ("o", "bind")], "\"x\""),
            (Driver::Local, &[("size", "1G")], "\"size\""),
            (Driver::Disk, &[("size", "1M")], "\"1M\""),
            (Driver::Disk, &[("size", "x")], "\"x\""),
            (Driver::Tmpfs, &[("mode", "")], "mode"),
        ] {
            let error = check(&volume(driver, options)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
