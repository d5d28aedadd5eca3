//! `start`: on the critical path of every `docker run`, so it only binds a socket, spawns the
//! supervisor with it and prints the address; the connection waits in the socket's backlog.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::types::introspection::RuntimeInfo;

use crate::args::Args;
use crate::config::Config;
use crate::place::{ADDRESS_FILE, PID_FILE, bundle_hash, joined_pod, socket_path};

pub fn start(args: &Args) -> anyhow::Result<()> {
    let bundle = args.bundle()?;
    let pod = joined_pod(&bundle)?;
    let socket = socket_path(&args.address, &args.namespace, pod.as_deref().unwrap_or(&args.id));
    match &pod {
        Some(pod) => {
            UnixStream::connect(&socket).with_context(|| {
                format!("pod `{pod}` of container `{}` has no supervisor", args.id)
            })?;
        }
        None => {
            // A bad config is told here, where somebody reads it.
            let config = Config::load()?;
            if let Some(listener) = listen(&socket)? {
                let run_dir = config.run_dir.join("pods").join(bundle_hash(&bundle));
                spawn(args, (&bundle, &socket, &run_dir), listener).inspect_err(|_| {
                    // The spawn's error is the one to tell.
                    let _ = std::fs::remove_file(&socket);
                })?;
            }
        }
    }
    let address = format!("unix://{}", socket.display());
    let file = bundle.join(ADDRESS_FILE);
    std::fs::write(&file, &address).with_context(|| format!("write `{}`", file.display()))?;
    let mut out = std::io::stdout();
    out.write_all(address.as_bytes())?;
    Ok(out.flush()?)
}

/// `None`: a supervisor listens already, as after a start that containerd gave up on.
fn listen(socket: &Path) -> anyhow::Result<Option<UnixListener>> {
    let context = || format!("listen on `{}`", socket.display());
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir).with_context(context)?;
    }
    match UnixListener::bind(socket) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                return Ok(None);
            }
            std::fs::remove_file(socket).with_context(context)?;
            Ok(Some(UnixListener::bind(socket).with_context(context)?))
        }
        Err(error) => Err(error).with_context(context),
    }
}

/// Starts the supervisor and notes its process id, so that `delete` finds it from now on.
fn spawn(
    args: &Args,
    (bundle, socket, run_dir): (&Path, &Path, &Path),
    listener: UnixListener,
) -> anyhow::Result<()> {
    let context = || format!("write to `{}`", run_dir.display());
    std::fs::create_dir_all(run_dir).with_context(context)?;
    let program = std::env::current_exe().context("path of this program")?;
    let mut command = Command::new(&program);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    command.arg("-bundle").arg(bundle).arg("-socket").arg(socket);
    if args.debug {
        command.arg("-debug");
    }
    // containerd waits for the end of our output streams: the supervisor must not hold them. Its
    // heap is one arena that gives memory back early: glibc's default costs megabytes a thread.
    command
        .arg("serve")
        .current_dir(bundle)
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_TRIM_THRESHOLD_", "131072")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("start `{}`", program.display()))?;
    std::fs::write(run_dir.join(PID_FILE), child.id().to_string()).with_context(context)
}

/// `-info`: containerd 2 asks before it starts anything.
pub fn info() -> anyhow::Result<()> {
    let info = RuntimeInfo { name: "io.containerd.hyper.v2".to_owned(), ..RuntimeInfo::default() };
    let bytes = info.write_to_bytes()?;
    if bytes.is_empty() {
        bail!("empty runtime info");
    }
    Ok(std::io::stdout().write_all(&bytes)?)
}
