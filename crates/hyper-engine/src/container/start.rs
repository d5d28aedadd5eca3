//! From a spec to a running pod.
//!
//! ```text
//!   bundle ──▶ ┌ supervisor: launch, connect ┐ ──▶ Create ──▶ clients attach ──▶ Start
//!              └ root image, writable disk   ┘     (boots)
//! ```
//! Whatever fails, and wherever the future is dropped, [`discard`] leaves nothing of it behind.

mod network;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_task::pod::HOSTS;
use hyper_task::rootfs::RootfsOptions;
use hyper_task::stdio::{HUB, LogConfig, Sink};
use tokio_util::task::AbortOnDropHandle;

use super::spec::{Log, Mount, MountKind, Spec};
use super::state::Exit;
use super::{journal, mounts, secrets};
use crate::attach::Slot;
use crate::core::Core;
use crate::engine::pods;
use crate::oci::Surroundings;
use crate::phases::{self, Record};
use crate::supervisor::{self, CreateTask, Pod};
use crate::volume::Backing;
use crate::{Error, Result, layout, oci, runtime};

pub(crate) use network::renew_hosts;

/// A pod whose container runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub pod: Arc<Pod>,
    pub pid: u32,
    pub unix_ns: i64,
    pub ended: AbortOnDropHandle<Exit>,
    pub phases: Record,
}

/// Starts the container. On failure nothing is left but the container's own directory.
pub(crate) async fn start(
    core: Arc<Core>,
    spec: Arc<Spec>,
    slot: Arc<Slot>,
    mut phases: Record,
) -> Result<Started> {
    let result = async {
        if !spec.host.pod.is_empty() {
            pods::ensure_up(&core, &spec.host.pod).await?;
        }
        let (pod, rootfs, prepared) = pod_with_disks(&core, &spec).await?;
        (phases.supervisor_connected, phases.disk_ready) = prepared.times;
        run(pod, &spec, &slot, rootfs, prepared, &mut phases).await
    }
    .await;
    match result {
        Ok((pod, pid, ended)) => {
            let unix_ns = hyper_stdio::now_ns();
            Ok(Started { pod, pid, unix_ns, ended, phases })
        }
        Err(error) => {
            slot.reset();
            discard(&core, &spec.id).await;
            Err(in_dockers_words(error))
        }
    }
}

/// Ends whatever a bundle belongs to and removes it.
pub(crate) async fn discard(core: &Core, id: &str) {
    core.launcher.settled(id).await;
    let bundle = core.layout.bundle(id);
    if !tokio::fs::try_exists(&bundle).await.unwrap_or(true) {
        core.networks.release(id).await.remove().await;
        return;
    }
    match supervisor::read_address(&bundle).await {
        Some(address) => match Pod::connect(id, &bundle, &address).await {
            Ok(pod) => {
                pod.identify().await;
                if let Err(error) = pod.kill(None, 9, true).await {
                    tracing::debug!(container = id, %error, "kill");
                }
                if pod.end(false).await.is_none() {
                    core.launcher.clean(id, &bundle).await;
                }
            }
            Err(_) => core.launcher.clean(id, &bundle).await,
        },
        None => core.launcher.clean(id, &bundle).await,
    }
    core.networks.release(id).await.remove().await;
    remove_bundle(&bundle).await;
}

/// The pod is gone; so is its bundle.
pub(crate) async fn remove_bundle(bundle: &Path) {
    if let Err(error) = tokio::fs::remove_dir_all(bundle).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(bundle = %bundle.display(), %error, "remove bundle");
    }
}

/// Where the container's log is, if it has one.
pub(crate) fn log_config(core: &Core, spec: &Spec) -> Option<LogConfig> {
    (spec.host.log.driver != Log::NONE).then(|| LogConfig {
        driver: spec.host.log.driver.clone(),
        path: core.layout.log(&spec.id, &spec.host.log.driver),
        max_size: spec.host.log.max_bytes,
        max_file: spec.host.log.max_files.max(1),
        journal: (spec.host.log.driver == Log::JOURNALD).then(|| {
            let name = core.find(&spec.id).map(|found| found.view.borrow().name.clone());
            journal::config(spec, &name.unwrap_or_default())
        }),
    })
}

/// What a pod is made from.
pub(crate) struct Prepared {
    upper: PathBuf,
    /// 0: no disk, but a directory of the host.
    disk_bytes: u64,
    pub options: Vec<String>,
    stdout: String,
    /// When the supervisor was connected, and when the disks were ready.
    times: (Option<i64>, Option<i64>),
}

/// A supervisor without guest yet, and what is to be its root: JSON file of the image's, options.
pub(crate) async fn pod_with_disks(
    core: &Arc<Core>,
    spec: &Arc<Spec>,
) -> Result<(Arc<Pod>, PathBuf, Prepared)> {
    let bundle = core.layout.bundle(&spec.id);
    let mut prepared = prepare(core, spec, &bundle).await?;
    let connect = async {
        let joined = !spec.host.pod.is_empty();
        let address = core.launcher.launch(&spec.id, &bundle, joined).await?;
        let pod = Pod::connect(&spec.id, &bundle, &address).await?;
        Ok::<_, Error>((Arc::new(pod), phases::now()))
    };
    let disks = async {
        let image = core.rootfs(&spec.image_id).await?;
        if prepared.disk_bytes > 0 {
            writable_disk(core, &prepared).await?;
        }
        Ok::<_, Error>((image, phases::now()))
    };
    let network = network::attach(core, spec, &bundle);
    let ((rootfs, disk_ready), (pod, connected), ()) = tokio::try_join!(disks, connect, network)?;
    prepared.times = (connected, disk_ready);
    Ok((pod, rootfs, prepared))
}

/// Makes the bundle: all of it on a tmpfs, some tens of microseconds.
async fn prepare(core: &Arc<Core>, spec: &Arc<Spec>, bundle: &Path) -> Result<Prepared> {
    let volumes = backings(core, spec).await?;
    let foreign = runtime::for_start(core, spec);
    runtime::check_policies(core, &spec.host)?;
    let (core, spec, bundle) = (core.clone(), spec.clone(), bundle.to_owned());
    let work = move || {
        let write = |name: &str, text: &[u8]| {
            let path = bundle.join(name);
            std::fs::write(&path, text).map_err(Error::file("write", path))
        };
        // An environment is nobody else's business.
        let write_private = |name: &str, text: &[u8]| {
            let path = bundle.join(name);
            let file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
            file.and_then(|mut file| file.write_all(text)).map_err(Error::file("write", path))
        };
        mounts::make_sources(&spec.host.mounts)?;
        layout::private_directory(&bundle)?;
        layout::private_directory(&core.layout.container(&spec.id))?;
        let (given, spec) = secrets::lay_out(&core.layout, &spec, &bundle)?;
        write(HOSTS, network::hosts(&spec, &[]).as_bytes())?;
        write("hostname", format!("{}\n", oci::hostname(&spec)).as_bytes())?;
        // A network stack of a runtime's own does not reach our resolver.
        let named = core.networks.has_names(&spec)?;
        let resolver = network::has_resolver(&spec, named)
            && foreign.as_ref().is_none_or(hyper_task::foreign::Runtime::shares_kernel);
        write("resolv.conf", network::resolv_conf(&spec, resolver).as_bytes())?;
        if let Some(runtime) = &foreign {
            let roots = core.layout.roots();
            let told = hyper_task::foreign::Foreign { runtime: runtime.clone(), roots };
            let text = serde_json::to_vec(&told).map_err(|e| Error::Invalid(e.to_string()))?;
            write(hyper_task::foreign::FILE, &text)?;
        }
        let upper = match &foreign {
            Some(_) => core.layout.writes(&spec.id),
            None => core.layout.upper(&spec.id),
        };
        let file = |name: &str, at| (bundle.join(name), at);
        let surroundings = Surroundings {
            hypervisor: core.runtime(&spec.host.runtime),
            namespace: network::has_own(&spec).then(|| core.layout.namespace(&spec.id)),
            names: (network::has_own(&spec) && resolver).then(|| core.layout.pod_names(&spec.id)),
            shares_pod: core.pods.find(&spec.host.pod).is_ok(),
            files: vec![
                file("resolv.conf", "/etc/resolv.conf"),
                file("hostname", "/etc/hostname"),
                file(HOSTS, "/etc/hosts"),
            ],
            given,
            volumes,
            first: !upper.exists(),
            least: runtime::least(&core, &spec.host)?,
        };
        write_private("config.json", oci::document(&spec, &surroundings)?.to_string().as_bytes())?;
        let options = RootfsOptions {
            upper: Some(upper.clone()),
            read_only: spec.host.security.read_only_root,
            ephemeral: spec.host.auto_remove,
        };
        Ok(Prepared {
            upper,
            disk_bytes: match spec.host.disk_bytes {
                _ if foreign.is_some() => 0,
                0 => core.config.disk_bytes,
                bytes => bytes,
            },
            options: options.to_options(),
            stdout: Sink::Hub(log_config(&core, &spec)).to_uri(),
            times: (None, None),
        })
    };
    crate::core::blocking(work).await
}

/// What the volumes of a container are on the host.
async fn backings(core: &Core, spec: &Spec) -> Result<BTreeMap<String, Backing>> {
    let wanted = spec.host.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
    let all = core.volumes.all.lock().await;
    let one = |mount: &Mount| {
        let name = &mount.source;
        let volume = all.get(name);
        let volume =
            volume.ok_or_else(|| Error::NoSuchVolume(format!("get {name}: no such volume")))?;
        Ok((name.clone(), volume.backing(&core.layout)?))
    };
    wanted.map(one).collect()
}

async fn run(
    pod: Arc<Pod>,
    spec: &Spec,
    slot: &Slot,
    rootfs: PathBuf,
    prepared: Prepared,
    phases: &mut Record,
) -> Result<(Arc<Pod>, u32, AbortOnDropHandle<Exit>)> {
    let terminal = spec.host.tty;
    let stderr = if terminal { String::new() } else { prepared.stdout.clone() };
    let create = pod.create(CreateTask {
        rootfs,
        options: prepared.options,
        terminal,
        stdin: if spec.host.open_stdin { HUB.to_owned() } else { String::new() },
        stdout: prepared.stdout,
        stderr,
    });
    let (created, ()) = tokio::join!(create, pod.identify());
    created?;
    phases.task_created = phases::now();
    slot.ready(&pod).await?;
    // Asked before the start: a short process is over before a question after it could arrive.
    let waiting = pod.clone();
    let ended = AbortOnDropHandle::new(tokio::spawn(async move { waiting.wait().await }));
    let pid = pod.start(None).await?;
    phases.start_done = phases::now();
    Ok((pod, pid, ended))
}

/// Once per container: what it has written stays for the next start.
async fn writable_disk(core: &Core, prepared: &Prepared) -> Result<()> {
    let (path, bytes) = (prepared.upper.clone(), prepared.disk_bytes);
    let templates = core.layout.templates();
    crate::core::blocking(move || {
        if path.exists() {
            return Ok(());
        }
        hyper_disk::fresh_ext4_from(&templates, &path, bytes).map_err(Error::Disk)
    })
    .await
}

/// As Docker says it. Its CLI takes the exit codes 126 and 127 from words in the supervisor's text
/// ("executable file not found", "permission denied", …).
pub(crate) fn in_dockers_words(error: Error) -> Error {
    match error {
        Error::Program { fault, message } => {
            let why = message.split_once("`: ").map_or(message.as_str(), |(_, why)| why);
            Error::Program {
                fault,
                message: format!(
                    "failed to create task for container: unable to start container process: {why}"
                ),
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_docker_cli_finds_its_words() {
        let message = "container `ab`: exec: \"x\": executable file not found in $PATH".to_owned();
        let error = Error::Program { fault: crate::ProgramFault::NotFound, message };
        let text = in_dockers_words(error).to_string();
        assert!(text.ends_with(": exec: \"x\": executable file not found in $PATH"), "{text}");
        assert!(!text.contains("`ab`"), "{text}");
    }
}
