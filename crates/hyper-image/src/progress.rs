//! What a pull, a push or a load reports while it runs.
//!
//! Per layer (a layer is named by its blob's digest, whose [`short`](crate::Digest::short) form is Docker's id):
//! ```text
//!  Pending ─┬─► Exists
//!           ├─► Waiting ─► Exists                            another pull is fetching it
//!           └─► Downloading* ─┬─► Verifying ─► Extracting* ─► Complete
//!                  ▲    Retrying
//!                  └──────┘
//! ```
//! The layer is converted while it is downloaded; `Extracting` only shows what is left after the last byte came.
//! In a push:
//! ```text
//!  Pending ─┬─► Exists | Mounted
//!           └─► Pushing* ─► Pushed
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;
use crate::reference::Reference;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The registry is asked for the manifest of this reference.
    Resolving {
        /// As asked for, with its tag.
        reference: Reference,
    },
    /// The manifest is known; layers follow. `digest` is what the tag stands for in the registry: that of the index
    /// if there is one (Docker's `Digest:` line).
    Resolved {
        /// As asked for.
        reference: Reference,
        /// Of the index or manifest.
        digest: Digest,
        /// Layers, bottom first.
        layers: Vec<Digest>,
    },
    /// Something the person should know.
    Warning {
        /// A sentence.
        text: String,
    },
    /// A push begins.
    Pushing {
        /// What is pushed, with its tag.
        reference: Reference,
        /// Layers, bottom first.
        layers: Vec<Digest>,
    },
    /// A tag is in the registry.
    Pushed {
        /// With its tag.
        reference: Reference,
        /// Of the manifest or index it stands for.
        digest: Digest,
        /// Bytes of that document.
        size: u64,
    },
    /// Something happened to a layer.
    Layer {
        /// Digest of the layer's blob, or of its archive entry.
        digest: Digest,
        /// What.
        state: LayerState,
    },
    /// An image is complete and named.
    Done {
        /// The reference, or `None` for an image loaded without a name.
        reference: Option<Reference>,
        /// Digest of the config.
        image: Digest,
        /// Digest of the index or manifest.
        digest: Digest,
        /// Whether the name pointed to this image before.
        up_to_date: bool,
    },
}

/// State of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerState {
    /// Queued behind others.
    Pending,
    /// In the store already.
    Exists,
    /// Being fetched for somebody else.
    Waiting,
    /// Bytes have come. Sent at most ten times a second.
    Downloading {
        /// Bytes of the blob so far, those of an earlier attempt included.
        current: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// The transfer failed for now.
    Retrying {
        /// Until the next attempt.
        after: Duration,
        /// Why, for people.
        reason: String,
    },
    /// All bytes are here; digests are being completed.
    Verifying,
    /// The rest is being converted.
    Extracting {
        /// Compressed bytes converted.
        current: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// In the store.
    Complete,
    /// Bytes were sent. At most ten times a second.
    Pushing {
        /// Bytes of the blob so far.
        current: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// In the registry.
    Pushed,
    /// The registry had it in another repository.
    Mounted {
        /// Path of that repository.
        from: String,
    },
}

/// Where reports go. Cheap to clone. The callback is called from any thread and must return at once.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Event) + Send + Sync>>);

impl Progress {
    /// Nowhere.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// To a callback, which must not block.
    #[must_use]
    pub fn new(callback: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    /// To a channel. Unbounded, but reports are rare: some tens per layer and second at most.
    #[must_use]
    pub fn channel() -> (Self, tokio::sync::mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        // A receiver that went away no longer wants to know.
        let progress = Self::new(move |event| drop(sender.send(event)));
        (progress, receiver)
    }

    pub(crate) fn send(&self, event: Event) {
        if let Some(callback) = &self.0 {
            callback(event);
        }
    }

    pub(crate) fn layer(&self, digest: Digest, state: LayerState) {
        self.send(Event::Layer { digest, state });
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(callback)" } else { "Progress(none)" })
    }
}
