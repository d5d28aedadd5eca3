//! The pod's events to containerd's events service, which may be absent, slow or dead.
//!
//! ```text
//! PodEvent ─► queue ─► forward ─ok─► next
//!                         └ fails ─► reconnect, three tries, then the event is dropped
//! ```
//! Nothing waits for this: a pod without listeners runs as well as one with.

use std::time::Duration;

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim::{event::Envelope, events::ForwardRequest};
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::r#async::transport::Socket;
use containerd_shim_protos::ttrpc::context::with_duration;
use containerd_shim_protos::types::mount::Mount;
use hyper_pod::PodEvent;
use tokio::sync::mpsc;

use crate::wire::{any, timestamp};

const TRIES: u32 = 3;
const DEADLINE: Duration = Duration::from_secs(5);

/// Publishes until the pod is gone and all is told.
pub async fn publish(
    namespace: String,
    address: Option<String>,
    mut events: mpsc::UnboundedReceiver<PodEvent>,
) {
    let mut client = None;
    while let Some(event) = events.recv().await {
        let Some(address) = &address else { continue };
        let (topic, message) = message(event);
        let mut envelope = Envelope::new();
        envelope.topic = topic.to_owned();
        envelope.namespace.clone_from(&namespace);
        envelope.timestamp = MessageField::some(timestamp(hyper_stdio::now_ns()));
        envelope.event = match any(&*message) {
            Ok(event) => MessageField::some(event),
            Err(error) => {
                tracing::error!(topic, %error, "event not encoded");
                continue;
            }
        };
        let mut request = ForwardRequest::new();
        request.envelope = MessageField::some(envelope);
        if !forward(&mut client, address, &request).await {
            tracing::warn!(topic, address, "event dropped: its receiver does not answer");
        }
    }
}

async fn forward(
    client: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> bool {
    for attempt in 0..TRIES {
        if client.is_none() {
            *client = connect(address).await;
        }
        if let Some(connected) = client {
            let deadline = with_duration(DEADLINE);
            match tokio::time::timeout(DEADLINE, connected.forward(deadline, request)).await {
                Ok(Ok(_)) => return true,
                Ok(Err(error)) => tracing::debug!(%error, "event not taken"),
                Err(_) => tracing::debug!("event not taken in time"),
            }
            *client = None;
        }
        tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
    }
    false
}

async fn connect(address: &str) -> Option<EventsClient> {
    let address =
        if address.contains("://") { address.to_owned() } else { format!("unix://{address}") };
    let socket = tokio::time::timeout(DEADLINE, Socket::connect(&address)).await.ok()?.ok()?;
    Some(EventsClient::new(Client::new(socket)))
}

fn message(event: PodEvent) -> (&'static str, Box<dyn MessageDyn>) {
    match event {
        PodEvent::Created { container, bundle, rootfs, stdio, pid } => {
            let rootfs = rootfs.into_iter().map(|mount| Mount {
                type_: mount.kind,
                source: mount.source,
                options: mount.options,
                ..Mount::default()
            });
            let message = TaskCreate {
                container_id: container,
                bundle: bundle.display().to_string(),
                rootfs: rootfs.collect(),
                io: MessageField::some(TaskIO {
                    stdin: stdio.stdin,
                    stdout: stdio.stdout,
                    stderr: stdio.stderr,
                    terminal: stdio.terminal,
                    ..TaskIO::default()
                }),
                pid,
                ..TaskCreate::default()
            };
            (topics::TASK_CREATE_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::Started { container, pid } => {
            let message = TaskStart { container_id: container, pid, ..TaskStart::default() };
            (topics::TASK_START_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::ExecAdded { container, exec } => {
            let message = TaskExecAdded {
                container_id: container,
                exec_id: exec,
                ..TaskExecAdded::default()
            };
            (topics::TASK_EXEC_ADDED_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::ExecStarted { container, exec, pid } => {
            let message = TaskExecStarted {
                container_id: container,
                exec_id: exec,
                pid,
                ..TaskExecStarted::default()
            };
            (topics::TASK_EXEC_STARTED_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::Exited { process, pid, exit } => {
            // The id of a container's first process is the container's.
            let id = process.exec.unwrap_or_else(|| process.container.clone());
            let message = TaskExit {
                container_id: process.container,
                id,
                pid,
                exit_status: exit.code.cast_unsigned(),
                exited_at: MessageField::some(timestamp(exit.unix_ns)),
                ..TaskExit::default()
            };
            (topics::TASK_EXIT_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::Deleted { process, pid, exit } => {
            let message = TaskDelete {
                container_id: process.container,
                id: process.exec.unwrap_or_default(),
                pid,
                exit_status: exit.code.cast_unsigned(),
                exited_at: MessageField::some(timestamp(exit.unix_ns)),
                ..TaskDelete::default()
            };
            (topics::TASK_DELETE_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::Paused { container } => {
            let message = TaskPaused { container_id: container, ..TaskPaused::default() };
            (topics::TASK_PAUSED_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::Resumed { container } => {
            let message = TaskResumed { container_id: container, ..TaskResumed::default() };
            (topics::TASK_RESUMED_EVENT_TOPIC, Box::new(message))
        }
        PodEvent::Oom { container } => {
            let message = TaskOOM { container_id: container, ..TaskOOM::default() };
            (topics::TASK_OOM_EVENT_TOPIC, Box::new(message))
        }
    }
}
