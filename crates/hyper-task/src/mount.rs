//! Mounts of a `config.json` that are ours: a containerd's never has them.

/// Type of a mount whose source is a file with an ext4 file system: it becomes a disk of the guest.
/// The file is a multiple of 4096 bytes long and used by nothing else meanwhile.
pub const DISK_KIND: &str = "hyper.disk";

/// Type of a mount that the guest makes over the pod's network, with the option `addr=`.
pub const NFS_KIND: &str = "nfs4";

/// Begins the source of a tmpfs that is a volume: `volume:NAME`. Containers of one guest that name the
/// same one see the same files.
pub const MEMORY_VOLUME: &str = "volume:";

/// Option of a bind of a directory, or of a [`DISK_KIND`]: while it is empty it takes what the
/// image has at its place, with owners and modes.
pub const COPY_UP: &str = "hyper.copyup";

/// Option of a bind mount: the guest sees the host's file itself, also where a copy is usual
/// (`/etc/hosts` and the like).
pub const LIVE: &str = "hyper.live";

/// Option of a bind of a file or directory that was made for the container: the guest gets a copy
/// in its memory, with the owners and modes that the files have. At most 1 MiB each.
pub const COPY: &str = "hyper.copy";

/// Option beside [`COPY`] of a file: `hyper.owner=USER[:GROUP]`, names that the image's `/etc/passwd`
/// and `/etc/group` know, or numbers.
pub const OWNER: &str = "hyper.owner=";
