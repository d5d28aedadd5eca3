//! What all clones of a store share.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hyper_erofs::Limits;
use tokio::sync::Semaphore;

use super::catalog::{Catalog, Origin, Stored};
use super::flights::Flights;
use super::layout::{self, Layout};
use super::lease::{Lease, Leases};
use super::{Options, roots, sweep};
use crate::digest::Digest;
use crate::error::Error;
use crate::layer::{Conversion, read_index};
use crate::reference::Reference;
use crate::registry::Registries;
use crate::spec::{Document, MAX_DOCUMENT};
use crate::trust::Policy;
use crate::unpack::Unpacker;

/// How long an earlier holder of the store may take to let it go: threads of work that was given up end at their next
/// step, not at once.
const HANDOVER: Duration = Duration::from_secs(2);
/// How long finished layers of an unfinished pull are kept.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// See the module.
#[derive(Debug)]
pub(crate) struct Inner {
    pub layout: Layout,
    pub limits: Limits,
    pub unpacker: Unpacker,
    pub policy: Policy,
    /// Referrers come with what is pulled.
    pub referrers: bool,
    pub registries: Arc<Registries>,
    /// Layers worked on at once.
    pub slots: Arc<Semaphore>,
    /// Layers sent at once.
    pub upload_slots: Arc<Semaphore>,
    pub flights: Flights,
    pub leases: Arc<Leases>,
    catalog: RwLock<Arc<Catalog>>,
    /// Held by whoever changes names or removes content.
    writer: Mutex<()>,
    _lock: File,
}

impl Inner {
    /// Blocking.
    pub(crate) fn open(root: &Path, options: Options) -> Result<Self, Error> {
        let layout = Layout::create(root, options.limit)?;
        let lock_path = layout.root().join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|error| layout::failed("open", &lock_path, error))?;
        let deadline = Instant::now() + HANDOVER;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Locked { path: layout.root().to_owned() });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(layout::failed("lock", &lock_path, error));
                }
            }
        }
        let catalog = Catalog::read(&layout)?;
        let leases = Arc::<Leases>::default();
        sweep::clean_ingest(&layout, GRACE)?;
        // A store with unreadable entries may need what cannot be told from here.
        if catalog.broken.is_empty() {
            sweep::sweep(&layout, &catalog, &leases, GRACE)?;
        }
        Ok(Self {
            layout,
            limits: options.limits,
            unpacker: Unpacker::new(options.limits, options.confine),
            policy: options.policy,
            referrers: !options.without_referrers,
            slots: Arc::new(Semaphore::new(options.registry.concurrency.max(1))),
            upload_slots: Arc::new(Semaphore::new(options.registry.uploads.max(1))),
            registries: Arc::new(Registries::new(options.registry)),
            flights: Flights::default(),
            leases,
            catalog: RwLock::new(Arc::new(catalog)),
            writer: Mutex::default(),
            _lock: lock,
        })
    }

    /// The names and images of this moment.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes names: all or nothing. Blocking. Returns the catalogs before and after.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Catalog) -> Result<T, Error>,
        then: impl FnOnce(&Self, &Catalog, &Catalog, T) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.catalog();
        let mut after = Catalog::clone(&before);
        let result = change(&mut after)?;
        after.detach();
        after.write(&self.layout)?;
        let after = Arc::new(after);
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&after);
        then(self, &before, &after, result)
    }

    /// After a full disk: removes everything that no image needs and nobody works on, what was kept for later attempts
    /// too. Blocking.
    pub(crate) fn make_room(&self) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = self.catalog();
        let partial = sweep::drop_partials(&self.layout, &self.leases);
        let swept = if catalog.broken.is_empty() {
            sweep::sweep(&self.layout, &catalog, &self.leases, Duration::ZERO)
        } else {
            Ok(())
        };
        for error in [partial.err(), swept.err()].into_iter().flatten() {
            tracing::warn!(error = error.chain(), "could not make room");
        }
    }

    /// Passes an outcome on; if it is a full disk or store, what the work behind `lease` left is removed first.
    pub(crate) async fn tidied<T>(
        self: &Arc<Self>,
        lease: Arc<Lease>,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        if matches!(outcome, Err(Error::NoSpace { .. } | Error::Quota { .. })) {
            // Threads that were in the middle of something notice by themselves and let go.
            let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
            while Arc::strong_count(&lease) > 1 && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            drop(lease);
            let inner = Arc::clone(self);
            super::blocking(move || {
                inner.make_room();
                Ok(())
            })
            .await?;
        }
        outcome
    }

    /// Names a manifest whose layers are all there. Blocking. The caller leases all of it.
    pub(crate) fn publish(
        &self,
        names: &[Reference],
        manifest: &[u8],
        media_type: &str,
    ) -> Result<Digest, Error> {
        self.publish_from(names, manifest, media_type, Origin::default())
    }

    /// As [`publish`](Self::publish), for an image made here.
    pub(crate) fn publish_from(
        &self,
        names: &[Reference],
        manifest: &[u8],
        media_type: &str,
        origin: Origin,
    ) -> Result<Digest, Error> {
        let digest = self.layout.write_blob(manifest)?;
        let path = self.layout.blob(&digest);
        let malformed = |reason: String| Error::Damaged { path: path.clone(), reason };
        let parsed = match Document::parse(manifest, media_type) {
            Ok(Document::Manifest(parsed)) => parsed,
            other => return Err(malformed(format!("not a manifest: {other:?}"))),
        };
        let raw_config = layout::read(&self.layout.blob(&parsed.config.digest), MAX_DOCUMENT)?;
        let config: crate::ImageConfig =
            serde_json::from_slice(&raw_config).map_err(|error| malformed(error.to_string()))?;
        let size = roots::content_bytes(&self.layout, &config.rootfs.diff_ids, &self.limits)?;
        let stored = Arc::new(Stored {
            digest,
            manifest: parsed,
            config: Arc::new(config),
            raw_config: raw_config.into(),
            size,
            origin,
        });
        let id = stored.id();
        let current = self.catalog();
        let known = |name: &Reference| {
            current
                .entries
                .iter()
                .any(|e| e.name.as_ref() == Some(name) && e.stored.digest == digest)
        };
        if !names.is_empty() && names.iter().all(known) {
            return Ok(id);
        }
        let length = manifest.len() as u64;
        self.change(
            |catalog| {
                for name in names {
                    catalog.set(Some(name), media_type, &stored, length);
                }
                if names.is_empty() {
                    catalog.set(None, media_type, &stored, length);
                }
                Ok(id)
            },
            |_, _, _, id| Ok(id),
        )
    }

    /// Whether a converted layer is there and can be read.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layout.layer(diff_id).exists()
            && read_index(&self.layout, diff_id, &self.limits).is_ok()
    }

    /// What a layer's blob is to be converted to.
    pub(crate) fn conversion(&self, blob: Digest, diff_id: Digest) -> Conversion {
        Conversion { blob, diff_id, unpacker: self.unpacker.clone() }
    }

    /// Converts a layer whose blob is in the store. Blocking; the caller holds the layer's flight.
    pub(crate) fn convert_stored(&self, blob: Digest, diff_id: Digest) -> Result<(), Error> {
        self.conversion(blob, diff_id).run_stored(&self.layout)?.publish(&self.layout)
    }
}
