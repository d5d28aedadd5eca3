//! Serves directories of the host to one guest: a vhost-user device for virtio-fs.
//!
//! ```text
//! supervisor ── hyper-jail: nothing but /share/* (bind mounts), /proc; no network; seccomp
//!     │              └► hyper-share   stdin: a listening unix socket
//!     └─ hypervisor ── vhost-user ────────┘    (one connection: its end is ours)
//! ```
//! The file system is virtiofsd's, as a library: what is new here is only what it is told.
//!
//! Invariants:
//! - All that it can open is below [`ROOT`] of its own mount namespace, where the supervisor has
//!   put the shared directories: a link that leads elsewhere leads to nothing. A directory that is
//!   shared read-only is a read-only mount here, whatever the guest thinks.
//! - It opens no socket, starts no program, and ends with its connection.
//!
//! What the guest believes about names and attributes is good for no time at all, and its page
//! cache for as long as a file is open: what was written and closed on one side is read on the
//! other. The price is a question to us for each name of a path.
#![forbid(unsafe_code)]

use std::io::stdin;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The shared directories are in it; the supervisor's `share.rs` puts them there.
const ROOT: &str = "/share";
/// Name of the device in the guest.
const TAG: &str = "hyper";
/// Descriptors that are not the guest's to use up.
const RESERVE: u64 = 64;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyper-share: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let socket = stdin().as_fd().try_clone_to_owned().context("take the socket of stdin")?;
    let mut listener = Listener::from(UnixListener::from(socket));
    let descriptors = virtiofsd::limits::setup_rlimit_nofile(None)
        .map_err(|error| anyhow::anyhow!("raise the limit of open files: {error}"))?;
    let files = PassthroughFs::new(Config {
        root_dir: ROOT.to_owned(),
        cache_policy: CachePolicy::Auto,
        entry_timeout: Duration::ZERO,
        attr_timeout: Duration::ZERO,
        readdirplus: true,
        xattr: true,
        // Who writes loses set-user-id bits: told with the write, not asked for before each.
        killpriv_v2: true,
        // Files of two file systems of the host may have the same number.
        announce_submounts: true,
        guest_fd_limit: descriptors.saturating_sub(RESERVE),
        ..Config::default()
    })
    .with_context(|| format!("share {ROOT}"))?;
    let device = VhostUserFsBackendBuilder::default().set_tag(Some(TAG.to_owned())).build(files);
    let device = Arc::new(device.context("make the device")?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("share".to_owned(), device, memory)
        .map_err(|error| anyhow::anyhow!("make the device: {error}"))?;
    daemon
        .start(&mut listener)
        .map_err(|error| anyhow::anyhow!("wait for the hypervisor: {error}"))?;
    // The connection's end is the guest's, and ours.
    if let Err(error) = daemon.wait() {
        eprintln!("hyper-share: the connection ended: {error}");
    }
    Ok(())
}
