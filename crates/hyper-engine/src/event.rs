//! What happened: a ring of the last events, and a live feed.
//!
//! Events are news, not state: a slow listener loses some and is told so. The ring is kept in the
//! database as well, so that `since` reaches over a restart of hyperd.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::store::Store;

/// Events that `since` can reach back to.
pub(crate) const RING: usize = 1024;
/// Events that a listener may be behind.
const LAG: usize = 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: Kind,
    /// `create`, `start`, `die`, `pull`, …: Docker's words.
    pub action: String,
    /// Id of the container or name of the image.
    pub actor: String,
    /// Labels of the object, and what belongs to the action.
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: i64,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Container,
    Image,
    Volume,
    Network,
    Pod,
}

impl Kind {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
            Self::Pod => "pod",
        }
    }
}

/// The ring and the feed.
#[derive(Debug)]
pub(crate) struct Log {
    ring: Mutex<VecDeque<Event>>,
    feed: broadcast::Sender<Event>,
    store: Option<Store>,
}

impl Default for Log {
    fn default() -> Self {
        Self { ring: Mutex::default(), feed: broadcast::Sender::new(LAG), store: None }
    }
}

impl Log {
    /// Goes on where the last hyperd ended.
    pub async fn kept_in(store: Store) -> crate::Result<Self> {
        let ring = store.events().await?.into();
        Ok(Self { ring: Mutex::new(ring), store: Some(store), ..Self::default() })
    }

    pub fn publish(
        &self,
        kind: Kind,
        action: impl Into<String>,
        actor: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let event = Event {
            kind,
            action: action.into(),
            actor: actor.to_owned(),
            attributes,
            unix_ns: hyper_stdio::now_ns(),
        };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        if let Some(store) = &self.store {
            // Under the lock, so that they are kept in order; news that do not fit are only told.
            store.keep_event(&event);
        }
        // Under the lock, so that `listen` misses none and sees none twice. No listener: no error.
        let _ = self.feed.send(event);
    }

    /// Past events from `since` on, and the feed of those after them.
    pub fn listen(&self, since: Option<i64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let past = match since {
            None => Vec::new(),
            Some(since) => ring.iter().filter(|event| event.unix_ns >= since).cloned().collect(),
        };
        (past, self.feed.subscribe())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn past_and_live_meet_without_gap() {
        let log = Log::default();
        for n in 0..RING + 5 {
            log.publish(Kind::Container, format!("a{n}"), "x", BTreeMap::new());
        }
        let (past, mut live) = log.listen(Some(0));
        assert_eq!((past.len(), past[0].action.as_str()), (RING, "a5"));
        log.publish(Kind::Image, "pull", "busybox", BTreeMap::new());
        assert_eq!(live.recv().await.unwrap().action, "pull");
        assert!(log.listen(None).0.is_empty());
    }
}
