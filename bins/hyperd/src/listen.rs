//! Sockets that clients connect to: our own, and those that systemd opened for us.
//!
//! A socket belongs to root and the group `docker` or `hyper` if there is one (0660): whoever can
//! write to it is root on this host, as with dockerd.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use hyper_docker::Listener;
use tokio::net::UnixListener;

/// Of a socket's path; unix(7).
const MAX_PATH: usize = 107;
const GROUPS: [&str; 2] = ["docker", "hyper"];

/// Opens every host of the options; with systemd's sockets (`LISTEN_FDS`) only those when no
/// other host was named.
///
/// # Errors
/// A host that cannot be listened on, and why.
pub fn open(hosts: &[String]) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for host in hosts {
        if host.starts_with("fd://") {
            let passed = passed()?;
            if passed.is_empty() {
                bail!(
                    "host `{host}`: no socket was passed (LISTEN_FDS): is it started by systemd?"
                );
            }
            listeners.extend(passed);
        } else {
            listeners.push(bind(path(host)?)?);
        }
    }
    Ok(listeners)
}

/// Refuses what [`open`] would, before anything is made.
///
/// # Errors
/// A host of a kind that is not served, and why.
pub fn check(host: &str) -> anyhow::Result<()> {
    if host.starts_with("fd://") { Ok(()) } else { path(host).map(drop) }
}

/// Removes our own sockets, so that clients see at once that nobody listens.
pub fn remove(hosts: &[String]) {
    for path in hosts.iter().filter_map(|host| path(host).ok()) {
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(socket = %path.display(), %error, "remove");
        }
    }
}

/// The path of a `unix://` host.
fn path(host: &str) -> anyhow::Result<&Path> {
    if let Some(path) = host.strip_prefix("unix://") {
        if !path.starts_with('/') {
            bail!("host `{host}`: an absolute path is wanted, as in unix:///run/hyper/hyper.sock");
        }
        if path.len() > MAX_PATH {
            bail!("host `{host}`: a socket's path has at most {MAX_PATH} characters");
        }
        return Ok(Path::new(path));
    }
    if host.starts_with("tcp://") {
        bail!(
            "host `{host}`: without TLS everyone on the network would be root here, and TLS is not \
             supported: use unix://PATH, and `docker -H ssh://user@host` from elsewhere"
        );
    }
    bail!("host `{host}`: unix://PATH or fd:// is wanted")
}

fn bind(path: &Path) -> anyhow::Result<Listener> {
    let what = || format!("listen on {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(what)?;
    }
    remove_stale(path).with_context(what)?;
    let socket = UnixListener::bind(path).with_context(what)?;
    if let Some(group) = GROUPS.iter().find_map(|name| group(name)) {
        // As root this can only fail where ids are not mapped: then root alone can connect.
        if let Err(error) = std::os::unix::fs::chown(path, Some(0), Some(group)) {
            tracing::warn!(socket = %path.display(), group, %error, "give the socket to its group");
        }
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).with_context(what)?;
    Ok(Listener { socket, name: format!("unix://{}", path.display()) })
}

/// Removes a socket that nobody listens on; anything else stays.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(file) if !file.file_type().is_socket() => bail!("there is a file that is no socket"),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => bail!("another process listens there"),
            Err(_) => Ok(std::fs::remove_file(path)?),
        },
    }
}

/// Sockets that were opened for us; sd_listen_fds(3).
fn passed() -> anyhow::Result<Vec<Listener>> {
    let mut given = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..given.len() {
        let what = || format!("socket {index} of LISTEN_FDS");
        if let Some(socket) = given.take_unix_listener(index).with_context(what)? {
            socket.set_nonblocking(true).with_context(what)?;
            let socket = UnixListener::from_std(socket).with_context(what)?;
            listeners.push(Listener { socket, name: format!("fd://{index}") });
        }
    }
    Ok(listeners)
}

/// A group's id; group(5).
fn group(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn stale_sockets_are_replaced_and_live_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/x.sock");
        let first = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = format!("{:#}", bind(&path).unwrap_err());
        assert!(error.contains("another process"), "{error}");
        drop(first);
        bind(&path).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(format!("{:#}", bind(&file).unwrap_err()).contains("no socket"));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn hosts_are_checked() {
        assert_eq!(path("unix:///a/b").unwrap(), Path::new("/a/b"));
        for (host, named) in [
            ("tcp://0.0.0.0:2375", "TLS"),
            ("unix://a", "absolute"),
            ("npipe://x", "npipe"),
            (&format!("unix:///{}", "x".repeat(200)), "107"),
        ] {
            let error = path(host).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
