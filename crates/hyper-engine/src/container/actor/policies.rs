//! What a container's actor does by itself: starting it again, looking at its health.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::{Actor, Boxed, KILL, SIGKILL, Work};
use crate::container::health::{self, Probe};
use crate::container::restart;
use crate::container::spec::HealthCheck;
use crate::container::state::{Event, Status};
use crate::engine::STOP_GRACE;
use crate::supervisor::Pod;

impl Actor {
    /// Nothing is in hand: the container stays as it is, or is started again after `wait`.
    pub(super) fn settle(&mut self, wait: Duration) {
        if self.state.status != Status::Restarting {
            self.work = Work::Idle;
            return;
        }
        let places = self.core.restarts.clone();
        self.work = Work::Resting(Box::pin(async move {
            tokio::time::sleep(wait).await;
            // `None` only when the engine is being closed.
            places.acquire_owned().await.ok()
        }));
    }

    pub(super) fn rested(&mut self, place: Option<OwnedSemaphorePermit>) {
        tracing::info!(container = self.spec.id, restarts = self.state.restarts, "restart");
        self.begin(Event::RestartDue, Vec::new(), place);
    }

    /// After an end or a failed start: whether the restart policy starts it again.
    pub(super) fn plan_restart(&mut self) {
        let removed = self.spec.host.auto_remove || !self.removals.is_empty();
        if removed || !restart::wanted(self.spec.host.restart, &self.state) {
            return;
        }
        if let Err(error) = self.state.apply(Event::RestartPlanned { counted: true }) {
            tracing::error!(container = self.spec.id, %error, "restart");
        }
    }

    pub(super) fn next_backoff(&mut self) -> Duration {
        let ran = match (self.state.started_ns, self.state.finished_ns) {
            (Some(started), Some(finished)) => finished.saturating_sub(started).max(0),
            _ => 0,
        };
        self.backoff.after(Duration::from_nanos(ran.unsigned_abs()))
    }

    /// The next look at its health, if it has a check and is not frozen.
    pub(super) fn next_probe(&self, pod: &Arc<Pod>) -> Option<Boxed<Probe>> {
        let on = self.spec.health.as_ref().is_some_and(HealthCheck::is_on);
        if !on || self.state.status != Status::Running {
            return None;
        }
        let health = self.state.health.clone().unwrap_or_default();
        let started = self.state.started_ns.unwrap_or_default();
        let (core, spec) = (self.core.clone(), self.spec.clone());
        Some(Box::pin(health::next(core, spec, pod.clone(), health, started)))
    }

    pub(super) fn look_again(&mut self) {
        let Some(pod) = self.pod() else { return };
        let next = self.next_probe(&pod);
        if let Work::Up { probe, .. } = &mut self.work {
            *probe = next;
        }
    }

    pub(super) async fn probed(&mut self, probe: Probe) {
        let started = self.state.started_ns.unwrap_or_default();
        if let Some(check) = &self.spec.health {
            let mut health = self.state.health.take().unwrap_or_default();
            let turned = health.take(check, started, probe);
            let word = health.status.word();
            let ends = check.gives_up(&health) && health::ends(&self.spec);
            self.state.health = Some(health);
            self.keep(self.pod()).await;
            if turned {
                self.event(&format!("health_status: {word}"), []);
            }
            if ends && let Some(pod) = self.pod() {
                self.end_unhealthy(pod).await;
            }
        }
        self.look_again();
    }

    /// As `stop`, but nobody has asked for it: the restart policy decides what is next.
    async fn end_unhealthy(&mut self, pod: Arc<Pod>) {
        let id = self.spec.id.clone();
        tracing::warn!(container = id, "unhealthy: ended for its restart policy");
        let signal = crate::signal::of(&self.spec.stop_signal);
        if let Err(error) = self.signal(&pod, signal, true).await {
            tracing::warn!(container = id, %error, "end an unhealthy container");
        }
        let grace = self.spec.host.stop_timeout.unwrap_or(STOP_GRACE);
        // Negative: for as long as it takes.
        let Ok(grace) = u64::try_from(grace).map(Duration::from_secs) else { return };
        self.core.tasks.spawn(async move {
            if tokio::time::timeout(grace, pod.wait()).await.is_ok() {
                return;
            }
            if let Err(error) = pod.kill(None, SIGKILL, false).await {
                tracing::warn!(container = id, %error, "kill an unhealthy container");
            }
            if tokio::time::timeout(KILL, pod.wait()).await.is_err() {
                pod.kill_supervisor();
            }
        });
    }
}
