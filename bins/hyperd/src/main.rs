//! hyperd: the daemon. Reads its options, opens the engine, serves the Docker Engine API.
//!
//! It keeps no pod alive: however it ends, pods run on, and the next hyperd finds them again.
#![forbid(unsafe_code)]

mod listen;
mod options;
mod pidfile;
mod rootless;
mod runtimes;
mod unpack;
mod walls;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use hyper_docker::{App, RegistryNames};
use hyper_engine::{Config, Engine, Layout};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing_subscriber::EnvFilter;

use options::{Arguments, Options};

/// For requests that are being answered when hyperd is told to end.
const GRACE: Duration = Duration::from_secs(10);
const SUPERVISOR: &str = "containerd-shim-hyper-v2";
/// Size of a container's writable disk; sparse.
const DISK_BYTES: u64 = 10 << 30;

fn main() -> ExitCode {
    if let Some(code) = unpack::served().or_else(rootless::served) {
        return code;
    }
    let arguments = Arguments::parse();
    match Options::read(arguments).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyperd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        match rootless::enter(&options.exec_root, &options.data_root)? {}
    }
    let inside = rootless::Inside::take()?;
    start_log(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(serve(options, inside));
    // Blocking work (a stuck disk) does not keep hyperd from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn start_log(options: &Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log_level)
        .with_context(|| format!("log level `{}`", options.log_level))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

async fn serve(options: Options, inside: Option<rootless::Inside>) -> anyhow::Result<()> {
    // Before anything is taken: a signal that comes early is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let layout =
        Layout { data_root: options.data_root.clone(), exec_root: options.exec_root.clone() };
    let config = Config {
        layout,
        supervisor: supervisor(&options)?,
        runtimes: Arc::new(runtimes::runtimes(
            &options.runtimes,
            &options.default_runtime,
            &options.min_isolation,
            &options.exec_root.join("runtimes"),
        )?),
        disk_bytes: DISK_BYTES,
        images: images(&options)?,
        rootless: inside.is_some(),
        sockets: match inside {
            Some(inside) => Arc::new(inside),
            None => Arc::new(hyper_engine::OwnSockets),
        },
        debug: options.debug,
    };
    let engine = Engine::open(config).await.map_err(|e| anyhow::anyhow!(e.chain()))?;
    // The locks are held from here on: files of an earlier hyperd are stale.
    let _pidfile = options.pidfile.as_deref().map(pidfile::Pidfile::write).transpose()?;
    let listeners = listen::open(&options.hosts)?;
    let names: Vec<String> = listeners.iter().map(|listener| listener.name.clone()).collect();
    let closing = CancellationToken::new();
    let registries = RegistryNames {
        insecure: options.insecure_registries.clone(),
        mirrors: options.registry_mirrors.clone(),
    };
    let app = App::new(engine.clone(), closing.clone(), registries, options.debug);
    let program = engine.config().supervisor.clone();
    // Ends with the runtime at the latest: nothing waits for it.
    let _looking = AbortOnDropHandle::new(tokio::spawn(walls::look(engine.clone(), program)));
    let counts = engine.counts();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listening = names.join(" "),
        running = counts.running + counts.paused,
        stopped = counts.stopped,
        "hyperd is ready"
    );
    let serving = hyper_docker::serve(app, listeners, GRACE);
    let stopping = async {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "hyperd ends; pods run on");
        closing.cancel();
    };
    tokio::join!(serving, stopping);
    let counts = engine.counts();
    let rootless = engine.config().rootless;
    engine.close(GRACE).await;
    listen::remove(&options.hosts);
    if rootless {
        rootless::leave(&options.exec_root, counts.running + counts.paused);
    }
    Ok(())
}

fn images(options: &Options) -> anyhow::Result<hyper_image::Options> {
    let mut images = hyper_image::Options::default();
    let registry = &mut images.registry;
    registry.insecure.clone_from(&options.insecure_registries);
    for (name, own) in &options.registries {
        if own.insecure {
            registry.insecure.push(name.clone());
        }
        if !own.mirrors.is_empty() {
            registry.mirrors.insert(name.clone(), own.mirrors.clone());
        }
    }
    let hub = registry.mirrors.entry(hyper_image::DEFAULT_REGISTRY.to_owned()).or_default();
    hub.extend(options.registry_mirrors.iter().cloned());
    if !options.registry_certificates.is_empty() {
        registry.certificates.clone_from(&options.registry_certificates);
    }
    registry.concurrency = options.max_concurrent_downloads.unwrap_or(registry.concurrency);
    registry.uploads = options.max_concurrent_uploads.unwrap_or(registry.uploads);
    registry.retry.attempts = options.max_download_attempts.unwrap_or(registry.retry.attempts);
    let (limits, wanted) = (&mut images.limits, &options.layer_limits);
    limits.max_entries = wanted.entries.unwrap_or(limits.max_entries);
    limits.max_depth = wanted.depth.unwrap_or(limits.max_depth);
    limits.max_data_bytes = wanted.data_bytes.unwrap_or(limits.max_data_bytes);
    limits.max_hole_bytes = wanted.hole_bytes.unwrap_or(limits.max_hole_bytes);
    limits.max_stream_bytes = wanted.stream_bytes.unwrap_or(limits.max_stream_bytes);
    limits.max_index_bytes = wanted.index_bytes.unwrap_or(limits.max_index_bytes);
    images.confine = Some(unpack::Jail::new().context("look at /proc/self")?);
    images.limit = options.image_store_limit;
    images.without_referrers = !options.keep_referrers;
    if let Some(path) = &options.signature_policy {
        images.policy = hyper_image::Policy::read(path)
            .map_err(|error| anyhow::anyhow!(error.chain()))
            .context("signature policy")?;
    }
    Ok(images)
}

/// The supervisor program: as told, beside this program, or on PATH.
fn supervisor(options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(path) = &options.supervisor {
        return Ok(path.clone());
    }
    let me = std::env::current_exe().context("find this program")?;
    let beside = me.parent().map(|directory| directory.join(SUPERVISOR));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join(SUPERVISOR));
    beside.into_iter().chain(on_path).find(|path| is_program(path)).with_context(|| {
        format!("{SUPERVISOR} is neither beside {} nor on PATH: install it there", me.display())
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
