//! The mounts of `config.json`: the guest's own kinds pass, directories and files of the host are
//! shared live ([`crate::share`]), its sockets are carried ([`crate::sockets`]), volumes that are
//! disks become disks of the guest.
//!
//! Files of the pod that nobody changes (`/etc/hosts`, …) are copied into the guest: a pod that
//! shares nothing else has no process that shares.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_hypervisor::{Disk, Extent};
use hyper_link::message::{FileEntry, FileInjection, MEMORY_VOLUME, SHARED};
use hyper_task::mount::{COPY, DISK_KIND, LIVE, NFS_KIND, OWNER};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::PodError;
use crate::share::Shared;
use crate::sockets::HostSocket;
use crate::spec::Spec;

/// Largest injected file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// All injected files of a container: one message to the agent carries them, as base64. Above what
/// the engine takes from a client by as much as its own files may have.
const MAX_FILES: u64 = (2 << 20) + (256 << 10);
/// Of an injected directory, and directories above a file in it.
const MAX_ENTRIES: usize = 4096;
const MAX_DEPTH: usize = 32;
/// Kinds that a guest kernel mounts by itself.
/// Files that the engine above makes for a container, copied unless it says otherwise.
const COPIED: [&str; 3] = ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];
/// `statfs(2)`
const TMPFS_MAGIC: u64 = 0x0102_1994;
const SHM_BYTES: u64 = 64 << 20;
/// Propagation that reaches beyond the container.
const TO_HOST: [&str; 4] = ["shared", "rshared", "slave", "rslave"];
const GUEST_KINDS: [&str; 8] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", NFS_KIND];

/// What the mounts of a `config.json` need beside the guest's own file systems.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pub files: Vec<FileInjection>,
    pub shared: Vec<Shared>,
    pub sockets: Vec<HostSocket>,
    /// Place in `value["mounts"]`, and the disk to be mounted there.
    pub disks: Vec<(usize, Disk)>,
}

/// Makes `value["mounts"]` fit for the guest, and says what has to be given to it for that.
/// `id` is the container's. Blocking.
pub(crate) fn carry_mounts(value: &mut Value, id: &str) -> Result<Carried, PodError> {
    let mounts = value.get_mut("mounts").and_then(Value::as_array_mut);
    let mut carried = Carried::default();
    let Some(mounts) = mounts else { return Ok(carried) };
    let mut total = 0;
    let mut kept = Vec::with_capacity(mounts.len());
    for mount in mounts.drain(..) {
        let kind = mount["type"].as_str().unwrap_or_default().to_owned();
        if GUEST_KINDS.contains(&kind.as_str()) {
            kept.push(mount);
        } else if kind == DISK_KIND {
            carried.disks.push((kept.len(), disk(&mount)?));
            kept.push(mount);
        } else if kind == "bind" || is_bind(&mount) {
            let name = format!("{id}.{}", carried.shared.len());
            match bind(&mount, name)? {
                Bind::File(file, bytes) => {
                    total += bytes;
                    carried.files.push(file);
                }
                Bind::Guest(mount) => kept.push(mount),
                Bind::Shared(mount, shared) => {
                    kept.push(mount);
                    carried.shared.push(shared);
                }
                Bind::Socket(socket) => carried.sockets.push(socket),
            }
        } else {
            return Err(PodError::Unsupported(format!(
                "mount of type `{kind}` at `{}`: a guest mounts {} only",
                destination(&mount),
                GUEST_KINDS.join(", ")
            )));
        }
    }
    check_total(total)?;
    *mounts = kept;
    Ok(carried)
}

/// For a hypervisor that cannot share: copies what is a small file that is only read, and refuses
/// the rest. Blocking.
pub(crate) fn copy_instead(spec: &mut Spec, hypervisor: &str) -> Result<(), PodError> {
    let mut total = 0;
    for shared in std::mem::take(&mut spec.shared) {
        let source = format!("{SHARED}/{}", shared.name);
        let mounts = spec.value["mounts"].as_array_mut();
        let Some(mounts) = mounts else { break };
        let Some(at) = mounts.iter().position(|mount| mount["source"] == source) else { continue };
        let mount = mounts.remove(at);
        for (place, _) in &mut spec.disks {
            *place -= usize::from(*place > at);
        }
        let to = destination(&mount);
        if shared.writable || !shared.source.is_file() {
            return Err(PodError::Unsupported(format!(
                "`{}` cannot be mounted at `{to}`: hypervisor `{hypervisor}` cannot share \
                 directories of the host with a guest; it can copy files of up to {MAX_FILE} bytes \
                 that are mounted read-only",
                shared.source.display()
            )));
        }
        let (file, bytes) = copied(&shared.source, to, true)?;
        total += bytes;
        spec.files.push(file);
    }
    check_total(total)
}

fn check_total(total: u64) -> Result<(), PodError> {
    if total > MAX_FILES {
        return Err(PodError::Unsupported(format!(
            "files copied into the container have {total} bytes together, more than {MAX_FILES}"
        )));
    }
    Ok(())
}

enum Bind {
    File(FileInjection, u64),
    Guest(Value),
    Shared(Value, Shared),
    Socket(HostSocket),
}

fn bind(mount: &Value, name: String) -> Result<Bind, PodError> {
    let destination = destination(mount);
    let source = Path::new(mount["source"].as_str().unwrap_or_default());
    // A tmpfs of the host that a pod's containers share, as CRI makes one, or Kubernetes for an `emptyDir`
    // in memory: the guest has its own, of the same size.
    if destination == "/dev/shm" && !options(mount).any(|option| option == LIVE) {
        let (volume, size) = (shared_memory(source), format!("size={}k", tmpfs_kib(source)));
        return Ok(Bind::Guest(json!({
            "destination": destination, "type": "tmpfs", "source": volume,
            "options": ["nosuid", "noexec", "nodev", "mode=1777", size]
        })));
    }
    // Looked at before opening, which would block on a FIFO.
    let meta =
        std::fs::metadata(source).map_err(PodError::file("open bind mount source", source))?;
    let kind = meta.file_type();
    if kind.is_socket() {
        return HostSocket::find(source, destination).map(Bind::Socket);
    }
    if !kind.is_file() && !kind.is_dir() {
        return Err(PodError::Unsupported(format!(
            "host device or FIFO `{}` cannot be mounted at `{destination}`: its other end is in the host's \
             kernel, the guest has its own; directories, regular files and sockets of streams can be mounted",
            source.display()
        )));
    }
    let read_only = options(mount).any(|option| option == "ro");
    if options(mount).any(|option| option == COPY) {
        let (mut file, bytes) = given(source, destination, read_only)?;
        file.owner =
            options(mount).find_map(|option| option.strip_prefix(OWNER)).map(str::to_owned);
        return Ok(Bind::File(file, bytes));
    }
    let live = options(mount).any(|option| option == LIVE);
    if COPIED.contains(&destination) && kind.is_file() && !live {
        let (file, bytes) = copied(source, destination, read_only)?;
        return Ok(Bind::File(file, bytes));
    }
    let mut wanted: Vec<&str> = options(mount).filter(|option| *option != LIVE).collect();
    if let Some(word) = wanted.iter().find(|word| TO_HOST.contains(word)) {
        return Err(PodError::Unsupported(format!(
            "mount propagation `{word}` of `{}` at `{destination}`: what is mounted on the host \
             later is not mounted in the guest, nor the other way round: use rprivate",
            source.display()
        )));
    }
    let recursive = wanted.contains(&"rbind");
    wanted.retain(|word| *word != "bind" && *word != "rbind");
    wanted.push("rbind");
    let guest = json!({
        "destination": destination, "type": "bind", "source": format!("{SHARED}/{name}"),
        "options": wanted,
    });
    let source = source.to_owned();
    Ok(Bind::Shared(guest, Shared { name, source, writable: !read_only, recursive }))
}

/// Names the volume that is in the guest what `source` is on the host: the same for all containers that have it.
fn shared_memory(source: &Path) -> String {
    let digest = Sha256::digest(source.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{MEMORY_VOLUME}shm-{name}")
}

/// How large the tmpfs at `source` may become; Docker's size where it is none.
fn tmpfs_kib(source: &Path) -> u64 {
    let found = rustix::fs::statfs(source).ok();
    // Its type's width differs between architectures.
    let found = found.filter(|found| found.f_type as u64 == TMPFS_MAGIC);
    let bytes = found.map(|found| found.f_blocks.saturating_mul(found.f_bsize as u64));
    bytes.filter(|bytes| *bytes > 0).unwrap_or(SHM_BYTES).div_ceil(1024)
}

fn copied(source: &Path, to: &str, read_only: bool) -> Result<(FileInjection, u64), PodError> {
    let (content, meta, bytes) = read(source, to)?;
    let mode = meta.mode() & 0o7777;
    let path = to.to_owned();
    Ok((FileInjection { path, content, mode, read_only, ..FileInjection::default() }, bytes))
}

/// What was made for the container: a file, or a directory with all that is in it.
fn given(source: &Path, to: &str, read_only: bool) -> Result<(FileInjection, u64), PodError> {
    let meta = std::fs::symlink_metadata(source).map_err(PodError::file("open", source))?;
    let mut file = FileInjection {
        path: to.to_owned(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        read_only,
        ..FileInjection::default()
    };
    let mut total = 0;
    if meta.is_dir() {
        let mut entries = Vec::new();
        gather(source, "", to, &mut entries, &mut total)?;
        file.entries = Some(entries);
    } else {
        (file.content, _, total) = read(source, to)?;
    }
    Ok((file, total))
}

fn gather(
    at: &Path,
    below: &str,
    to: &str,
    entries: &mut Vec<FileEntry>,
    total: &mut u64,
) -> Result<(), PodError> {
    let wrong = || PodError::file("read directory", at);
    let mut found: Vec<_> = std::fs::read_dir(at).and_then(Iterator::collect).map_err(wrong())?;
    found.sort_by_key(std::fs::DirEntry::file_name);
    for entry in found {
        let name = entry.file_name();
        let path = if below.is_empty() {
            name.to_string_lossy().into_owned()
        } else {
            format!("{below}/{}", name.to_string_lossy())
        };
        if entries.len() >= MAX_ENTRIES || path.matches('/').count() >= MAX_DEPTH {
            return Err(PodError::Unsupported(format!(
                "`{to}` has more than {MAX_ENTRIES} files, or is deeper than {MAX_DEPTH} directories"
            )));
        }
        let kind = entry.file_type().map_err(wrong())?;
        if kind.is_dir() {
            gather(&entry.path(), &path, to, entries, total)?;
        } else if kind.is_file() {
            let (content, meta, bytes) = read(&entry.path(), to)?;
            *total += bytes;
            // Before the next is read: memory is bounded.
            check_total(*total)?;
            let mode = meta.mode() & 0o7777;
            entries.push(FileEntry { path, content, mode, uid: meta.uid(), gid: meta.gid() });
        }
    }
    Ok(())
}

/// Contents as base64, what the file is, and how many bytes it has.
fn read(source: &Path, to: &str) -> Result<(String, std::fs::Metadata, u64), PodError> {
    let mut content = Vec::new();
    let file = File::open(source).and_then(|file| {
        let meta = file.metadata()?;
        file.take(MAX_FILE + 1).read_to_end(&mut content)?;
        Ok(meta)
    });
    let meta = file.map_err(PodError::file("read bind mount source", source))?;
    let bytes = content.len() as u64;
    if bytes > MAX_FILE {
        return Err(PodError::Unsupported(format!(
            "host file `{}` cannot be copied to `{to}`: larger than {MAX_FILE} bytes",
            source.display()
        )));
    }
    Ok((STANDARD.encode(&content), meta, bytes))
}

fn disk(mount: &Value) -> Result<Disk, PodError> {
    let path = PathBuf::from(mount["source"].as_str().unwrap_or_default());
    let meta = std::fs::metadata(&path).map_err(PodError::file("open disk", &path))?;
    Ok(Disk {
        extents: vec![Extent { path, bytes: meta.len() }],
        read_only: options(mount).any(|option| option == "ro"),
        ephemeral: false,
        mapped: false,
    })
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
    fn etc_is_copied_and_the_rest_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        std::fs::write(&file, "127.0.0.1 localhost\n").unwrap();
        let mut value = json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": file, "options": ["rbind", "ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind"]},
            {"destination": "/data", "type": "bind", "source": dir.path(), "options": ["rbind", "ro"]},
            {"destination": "/one", "type": "none", "source": file, "options": ["bind", "rprivate"]},
            {"destination": "/etc/hosts", "type": "bind", "source": file, "options": ["rbind", LIVE]},
            {"destination": "/db", "type": DISK_KIND, "source": file},
            {"destination": "/dev/shm", "type": "bind", "source": "/proc", "options": ["rbind"]},
        ]});
        let carried = carry_mounts(&mut value, "c").unwrap();
        let files = &carried.files;
        assert_eq!(files.len(), 1);
        assert_eq!((files[0].path.as_str(), files[0].read_only), ("/etc/hosts", true));
        assert_eq!(STANDARD.decode(&files[0].content).unwrap(), b"127.0.0.1 localhost\n");
        assert_eq!(value["mounts"][0]["type"], "proc");
        assert_eq!(value["mounts"][1]["type"], "tmpfs");
        let shm = |at: usize| value["mounts"][at]["source"].as_str().unwrap();
        assert!(
            shm(1).starts_with("volume:shm-") && shm(1) != shm(6),
            "one for each of the host's"
        );
        assert_eq!(value["mounts"][6]["options"][4], "size=65536k", "that is no tmpfs");
        assert_eq!(value["mounts"][2]["source"], "/run/share/c.0");
        assert_eq!(value["mounts"][2]["options"], json!(["ro", "rbind"]));
        assert_eq!(value["mounts"][3]["source"], "/run/share/c.1");
        assert_eq!(value["mounts"][4]["options"], json!(["rbind"]));
        let shared = |at: usize| &carried.shared[at];
        assert!(!shared(0).writable && shared(0).recursive && shared(1).writable);
        assert!(!shared(1).recursive);
        assert_eq!((carried.disks[0].0, carried.disks[0].1.read_only), (5, false));
    }

    #[test]
    fn what_was_made_for_a_container_is_copied_with_its_modes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/b"), "bb").unwrap();
        let one = dir.path().join("a");
        std::fs::write(&one, "a").unwrap();
        std::fs::set_permissions(&one, PermissionsExt::from_mode(0o400)).unwrap();
        let mut value = json!({"mounts": [
            {"destination": "/d", "type": "bind", "source": dir.path(), "options": ["rbind", "ro", COPY]},
            {"destination": "/f", "type": "bind", "source": one,
                "options": ["rbind", "rw", COPY, "hyper.owner=joe:staff"]},
        ]});
        let files = carry_mounts(&mut value, "c").unwrap().files;
        assert_eq!(value["mounts"], json!([]));
        let entries = files[0].entries.as_ref().unwrap();
        assert_eq!(entries.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["a", "sub/b"]);
        assert_eq!((entries[0].mode, files[0].read_only), (0o400, true));
        assert_eq!((&files[0].owner, files[1].owner.as_deref()), (&None, Some("joe:staff")));
        assert_eq!((files[1].mode, files[1].read_only, &files[1].entries), (0o400, false, &None));
        std::fs::write(&one, vec![0; (1 << 20) + 1]).unwrap();
        let mut value = json!({"mounts": [
            {"destination": "/f", "type": "bind", "source": one, "options": ["rbind", COPY]},
        ]});
        let error = carry_mounts(&mut value, "c").unwrap_err().to_string();
        assert!(error.contains("1048576"), "{error}");
    }

    #[test]
    fn what_no_guest_can_have_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mount, words) in [
            (
                json!({"destination": "/d", "type": "none", "options": ["bind"], "source": "/dev/null"}),
                "host device",
            ),
            (
                json!({"destination": "/d", "type": "bind", "options": ["rslave"], "source": dir.path()}),
                "`rslave`",
            ),
            (json!({"destination": "/d", "type": "nfs"}), "`nfs`"),
            (json!({"destination": "/d", "type": "bind", "source": "/no/such"}), "/no/such"),
        ] {
            let error = carry_mounts(&mut json!({"mounts": [mount]}), "c").unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
