//! `serve`: the supervisor itself.
//!
//! ```text
//! stdin = listening socket ─► Task API v2 + v3 ─► Pod ─► events
//! ends: Shutdown of an empty pod · SIGTERM, SIGINT (the pod is ended first)
//! ```
//! The socket's file goes first: from the answer to Shutdown on containerd may start another supervisor of the same name,
//! while this one still takes leave.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::r#async::transport::Listener;
use containerd_shim_protos::ttrpc::r#async::{Server, Service as Methods};
use hyper_pod::{Pod, Settings, Templates};
use hyper_task::foreign::FILE as FOREIGN;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::args::Args;
use crate::config::Config;
use crate::events::publish;
use crate::hypervisors::hypervisors;
use crate::place::bundle_hash;
use crate::task::Service;

/// How long connections may take to close, and events to be told, at the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// Blocking work needs little stack; only what is touched is memory.
const STACK: usize = 512 << 10;

pub fn serve(args: &Args, started_ns: i64) -> anyhow::Result<()> {
    let bundle = args.bundle()?;
    let config = Config::load()?;
    crate::log::start(&bundle, &config.log, args.debug)?;
    // The supervisor outlives who started it, and gets none of its terminal's signals.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "no session of its own");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let socket = SocketFile::of(args.socket.as_deref());
    let served = runtime.block_on(run(args, &bundle, &config, &socket, started_ns));
    // Connections that do not close must not keep us.
    runtime.shutdown_timeout(Duration::from_millis(100));
    socket.remove();
    if let Err(error) = &served {
        tracing::error!("{error:#}");
    }
    served
}

/// The file that containerd finds us by. What else is there later is another supervisor's.
struct SocketFile {
    path: PathBuf,
    made: Option<(u64, u64, i64, i64)>,
}

impl SocketFile {
    fn of(path: Option<&Path>) -> Self {
        let path = path.unwrap_or(Path::new("")).to_owned();
        Self { made: made(&path), path }
    }

    fn remove(&self) {
        if self.made.is_some() && made(&self.path) == self.made {
            // containerd may have removed it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What no two files of a path have in common: numbers of files are given again.
fn made(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

async fn run(
    args: &Args,
    bundle: &Path,
    config: &Config,
    socket: &SocketFile,
    started_ns: i64,
) -> anyhow::Result<()> {
    if bundle.join(FOREIGN).exists() {
        let own = config.run_dir.join("pods").join(bundle_hash(bundle));
        let served = foreign(args, bundle, socket, started_ns).await;
        // Where `start` noted our number.
        let _ = std::fs::remove_dir_all(own);
        return served;
    }
    let listener = take_stdin().context("take the socket")?;
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true).context("use the socket")?;
    let settings = settings(args, bundle, config, started_ns);
    let (pod, events) = Pod::new(settings);
    let address = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
    let mut publisher = tokio::spawn(publish(args.namespace.clone(), address, events));
    let done = Arc::new(Notify::new());
    let service = Service { pod: pod.clone(), done: Arc::clone(&done) };
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener).context("serve the socket")?)
        .register_service(both_versions(|| create_task(Arc::new(service.clone()))));
    server.start().await.context("serve the Task API")?;
    tracing::info!(id = args.id, namespace = args.namespace, "supervisor serves");
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = done.notified() => {}
        _ = term.recv() => end(&pod, "SIGTERM").await,
        _ = int.recv() => end(&pod, "SIGINT").await,
    }
    socket.remove();
    // The answer to Shutdown is on its way: the client closes when it has it.
    let _ = tokio::time::timeout(FAREWELL, server.shutdown()).await;
    drop((pod, service, server));
    let _ = tokio::time::timeout(FAREWELL, &mut publisher).await;
    Ok(())
}

/// The same for a container that another runtime's shim runs.
async fn foreign(
    args: &Args,
    bundle: &Path,
    socket: &SocketFile,
    started_ns: i64,
) -> anyhow::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(take_stdin().context("take the socket")?);
    listener.set_nonblocking(true).context("use the socket")?;
    let settings = hyper_foreign::Settings {
        id: args.id.clone(),
        bundle: bundle.to_owned(),
        events: std::env::var_os("TTRPC_ADDRESS").unwrap_or_default().into(),
        debug: args.debug,
        started_ns,
    };
    let done = Arc::new(Notify::new());
    let service = hyper_foreign::Service {
        container: hyper_foreign::Container::open(settings)?,
        done: Arc::clone(&done),
    };
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener).context("serve the socket")?)
        .register_service(both_versions(|| create_task(Arc::new(service.clone()))));
    server.start().await.context("serve the Task API")?;
    tracing::info!(id = args.id, "supervisor of another runtime's shim serves");
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = done.notified() => {}
        _ = term.recv() => service.end().await,
        _ = int.recv() => service.end().await,
    }
    socket.remove();
    let _ = tokio::time::timeout(FAREWELL, server.shutdown()).await;
    Ok(())
}

/// The descriptor of stdin, which programs started from here must not inherit.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(taken)
}

async fn end(pod: &Pod, why: &str) {
    tracing::warn!("{why}: the pod is ended");
    if let Err(error) = pod.shutdown(true).await {
        tracing::error!(error = hyper_pod::chain(&error), "pod not ended");
    }
}

/// The service under the names of both versions of the Task API, whose messages are the same.
fn both_versions(make: impl Fn() -> HashMap<String, Methods>) -> HashMap<String, Methods> {
    let mut all: HashMap<String, Methods> = make()
        .into_iter()
        .map(|(name, methods)| {
            (name.replace("containerd.task.v3.", "containerd.task.v2."), methods)
        })
        .collect();
    all.extend(make());
    all
}

fn settings(args: &Args, bundle: &Path, config: &Config, started_ns: i64) -> Settings {
    let hash = bundle_hash(bundle);
    let (hypervisors, flavours) = hypervisors(config);
    Settings {
        id: args.id.clone(),
        vm_id: format!("{:.100}-{hash}", args.id),
        hypervisors,
        flavours,
        default_hypervisor: config.hypervisor.clone(),
        min_isolation: config.min_isolation,
        default_memory_bytes: config.memory,
        memory_overhead_bytes: config.memory_overhead,
        default_vcpus: config.vcpus,
        run_dir: config.run_dir.join("pods").join(&hash),
        disk_dir: config.state_dir.join("pods").join(&hash),
        converted_dir: config.state_dir.join("converted"),
        template_dir: config.state_dir.join("templates"),
        templates: Templates {
            directory: crate::template::directory(config),
            maker: std::env::current_exe().unwrap_or_else(|_| "containerd-shim-hyper-v2".into()),
            on: config.templates,
        },
        upper_bytes: config.upper_bytes,
        started_ns,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_supervisor_that_takes_leave_does_not_remove_the_next_ones_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = UnixListener::bind(&path).unwrap();
        let file = SocketFile::of(Some(&path));
        // As `start` does when nobody listens any more.
        drop(first);
        std::fs::remove_file(&path).unwrap();
        let _next = UnixListener::bind(&path).unwrap();
        file.remove();
        assert!(path.exists(), "the next one cannot be found");
        SocketFile::of(Some(&path)).remove();
        assert!(!path.exists());
        SocketFile::of(None).remove();
        SocketFile::of(Some(&path)).remove();
    }
}
