//! Pods, as dialects use them: a pod's containers start and stop with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper_task::pod::PodReport;
use tokio::sync::oneshot;

use super::{Engine, WaitCondition, ask as ask_container, stop};
use crate::container::actor::Command as ContainerCommand;
use crate::container::state::Status;
use crate::core::Core;
use crate::event::Kind;
use crate::network::spec::{Policy, Rates};
use crate::pod::PodView;
use crate::pod::actor::{Command, attributes, enlist};
use crate::pod::registry::PodHandle;
use crate::pod::services::{self, ServiceChange};
use crate::pod::spec::{CreatePod, PodChange, PodSpec, PodState, PodStatus};
use crate::store::PodRecord;
use crate::{Error, Result, View, id, signal};

/// Least memory of a guest that has something to do.
const MIN_MEMORY: u64 = 16 << 20;
const MAX_HOSTNAME: usize = 63;
/// Longest that a kernel takes: `HOST_NAME_MAX` of Linux.
pub(crate) const KERNELS_NAME: usize = 64;

impl Engine {
    /// Makes a pod without containers; nothing runs yet. Returns its id.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::Conflict`] when the name is taken.
    pub async fn create_pod(&self, request: CreatePod) -> Result<String> {
        let core = self.core.clone();
        self.detached(async move { create(&core, request).await }).await
    }

    /// # Errors
    /// [`Error::NoSuchPod`].
    pub fn pod(&self, reference: &str) -> Result<PodView> {
        Ok(self.core.pods.find(reference)?.view.borrow().clone())
    }

    /// All pods that were made as such, newest first.
    #[must_use]
    pub fn pods(&self) -> Vec<PodView> {
        self.core.pods.views()
    }

    /// The containers of a pod, oldest first.
    #[must_use]
    pub fn pod_containers(&self, pod: &str) -> Vec<View> {
        members(&self.core, pod)
    }

    /// Boots the guest, runs the init containers one after the other, and starts the others.
    ///
    /// # Errors
    /// [`Error::Supervisor`]; [`Error::Conflict`] when an init container fails, the pod is left
    /// running then.
    pub async fn start_pod(&self, reference: &str) -> Result<()> {
        let handle = self.core.pods.find(reference)?;
        let engine = self.clone();
        self.detached(async move {
            ask(&handle, Command::Start).await?;
            let pod = handle.view.borrow().clone();
            let (first, rest): (Vec<View>, Vec<View>) = engine
                .pod_containers(&pod.spec.id)
                .into_iter()
                .partition(|view| view.spec.host.pod_init);
            for view in first {
                engine.run_init(&pod, &view).await?;
            }
            for view in rest {
                match engine.start(&view.spec.id).await {
                    Ok(()) | Err(Error::NotModified(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await
    }

    async fn run_init(&self, pod: &PodView, view: &View) -> Result<()> {
        let over = self.wait(&view.spec.id, WaitCondition::NextExit)?;
        self.start(&view.spec.id).await?;
        match over.await.exit_code {
            0 => Ok(()),
            code => Err(Error::Conflict(format!(
                "init container {} of pod {} ended with exit code {code}: see `hyper logs {}`",
                view.name, pod.name, view.name
            ))),
        }
    }

    /// Stops the containers with their own signals (grace in seconds each, all at once), then the
    /// guest.
    ///
    /// # Errors
    /// [`Error::NotModified`] when it does not run.
    pub async fn stop_pod(&self, reference: &str, grace: Option<i64>) -> Result<()> {
        let handle = self.core.pods.find(reference)?;
        let core = self.core.clone();
        self.detached(async move {
            let pod = handle.view.borrow().clone();
            if pod.state.status == PodStatus::Paused {
                ask(&handle, Command::Unpause).await?;
            }
            let mut stops = tokio::task::JoinSet::new();
            for view in members(&core, &pod.spec.id) {
                let Ok(member) = core.find(&view.spec.id) else { continue };
                let core = core.clone();
                stops.spawn(async move { stop::stop(&core, &member, None, grace).await });
            }
            while let Some(done) = stops.join_next().await {
                match done {
                    Ok(Ok(()) | Err(Error::NotModified(_))) => {}
                    // The guest's end stops it.
                    Ok(Err(error)) => tracing::warn!(pod = pod.spec.id, %error, "stop a container"),
                    Err(_) => return Err(Error::ShuttingDown),
                }
            }
            ask(&handle, Command::Stop).await
        })
        .await
    }

    /// Sends a signal to the first process of every container that runs.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown signal; [`Error::Conflict`] when none runs.
    pub async fn kill_pod(&self, reference: &str, name: Option<&str>) -> Result<()> {
        let pod = self.pod(reference)?;
        if let Some(name) = name {
            signal::parse(name)?;
        }
        let mut any = false;
        for view in self.pod_containers(&pod.spec.id) {
            if view.state.status.is_up() {
                self.kill(&view.spec.id, name).await?;
                any = true;
            }
        }
        match any {
            true => Ok(()),
            false => Err(Error::Conflict(format!("pod {}: no container runs in it", pod.name))),
        }
    }

    /// Stops all of the guest where it is.
    ///
    /// # Errors
    /// [`Error::Conflict`]; [`Error::Supervisor`] where the hypervisor cannot.
    pub async fn pause_pod(&self, reference: &str) -> Result<()> {
        ask(&self.core.pods.find(reference)?, Command::Pause).await
    }

    /// # Errors
    /// As [`Engine::pause_pod`].
    pub async fn unpause_pod(&self, reference: &str) -> Result<()> {
        ask(&self.core.pods.find(reference)?, Command::Unpause).await
    }

    /// Changes what a pod is; a guest that runs keeps what it booted with.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::Conflict`] when it would have to boot again.
    pub async fn update_pod(&self, reference: &str, change: PodChange) -> Result<()> {
        check_change(&change)?;
        let change = Box::new(change);
        ask(&self.core.pods.find(reference)?, |reply| Command::Update { change, reply }).await
    }

    /// Changes what services a pod sees, of one that runs at once.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::Conflict`] for one that is there already;
    /// [`Error::NoSuchService`].
    pub async fn change_services(&self, reference: &str, change: ServiceChange) -> Result<()> {
        let change = Box::new(change);
        ask(&self.core.pods.find(reference)?, |reply| Command::Services { change, reply }).await
    }

    /// Removes a pod and its containers; with `force` even if it runs.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it runs.
    pub async fn remove_pod(&self, reference: &str, force: bool) -> Result<()> {
        let handle = self.core.pods.find(reference)?;
        let core = self.core.clone();
        self.detached(async move {
            let pod = handle.view.borrow().clone();
            if !force && (pod.state.status.is_up() || pod.state.status == PodStatus::Starting) {
                return Err(Error::Conflict(format!(
                    "pod {} is running: stop it first, or use --force",
                    pod.name
                )));
            }
            for view in members(&core, &pod.spec.id) {
                let Ok(member) = core.find(&view.spec.id) else { continue };
                let remove = |reply| ContainerCommand::Remove { force, reply };
                match ask_container(&member, remove).await {
                    Ok(()) | Err(Error::NoSuchContainer(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            ask(&handle, |reply| Command::Remove { force, reply }).await
        })
        .await
    }

    /// A pod as its supervisor sees it: by the pod, or by a container that has one to itself.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it does not run.
    pub async fn pod_report(&self, reference: &str) -> Result<PodReport> {
        let pod = match self.core.pods.find(reference) {
            Err(Error::NoSuchPod(_)) => return self.container_report(reference).await,
            other => other?.view.borrow().clone(),
        };
        match &pod.supervisor {
            Some(supervisor) => supervisor.report().await,
            None => Err(Error::Conflict(format!("pod {} is not running", pod.name))),
        }
    }
}

async fn create(core: &Arc<Core>, request: CreatePod) -> Result<String> {
    check(core, &request)?;
    let id = id::fresh();
    let name = match request.name {
        Some(name) => {
            core.pods.reserve(&name, &id)?;
            name
        }
        None => {
            let name = (0..100)
                .map(id::random_name)
                .find(|name| core.pods.reserve(name, &id).is_ok())
                .unwrap_or_else(|| id::short(&id).to_owned());
            // Taken already, but for the last resort, which nobody else has.
            let _ = core.pods.reserve(&name, &id);
            name
        }
    };
    let hostname = match request.hostname.is_empty() {
        // As Kubernetes: the pod's name, as far as it is one of a host.
        true if is_hostname(&name) => name.clone(),
        true => id::short(&id).to_owned(),
        false => request.hostname,
    };
    let spec = PodSpec {
        id: id.clone(),
        created_ns: hyper_stdio::now_ns(),
        hostname,
        labels: request.labels,
        runtime: request.runtime,
        vcpus: request.vcpus,
        memory_bytes: request.memory_bytes,
        sysctls: request.sysctls,
        network: request.network,
        egress: request.egress,
        network_rate: request.network_rate,
        services: request.services,
    };
    let record = PodRecord { name: name.clone(), spec, state: PodState::default() };
    if let Err(error) = core.store.insert_pod(&record).await {
        core.pods.release(&name);
        return Err(error);
    }
    let spec = Arc::new(record.spec);
    enlist(core, spec.clone(), name.clone(), record.state, None);
    core.events.publish(Kind::Pod, "create", &id, attributes(&spec, &name));
    Ok(id)
}

fn check_change(change: &PodChange) -> Result<()> {
    let invalid = |why: String| Err(Error::Invalid(why));
    if change.vcpus == Some(0) {
        return invalid("a pod needs one virtual CPU or more".to_owned());
    }
    if let Some(bytes) = change.memory_bytes.filter(|bytes| *bytes < MIN_MEMORY) {
        return invalid(format!("a pod needs 16 MiB of memory or more, not {bytes} bytes"));
    }
    if let Some(text) = &change.egress {
        text.parse::<Policy>().map_err(|error| Error::Invalid(error.to_string()))?;
    }
    if let Some(text) = &change.network_rate {
        text.parse::<Rates>().map_err(|error| Error::Invalid(error.to_string()))?;
    }
    match change.labels.keys().any(String::is_empty) {
        true => invalid("a label needs a name".to_owned()),
        false => Ok(()),
    }
}

fn check(core: &Core, request: &CreatePod) -> Result<()> {
    let invalid = |why: String| Err(Error::Invalid(why));
    if let Some(name) = &request.name
        && !id::is_name(name)
    {
        return invalid(format!(
            "invalid pod name `{name}`: at least two of [a-zA-Z0-9_.-], the first a letter or digit"
        ));
    }
    if !request.hostname.is_empty() && !is_hostname(&request.hostname) {
        return invalid(format!(
            "invalid hostname `{}`: letters, digits and `-`, at most {MAX_HOSTNAME} between dots \
             and {KERNELS_NAME} in all",
            request.hostname
        ));
    }
    core.config.runtimes.check(&request.runtime)?;
    if let Some(foreign) = core.config.runtimes.foreign(&request.runtime) {
        return invalid(format!(
            "runtime {} has no guest that containers can share: give the pod a hypervisor, {}",
            foreign.name,
            core.config.runtimes.hypervisors.join(", ")
        ));
    }
    if !matches!(request.network.as_str(), "" | "default" | "none") {
        core.networks.find(&request.network)?;
    }
    services::check(&request.services)?;
    core.networks.check_services(&request.network, &request.services)?;
    check_change(&PodChange {
        labels: BTreeMap::new(),
        vcpus: request.vcpus,
        memory_bytes: request.memory_bytes,
        egress: request.egress.clone(),
        network_rate: request.network_rate.clone(),
    })?;
    match request.sysctls.keys().find(|key| !key.starts_with("net.")) {
        Some(key) => invalid(format!("sysctl `{key}` is not the pod's: give it to a container")),
        None => Ok(()),
    }
}

fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_HOSTNAME
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= KERNELS_NAME && text.split('.').all(label)
}

/// The containers of a pod, oldest first.
pub(crate) fn members(core: &Core, pod: &str) -> Vec<View> {
    let mut views = core.views();
    views.retain(|view| view.spec.host.pod == pod);
    views.reverse();
    views
}

/// Whether containers are up in the pod of `owner` beside itself.
pub(crate) fn others_up(core: &Core, owner: &str) -> bool {
    let up = |status: Status| status.is_up() || status == Status::Starting;
    members(core, owner).iter().any(|view| view.spec.id != owner && up(view.state.status))
}

/// Whether there is a guest that containers of `pod` are in.
pub(crate) fn is_up(core: &Core, pod: &str) -> bool {
    let made = core.pods.find(pod).is_ok_and(|handle| handle.view.borrow().state.status.is_up());
    let owned = || core.find(pod).is_ok_and(|handle| handle.view.borrow().state.status.is_up());
    !pod.is_empty() && (made || owned())
}

/// Makes sure that the pod a container joins is up: one that was made as such is started, a
/// container's own must be.
pub(crate) async fn ensure_up(core: &Core, pod: &str) -> Result<()> {
    match core.pods.find(pod) {
        Ok(handle) => ask(&handle, Command::Start).await,
        Err(Error::NoSuchPod(_)) => {
            let owner = core.find(pod)?.view.borrow().clone();
            match owner.state.status.is_up() {
                true => Ok(()),
                false => Err(Error::Conflict(format!(
                    "cannot join network of a non running container: {}: start it first",
                    owner.name
                ))),
            }
        }
        Err(error) => Err(error),
    }
}

async fn ask(
    handle: &PodHandle,
    command: impl FnOnce(oneshot::Sender<Result<()>>) -> Command,
) -> Result<()> {
    let gone = || Error::NoSuchPod(handle.view.borrow().name.clone());
    let (reply, answer) = oneshot::channel();
    handle.commands.send(command(reply)).await.map_err(|_| gone())?;
    answer.await.unwrap_or_else(|_| Err(gone()))
}
