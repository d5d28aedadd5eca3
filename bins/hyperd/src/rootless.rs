//! hyperd of a user who is not root.
//!
//! ```text
//!   hyperd ─ makes or finds ─▶ namespaces (hyper_network::rootless): a holder that sleeps, pasta
//!     ├─ starts ─▶ hyperd once more, outside: opens sockets of the host and passes them in, ends with it
//!     └─ becomes, by nsenter(1) ─▶ hyperd, root of the namespaces, with the same pid: as everywhere from here on
//! ```
//! Ports are published by the sockets from outside, so that a taken one is told, and pasta needs no list of them.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_engine::networks::Protocol;
use hyper_engine::{HostSockets, OwnSockets};
use hyper_jail::{Delegation, packet};
use hyper_network::rootless::{Namespaces, missing};
use hyper_task::environment;
use rustix::fs::{FlockOperation, flock};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

/// The first argument of the process outside.
const OUTSIDE: &str = "hyper-outside";
/// Set for the hyperd inside, whose standard input is the way to the process outside.
const MARK: &str = "HYPER_ROOTLESS";
/// How long supervisors without containers may take to end.
const ENDING: Duration = Duration::from_secs(3);
/// How long the process outside may take for a socket.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether this hyperd is, or is to be, the root of a user's namespaces.
pub fn is_ours() -> bool {
    !rustix::process::geteuid().is_root() || is_inside()
}

fn is_inside() -> bool {
    std::env::var_os(MARK).is_some() && hyper_jail::in_user_namespace()
}

/// Where a user's files of a kind are: a variable of the XDG base directory specification, or a directory below the home.
///
/// # Errors
/// Neither is known.
pub fn directory(variable: &str, below_home: Option<&str>) -> anyhow::Result<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let own = std::env::var_os(variable).map(PathBuf::from).and_then(absolute);
    let home = || {
        let home = std::env::var_os("HOME").map(PathBuf::from).and_then(absolute)?;
        Some(home.join(below_home?))
    };
    own.or_else(home).with_context(|| {
        format!(
            "{variable} is not set: log in with a session of your own (ssh, `machinectl shell`), or set it to a \
             directory that is yours"
        )
    })
}

/// Becomes the hyperd of the user's namespaces.
///
/// # Errors
/// What is missing on this host, or failed.
pub fn enter(directory: &Path, data: &Path) -> anyhow::Result<Infallible> {
    let missing = missing();
    if !missing.is_empty() {
        bail!(
            "cannot run without root on this host: {}; or run hyperd by sudo",
            missing.join("; ")
        );
    }
    let what = || format!("make {}", directory.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(what)?;
    // Before anything is started, which would be in the way of it.
    if let Some(group) = Delegation::find()
        && let Err(error) = group.divide()
    {
        let directory = group.directory.display();
        eprintln!(
            "hyperd: cgroup {directory} cannot be divided, limits are held in guests only: {error}"
        );
    }
    let namespaces = {
        let lock = directory.join("rootless.lock");
        let file = fs::File::create(&lock).with_context(|| format!("open {}", lock.display()))?;
        // For another hyperd of this directory that starts in the same moment.
        flock(&file, FlockOperation::LockExclusive).context("wait for another hyperd's start")?;
        Namespaces::find_or_make(directory).map_err(anyhow::Error::new)?
    };
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (inside, outside) =
        socketpair(kind.0, kind.1, kind.2, None).context("make a socket pair")?;
    Command::new("/proc/self/exe")
        .arg0(OUTSIDE)
        .stdin(Stdio::from(outside))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .context("start the process that opens the host's ports")?;
    let program = std::env::current_exe().context("find hyperd's own file")?;
    let mut command = namespaces.command(&program);
    command
        .env(environment::RUN_DIR, directory.join("supervisors"))
        .env(environment::STATE_DIR, data.join("supervisors"));
    let config = self::directory("XDG_CONFIG_HOME", Some(".config"))?.join("hyper/supervisor.toml");
    if std::env::var_os(environment::CONFIG).is_none() && config.exists() {
        command.env(environment::CONFIG, config);
    }
    let error = command
        .args(std::env::args_os().skip(1))
        .env(MARK, rustix::process::geteuid().as_raw().to_string())
        .stdin(Stdio::from(inside))
        .exec();
    Err(error).context("run nsenter")
}

/// If this process is the one outside: does its work, and returns its exit code.
pub fn served() -> Option<ExitCode> {
    if std::env::args().next().as_deref() != Some(OUTSIDE) {
        return None;
    }
    Some(match open_sockets(io::stdin().as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyperd: the process that opens the host's ports: {error}");
            ExitCode::FAILURE
        }
    })
}

/// A socket that is wanted.
#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    protocol: Protocol,
    at: SocketAddr,
}

/// What became of it; the socket is beside a 0.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    errno: i32,
}

/// Until hyperd has ended, however it did.
fn open_sockets(control: impl std::os::fd::AsFd) -> io::Result<()> {
    while let Some((wanted, _)) = packet::receive::<Wanted>(&control)? {
        match OwnSockets.open(wanted.protocol, wanted.at) {
            Ok(socket) => packet::send(&control, &Opened { errno: 0 }, &[socket.as_fd()])?,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                packet::send(&control, &Opened { errno }, &[])?;
            }
        }
    }
    Ok(())
}

/// What hyperd has inside: the way to the process outside.
#[derive(Debug)]
pub struct Inside {
    /// None after a failure: an answer that comes late would be taken for the next one's.
    control: Mutex<Option<OwnedFd>>,
}

impl Inside {
    /// Takes it from the standard input, if there is one.
    ///
    /// # Errors
    /// The standard input is none.
    pub fn take() -> anyhow::Result<Option<Self>> {
        if !is_inside() {
            return Ok(None);
        }
        let control =
            io::stdin().as_fd().try_clone_to_owned().context("take the standard input")?;
        set_socket_timeout(&control, Timeout::Recv, Some(PATIENCE)).with_context(|| {
            format!("{MARK} is set, but hyperd was not started by itself: unset it")
        })?;
        // Supervisors, which outlive hyperd, must not keep the process outside.
        let null = fs::File::open("/dev/null").context("open /dev/null")?;
        rustix::stdio::dup2_stdin(&null).context("close the standard input")?;
        Ok(Some(Self { control: Mutex::new(Some(control)) }))
    }
}

impl HostSockets for Inside {
    fn open(&self, protocol: Protocol, at: SocketAddr) -> io::Result<OwnedFd> {
        let gone = || {
            let why = "the process that opens the host's ports does not answer: restart hyperd";
            io::Error::new(io::ErrorKind::BrokenPipe, why)
        };
        let mut held = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let control = held.take().ok_or_else(gone)?;
        packet::send(&control, &Wanted { protocol, at }, &[])?;
        let (opened, sockets) = packet::receive::<Opened>(&control)?.ok_or_else(gone)?;
        *held = Some(control);
        match (opened.errno, sockets.into_iter().next()) {
            (0, Some(socket)) => Ok(socket),
            (0, None) => Err(gone()),
            (libc::EPROTONOSUPPORT, _) if protocol == Protocol::Sctp => {
                // Root's packet filter would translate it all the same; this one is not the host's.
                let why = "the host's kernel has no SCTP sockets, by which a hyperd without root publishes it: load its \
                           module `sctp`";
                Err(io::Error::new(io::ErrorKind::Unsupported, why))
            }
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Ends the namespaces, unless pods run in them; with `running` containers they do.
pub fn leave(directory: &Path, running: usize) {
    if let (0, Some(namespaces)) = (running, Namespaces::find(directory)) {
        namespaces.end_if_idle(ENDING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Inside, OwnedFd) {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (inside, outside) = socketpair(kind.0, kind.1, kind.2, None).unwrap();
        (Inside { control: Mutex::new(Some(inside)) }, outside)
    }

    #[test]
    fn sockets_come_from_outside_with_the_kernels_own_errors() {
        let (inside, outside) = pair();
        let serving = std::thread::spawn(move || open_sockets(outside));
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = inside.open(Protocol::Tcp, local).unwrap();
        let listener = std::net::TcpListener::from(socket);
        let at = listener.local_addr().unwrap();
        let taken = inside.open(Protocol::Tcp, at).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let strange = SocketAddr::from(([192, 0, 2, 77], 0));
        let refused = inside.open(Protocol::Udp, strange).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrNotAvailable);
        drop(inside);
        serving.join().unwrap().unwrap();
    }

    /// The socket of one port would have been taken for another's.
    #[test]
    fn a_late_answer_is_nobodys() {
        let (inside, outside) = pair();
        let short = Some(Duration::from_millis(50));
        let control = inside.control.lock().unwrap();
        set_socket_timeout(control.as_ref().unwrap(), Timeout::Recv, short).unwrap();
        drop(control);
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        inside.open(Protocol::Tcp, local).unwrap_err();
        let late = OwnSockets.open(Protocol::Tcp, local).unwrap();
        let _ = packet::send(&outside, &Opened { errno: 0 }, &[late.as_fd()]);
        let refused = inside.open(Protocol::Udp, local).unwrap_err();
        assert!(refused.to_string().contains("restart hyperd"), "{refused}");
    }

    #[test]
    fn a_process_outside_that_has_gone_is_an_error() {
        let (inside, outside) = pair();
        drop(outside);
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(inside.open(Protocol::Tcp, local).is_err());
    }
}
