//! What a container acquires on the host, and how all of it is given back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api;
use hyper_shim::{Program, TaskClient};
use hyper_task::annotation::{FILES_ONLY, NAMES};
use hyper_task::rootfs::{RootfsImage, RootfsOptions};
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::{ASK, CREATE, Container};
use crate::error::{Result, blocking, file};
use crate::options::options;
use crate::root::{Root, mount_root};
use crate::stdio::Uris;
use crate::{ForeignError, host, names, place, serve, spec};

/// For a shim to end that has nothing left.
const END: Duration = Duration::from_secs(5);

/// What was acquired for it.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub root: Option<Root>,
    socket: Option<AbortOnDropHandle<()>>,
    resolver: Option<AbortOnDropHandle<()>>,
    pub launched: bool,
}

impl Container {
    /// Makes the container; its process does not run yet.
    pub(crate) async fn create(self: &Arc<Self>, request: &api::CreateTaskRequest) -> Result<u32> {
        self.phase(|phases| &mut phases.create_received);
        let mut made = self.made.lock().await;
        let created = self.make(&mut made, request).await;
        if created.is_err() {
            self.undo(&mut made).await;
        }
        created
    }

    async fn make(
        self: &Arc<Self>,
        made: &mut Made,
        request: &api::CreateTaskRequest,
    ) -> Result<u32> {
        let bundle = self.settings.bundle.clone();
        let place = place::of(&bundle);
        let (image, own) = rootfs(request)?;
        let (roots, at) = (self.foreign.roots.clone(), place.join(place::ROOTFS));
        let (reserved, inner) = (bundle.clone(), place.clone());
        let root = blocking(move || {
            hyper_pod::reserve_exit(&reserved)?;
            place::make(&inner)?;
            place::remember(&inner, &image)?;
            mount_root(&image, &roots, &own, &at)
        })
        .await?;
        let at = root.at.clone();
        made.root = Some(root);
        let given = read_spec(&bundle).await?;
        let listener = hyper_stdio::socket::bind(&bundle.join(hyper_task::pod::SOCKET))
            .map_err(file("listen at", bundle.join(hyper_task::pod::SOCKET)))?;
        let serving = tokio::spawn(serve::serve(Arc::downgrade(self), listener));
        made.socket = Some(AbortOnDropHandle::new(serving));
        if given["annotations"].get(FILES_ONLY).is_some() {
            return Ok(0);
        }
        let note = given["annotations"][NAMES].as_str().map(PathBuf::from);
        if let Some(namespace) = namespace(&given) {
            let names = note.filter(|_| self.foreign.runtime.shares_kernel());
            let resolver = names::prepare(&namespace, names).await?;
            made.resolver =
                resolver.map(|found| AbortOnDropHandle::new(tokio::spawn(found.serve())));
        }
        let (document, volumes) = {
            let at = at.clone();
            blocking(move || spec::for_runtime(given, &at)).await?
        };
        if !volumes.is_empty() {
            let at = at.clone();
            blocking(move || crate::volumes::fill(&at, &volumes)).await?;
        }
        let path = place.join("config.json");
        place::write_private(&path, document.to_string().as_bytes())?;
        let process = self.process("", request_uris(request)).await?;
        let program = self.program();
        made.launched = true;
        self.phase(|phases| &mut phases.hypervisor_started);
        let address =
            program.start(&self.settings.id, &place).await.map_err(|why| match place::log_tail(
                &place,
            ) {
                log if log.is_empty() => self.trouble("start its shim", why),
                log => self.trouble("start its shim", format!("{why}: {log}")),
            })?;
        let client = TaskClient::connect(&address)
            .await
            .map_err(|error| self.trouble("connect to its shim", error.to_string()))?;
        let _ = self.shim.set(client);
        let connected: api::ConnectResponse = self
            .ask("Connect", &api::ConnectRequest { id: self.id(), ..Default::default() }, ASK)
            .await?;
        // The shim is to this container what agent and guest are to others.
        self.phase(|phases| &mut phases.agent_ready);
        let _ = self.shim_pid.set(connected.shim_pid);
        place::remember_shim(&place, connected.shim_pid);
        let fifos = process.streams.fifos.clone();
        let create = api::CreateTaskRequest {
            id: self.id(),
            bundle: place.display().to_string(),
            terminal: fifos.terminal,
            stdin: fifos.stdin,
            stdout: fifos.stdout,
            stderr: fifos.stderr,
            options: options(&self.foreign.runtime)?.into(),
            ..Default::default()
        };
        let created: api::CreateTaskResponse = self.ask("Create", &create, CREATE).await?;
        let _ = process.pid.set(created.pid);
        if let Some(file) = host::oom_file(created.pid) {
            let _ = self.oom_file.set(file);
        }
        self.phase(|phases| &mut phases.container_created);
        self.watch(&process);
        Ok(created.pid)
    }

    /// Ends and releases whatever there is.
    pub(super) async fn undo(&self, made: &mut Made) {
        let place = place::of(&self.settings.bundle);
        if made.launched {
            let deleted: Result<api::DeleteResponse> = match self.shim.get() {
                Some(_) => {
                    let request = api::DeleteRequest { id: self.id(), ..Default::default() };
                    self.ask("Delete", &request, ASK).await
                }
                None => Err(self.trouble("delete", "it never answered".to_owned())),
            };
            if let Err(error) = deleted {
                tracing::info!(%error, "the shim is told to clean up");
                if let Err(why) = self.program().delete(&self.settings.id, &place).await {
                    tracing::warn!(why, "clean up after the shim");
                }
            }
            self.end_shim().await;
            made.launched = false;
        }
        // No process, no streams: their FIFOs go with them.
        self.processes().clear();
        made.resolver = None;
        if let Some(root) = made.root.take() {
            let released = blocking(move || {
                root.release();
                Ok(())
            });
            if let Err(error) = released.await {
                tracing::error!(%error, "root not released");
            }
        }
        self.phase(|phases| &mut phases.guest_gone);
    }

    async fn end_shim(&self) {
        if let Some(client) = self.shim.get() {
            let request = api::ShutdownRequest { id: self.id(), now: true, ..Default::default() };
            let _: Result<api::Empty> = self.ask("Shutdown", &request, ASK).await;
            if tokio::time::timeout(END, client.closed()).await.is_ok() {
                return;
            }
        }
        let place = place::of(&self.settings.bundle);
        let program = self.foreign.runtime.shim.clone();
        let _ = blocking(move || {
            place::kill_shim(&place, &program);
            Ok(())
        })
        .await;
    }

    pub(super) fn program(&self) -> Program {
        Program {
            path: self.foreign.runtime.shim.clone(),
            // Not hyperd's: under that name listens this supervisor.
            address: place::of(&self.settings.bundle),
            events: self.settings.events.clone(),
            debug: self.settings.debug,
        }
    }
}

/// The rootfs mount that hyperd sends: the image, and the directory for the container's writes.
fn rootfs(request: &api::CreateTaskRequest) -> Result<(RootfsImage, PathBuf)> {
    let invalid = |why: String| ForeignError::Invalid(format!("rootfs: {why}"));
    let [mount] = &request.rootfs[..] else {
        return Err(invalid("one mount is wanted".to_owned()));
    };
    let options =
        RootfsOptions::from_options(&mount.options).map_err(|e| invalid(e.to_string()))?;
    let own = options.upper.ok_or_else(|| invalid("option upper=PATH is missing".to_owned()))?;
    let text = std::fs::read(&mount.source).map_err(file("read", &mount.source))?;
    let image = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
    Ok((image, own))
}

async fn read_spec(bundle: &Path) -> Result<Value> {
    let path = bundle.join("config.json");
    let text = tokio::fs::read(&path).await.map_err(file("read", &path))?;
    serde_json::from_slice(&text)
        .map_err(|error| file("understand", &path)(std::io::Error::from(error)))
}

/// The network namespace that the document names.
fn namespace(spec: &Value) -> Option<PathBuf> {
    let all = spec["linux"]["namespaces"].as_array()?;
    let network = all.iter().find(|namespace| namespace["type"] == "network")?;
    network["path"].as_str().map(PathBuf::from)
}

fn request_uris(request: &api::CreateTaskRequest) -> Uris {
    Uris {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    }
}
