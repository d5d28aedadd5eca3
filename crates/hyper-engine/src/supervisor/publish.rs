//! The service that supervisors publish their events to: `containerd.services.events.ttrpc.v1`.
//!
//! hyperd learns exits from Task `Wait`, which survives its own restart; of the published events
//! only out-of-memory kills are news. The others are accepted, as shims insist on a listener.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::topics::TASK_OOM_EVENT_TOPIC;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};
use containerd_shim_protos::ttrpc::{self};
use tokio::sync::mpsc;

use crate::{Error, Result};

/// Ids of containers whose kernel ran out of memory.
pub(crate) type OomReceiver = mpsc::Receiver<String>;

struct Publisher(mpsc::Sender<String>);

#[async_trait]
impl Events for Publisher {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        tracing::debug!(topic = envelope.topic, "supervisor event");
        if envelope.topic == TASK_OOM_EVENT_TOPIC
            && let Some(event) = envelope.event.as_ref()
            && let Ok(oom) = TaskOOM::parse_from_bytes(&event.value)
        {
            // A full queue means that nobody listens to that many ooms.
            let _ = self.0.try_send(oom.container_id);
        }
        Ok(Empty::new())
    }
}

/// The listening service; it ends when this is dropped. The lock is for `Sync` only.
pub(crate) struct Service(
    #[expect(dead_code, reason = "dropping it ends the service")] std::sync::Mutex<Server>,
);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

impl Service {
    /// Listens at `socket`, replacing what an earlier hyperd left there.
    pub async fn listen(socket: &Path) -> Result<(Self, OomReceiver)> {
        let listener =
            hyper_stdio::socket::bind(socket).map_err(Error::file("listen at", socket))?;
        let (sender, receiver) = mpsc::channel(64);
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_events(Arc::new(Publisher(sender))));
        server.start().await.map_err(|e| Error::Supervisor {
            id: "all".to_owned(),
            what: "listen for supervisors' events",
            why: e.to_string(),
        })?;
        Ok((Self(server.into()), receiver))
    }
}
