//! Where the time of a container's life went: hyperd's own stamps beside the supervisor's.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use hyper_task::pod::Phases;
use serde::{Deserialize, Serialize};

/// Finished containers that are remembered.
const KEPT: usize = 1000;

/// Times of one run, nanoseconds since the Unix epoch; `None`: not yet, or not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub name: String,
    pub image: String,
    /// As asked for: `auto` or a hypervisor.
    pub runtime: String,
    /// The create request was accepted.
    pub create_accepted: Option<i64>,
    pub create_done: Option<i64>,
    /// The start request was accepted.
    pub start_accepted: Option<i64>,
    /// The supervisor is connected.
    pub supervisor_connected: Option<i64>,
    /// The writable disk is there.
    pub disk_ready: Option<i64>,
    /// The supervisor has answered Task `Create`.
    pub task_created: Option<i64>,
    /// The start request is answered.
    pub start_done: Option<i64>,
    /// hyperd knows of the exit.
    pub exit_seen: Option<i64>,
    /// The pod and its bundle are gone.
    pub cleaned: Option<i64>,
    /// The container is gone (`--rm`).
    pub removed: Option<i64>,
    pub supervisor: Phases,
}

/// The last [`KEPT`] runs that have ended.
#[derive(Debug, Default)]
pub(crate) struct Finished(Mutex<VecDeque<Record>>);

impl Finished {
    pub fn push(&self, record: Record) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(record);
    }

    /// The last run of a container, by id or unambiguous start of one, or by name.
    pub fn find(&self, reference: &str) -> Option<Record> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = kept.iter().rev().filter(|record| {
            record.name == reference || (reference.len() >= 4 && record.id.starts_with(reference))
        });
        found.next().cloned()
    }

    /// All, oldest first.
    pub fn all(&self) -> Vec<Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

pub(crate) fn now() -> Option<i64> {
    Some(hyper_stdio::now_ns())
}
