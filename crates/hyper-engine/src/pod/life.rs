//! From a spec to a guest without containers, its end, and finding it again.

use std::sync::Arc;

use hyper_task::annotation;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::spec::PodSpec;
use crate::container::spec::{HostSpec, Spec};
use crate::container::start;
use crate::container::state::Exit;
use crate::core::Core;
use crate::engine::pods;
use crate::network::attach::Attachment;
use crate::network::spec::{EGRESS, NONE, RATE};
use crate::supervisor::{self, Found, Pod};
use crate::{Error, Result, layout};

/// A guest that is up, and the task that waits for its end.
pub(super) type Up = (Arc<Pod>, AbortOnDropHandle<Exit>);

/// Boots the guest. On failure nothing is left.
pub(super) async fn boot(core: Arc<Core>, spec: Arc<PodSpec>, name: String) -> Result<Up> {
    let bundle = core.layout.bundle(&spec.id);
    let result = async {
        let attachment = attach(&core, &spec, name).await?;
        let (written, document) = (bundle.clone(), document(&core, &spec, &attachment));
        crate::core::blocking(move || {
            layout::private_directory(&written)?;
            let path = written.join("config.json");
            std::fs::write(&path, document.to_string()).map_err(Error::file("write", path))
        })
        .await?;
        let address = core.launcher.launch(&spec.id, &bundle, false).await?;
        let pod = Arc::new(Pod::connect(&spec.id, &bundle, &address).await?);
        let (created, ()) = tokio::join!(pod.create_sandbox(), pod.identify());
        created?;
        let ended = watch(&pod);
        pod.start(None).await?;
        Ok((pod, ended))
    }
    .await;
    if result.is_err() {
        start::discard(&core, &spec.id).await;
    }
    result
}

/// Gives the pod its network, with the ports that its containers publish.
async fn attach(core: &Arc<Core>, spec: &PodSpec, name: String) -> Result<Attachment> {
    if matches!(spec.network.as_str(), "" | NONE) {
        return Ok(Attachment::default());
    }
    let whole = whole(core, spec);
    let turn = core.networks.turn(&spec.id).await;
    let engine = core.clone();
    // Once begun it is carried out: a start that is given up is followed by a release.
    let attaching = async move {
        let _turn = turn;
        engine.networks.attach(&whole, &name).await
    };
    let attachment = core.tasks.spawn(attaching).await.map_err(|_| Error::ShuttingDown)??;
    core.networks.set_services(&spec.id, &spec.services).await?;
    Ok(attachment)
}

/// Networks know containers: to them the pod is one, with all that its own ask for.
fn whole(core: &Core, spec: &PodSpec) -> Spec {
    let members = pods::members(core, &spec.id);
    let host = HostSpec {
        hostname: spec.hostname.clone(),
        network: spec.network.clone(),
        annotations: [(EGRESS, &spec.egress), (RATE, &spec.network_rate)]
            .into_iter()
            .filter_map(|(key, text)| Some((key.to_owned(), text.clone()?)))
            .collect(),
        ports: members.iter().flat_map(|view| view.spec.host.ports.clone()).collect(),
        ..HostSpec::default()
    };
    Spec { id: spec.id.clone(), host, ..Spec::default() }
}

/// Brings the network of a pod that is up to what its spec says: policy, rates and services.
pub(crate) async fn renew_network(core: &Core, spec: &PodSpec) -> Result<()> {
    let whole = whole(core, spec);
    core.networks.set_egress(&whole).await?;
    core.networks.set_rates(&whole).await?;
    core.networks.set_services(&spec.id, &spec.services).await
}

/// Waits for the end of the sandbox, which is the end of the guest.
pub(super) fn watch(pod: &Arc<Pod>) -> AbortOnDropHandle<Exit> {
    let waiting = pod.clone();
    AbortOnDropHandle::new(tokio::spawn(async move { waiting.wait().await }))
}

/// Ends the guest, with what may still be in it, and removes what it had on the host.
pub(super) async fn end(core: Arc<Core>, pod: Arc<Pod>) {
    if let Err(error) = pod.kill(None, 9, false).await {
        // It may be over.
        tracing::debug!(pod = pod.id(), %error, "end the sandbox");
    }
    if pod.end_last().await.is_none() {
        core.launcher.clean(pod.id(), pod.bundle()).await;
    }
    core.tasks.spawn(core.networks.release(pod.id()).await.remove());
    start::remove_bundle(pod.bundle()).await;
}

/// The pod after hyperd was away: its supervisor and whether it is paused, or why it is no more.
pub(crate) async fn adopt(core: &Arc<Core>, id: &str) -> Result<(Arc<Pod>, bool), String> {
    let bundle = core.layout.bundle(id);
    let address = supervisor::read_address(&bundle)
        .await
        .ok_or_else(|| "the host was restarted, or its runtime files were removed".to_owned())?;
    let pod = Pod::connect(id, &bundle, &address).await.map_err(|error| error.chain())?;
    pod.identify().await;
    match pod.state().await {
        Ok(Found::Up { paused, .. }) => Ok((Arc::new(pod), paused)),
        Ok(Found::Ended | Found::Unstarted) => {
            let exit = supervisor::read_exit(&bundle).await.unwrap_or_default();
            Err(if exit.reason.is_empty() { "its guest ended".to_owned() } else { exit.reason })
        }
        Err(error) => Err(error.chain()),
    }
}

fn document(core: &Core, spec: &PodSpec, attachment: &Attachment) -> Value {
    let mut annotations = json!({
        (annotation::CRI_CONTAINER_TYPE): "sandbox",
        (annotation::CRI_SANDBOX_ID): spec.id,
        (annotation::HYPERVISOR): core.runtime(&spec.runtime),
    });
    if let Some(vcpus) = spec.vcpus {
        annotations[annotation::VCPUS] = json!(vcpus.to_string());
    }
    if let Some(bytes) = spec.memory_bytes {
        annotations[annotation::MEMORY] = json!(bytes.to_string());
    }
    let mut namespaces = json!([]);
    if let Some(path) = &attachment.namespace {
        annotations[annotation::NETWORK_STRICT] = json!("true");
        annotations[annotation::NETWORK_REMOVED] = json!("true");
        namespaces = json!([{ "type": "network", "path": path }]);
    }
    if let Some(path) = &attachment.names {
        annotations[annotation::NAMES] = json!(path.display().to_string());
    }
    json!({
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "annotations": annotations,
        "linux": { "sysctl": spec.sysctls, "namespaces": namespaces },
    })
}
