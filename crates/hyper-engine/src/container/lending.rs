//! A container's files while it does not run: a pod with its disks in which nothing is started.
//!
//! ```text
//!   Idle ──Borrow──▶ opening ──ok──▶ lent ──no loan for a while, or somebody waits──▶ closing ──▶ Idle
//!                       └─ failed (nothing left) ────────────────────────────────────────────────▲
//! ```
//! A container that joined a pod is reached in that pod's guest while it is up.
//!
//! It has the container's own place for a bundle, so there is never one beside a running pod, and a
//! hyperd that comes back discards it like any pod of a container that is not up.

use std::sync::Arc;
use std::time::Duration;

use hyper_task::annotation::FILES_ONLY;
use hyper_task::stdio::Sink;
use tokio::sync::{Notify, watch};

use super::spec::{Limits, Log, Spec};
use super::start;
use crate::core::Core;
use crate::engine::pods;
use crate::supervisor::{CreateTask, Pod};
use crate::{Error, Result};

/// How long the pod stays for the next request: `docker cp` makes two or three.
const LINGER: Duration = Duration::from_millis(1500);

/// The right to use a container's pod for its files. A pod that is there for that only ends some
/// time after the last loan is dropped.
#[derive(Debug)]
pub(crate) struct Loan {
    pod: Arc<Pod>,
    count: Option<watch::Sender<usize>>,
}

impl Loan {
    /// Of a pod that runs for itself.
    pub fn free(pod: Arc<Pod>) -> Self {
        Self { pod, count: None }
    }

    pub fn pod(&self) -> &Pod {
        &self.pod
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(count) = &self.count {
            count.send_modify(|count| *count -= 1);
        }
    }
}

/// A pod that is lent out.
#[derive(Debug)]
pub(super) struct Lent {
    pod: Arc<Pod>,
    count: watch::Sender<usize>,
    hurry: Arc<Notify>,
}

impl Lent {
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod, count: watch::Sender::new(0), hurry: Arc::default() }
    }

    pub fn lend(&self) -> Loan {
        self.count.send_modify(|count| *count += 1);
        Loan { pod: self.pod.clone(), count: Some(self.count.clone()) }
    }

    /// Somebody waits: it is not kept for the next request.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Resolves when nobody has a loan any more, and nobody came for a while.
    pub async fn returned(&self) {
        let mut count = self.count.subscribe();
        loop {
            // The sender lives in `self`.
            let _ = count.wait_for(|count| *count == 0).await;
            tokio::select! {
                () = tokio::time::sleep(LINGER) => return,
                () = self.hurry.notified() => return,
                _ = count.changed() => {}
            }
        }
    }

    /// Ends the pod: what was written is on the disk then.
    pub async fn close(self, core: Arc<Core>) {
        if self.pod.end(false).await.is_none() {
            core.launcher.clean(self.pod.id(), self.pod.bundle()).await;
        }
        start::remove_bundle(self.pod.bundle()).await;
    }
}

/// Makes the pod. On failure nothing of it is left.
pub(super) async fn open(core: Arc<Core>, spec: Arc<Spec>) -> Result<Arc<Pod>> {
    let spec = files_only(&core, &spec);
    let made = async {
        let (pod, rootfs, prepared) = start::pod_with_disks(&core, &spec).await?;
        let create = pod.create(CreateTask {
            rootfs,
            options: prepared.options,
            terminal: false,
            stdin: String::new(),
            stdout: Sink::Hub(None).to_uri(),
            stderr: Sink::Hub(None).to_uri(),
        });
        let (created, ()) = tokio::join!(create, pod.identify());
        created.map(|()| pod)
    };
    let made: Result<Arc<Pod>> = made.await;
    if made.is_err() {
        start::discard(&core, &spec.id).await;
    }
    made.map_err(|error| match error {
        // No program was to be run: these words are of something else.
        Error::Program { message, .. } => {
            crate::supervisor::trouble(&spec.id, "reach its files", message)
        }
        other => other,
    })
}

/// The container without what only its processes need.
fn files_only(core: &Core, spec: &Spec) -> Arc<Spec> {
    let mut spec = spec.clone();
    spec.host.annotations.insert(FILES_ONLY.to_owned(), "true".to_owned());
    spec.host.limits = Limits::default();
    spec.host.log = Log { driver: Log::NONE.to_owned(), ..Log::default() };
    spec.host.network = crate::network::spec::NONE.to_owned();
    spec.host.tty = false;
    spec.host.sysctls.clear();
    // Nothing of them is in its root; and after a reboot they would be missing.
    spec.host.files.clear();
    spec.host.secret_env.clear();
    spec.host.ulimits.clear();
    // A guest that is up has its disk, and no other may: it is there that they are reached.
    if pods::others_up(core, &spec.id) {
        spec.host.pod.clone_from(&spec.id);
    } else if !pods::is_up(core, &spec.host.pod) {
        spec.host.pod.clear();
    }
    // Its guest is to sync what is written.
    spec.host.auto_remove = false;
    Arc::new(spec)
}
