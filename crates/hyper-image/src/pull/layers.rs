//! Getting layers: each blob fetched once, each content converted once, whoever asks.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;

use crate::digest::Digest;
use crate::error::Error;
use crate::layer::{Partial, Reception};
use crate::progress::{LayerState, Progress};
use crate::registry::{Chunk, Repository, Wanted};
use crate::store::{Flight, Inner, Key, Lease, blocking, joined, layout};

/// Chunks between the network and the receiver's thread.
const CHUNKS: usize = 8;

/// A layer of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Layer {
    pub blob: Digest,
    pub size: u64,
    pub diff_id: Digest,
}

/// What the layers of one pull share.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub inner: Arc<Inner>,
    pub repository: Arc<Repository>,
    pub lease: Arc<Lease>,
    pub progress: Progress,
}

/// Held until the work on a layer is over, even if whoever wanted it is gone.
struct Held {
    _flights: (Flight, Flight),
    _slot: OwnedSemaphorePermit,
    _lease: Arc<Lease>,
}

/// Gets all layers, some at a time; stops at the first error.
pub(super) async fn fetch_all(context: &Context, layers: &[Layer]) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    for layer in layers.iter().copied().collect::<BTreeSet<_>>() {
        context.progress.layer(layer.blob, LayerState::Pending);
        tasks.spawn(ensure(context.clone(), layer));
    }
    // The first error drops the set, which aborts the rest.
    while let Some(result) = tasks.join_next().await {
        joined(result)?;
    }
    Ok(())
}

/// Bytes that still have to be fetched.
pub(super) fn missing_bytes(inner: &Inner, layers: &[Layer]) -> u64 {
    let distinct: BTreeSet<(Digest, u64)> =
        layers.iter().map(|layer| (layer.blob, layer.size)).collect();
    let missing = distinct
        .iter()
        .filter(|(blob, _)| !inner.layout.blob(blob).exists())
        .map(|(_, size)| *size);
    missing.fold(0, u64::saturating_add)
}

async fn ensure(context: Context, layer: Layer) -> Result<(), Error> {
    let Context { inner, progress, .. } = &context;
    let waiting = || progress.layer(layer.blob, LayerState::Waiting);
    let blob_flight = inner.flights.acquire(Key::Blob(layer.blob), waiting).await;
    let layer_flight = inner.flights.acquire(Key::Layer(layer.diff_id), || {}).await;
    let (has_blob, has_layer) = look(inner, layer).await?;
    if has_blob && has_layer {
        progress.layer(layer.blob, LayerState::Exists);
        return Ok(());
    }
    let slot = Arc::clone(&inner.slots).acquire_owned().await.map_err(|_| Error::Cancelled)?;
    let held = Held {
        _flights: (blob_flight, layer_flight),
        _slot: slot,
        _lease: Arc::clone(&context.lease),
    };
    if !has_blob {
        return fetch(&context, layer, has_layer, held).await;
    }
    let (inner, progress) = (Arc::clone(inner), progress.clone());
    blocking(move || {
        let _held = held;
        progress.layer(layer.blob, LayerState::Extracting { current: 0, total: layer.size });
        inner.convert_stored(layer.blob, layer.diff_id)?;
        progress.layer(layer.blob, LayerState::Complete);
        Ok(())
    })
    .await
}

async fn look(inner: &Arc<Inner>, layer: Layer) -> Result<(bool, bool), Error> {
    let inner = Arc::clone(inner);
    blocking(move || {
        let path = inner.layout.blob(&layer.blob);
        let has_blob = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() == layer.size => true,
            Ok(metadata) => {
                let what = format!("layer {}", layer.blob);
                return Err(Error::SizeMismatch {
                    what,
                    expected: layer.size,
                    actual: metadata.len(),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(layout::failed("examine", &path, error)),
        };
        Ok((has_blob, inner.has_layer(&layer.diff_id)))
    })
    .await
}

/// Transfers a blob and converts it on the way. What an earlier attempt left is gone on with; if that turns out to
/// have been damaged, once more from the start.
async fn fetch(context: &Context, layer: Layer, has_layer: bool, held: Held) -> Result<(), Error> {
    let mut held = held;
    loop {
        let inner = Arc::clone(&context.inner);
        let partial =
            blocking(move || Partial::open(&inner.layout, &layer.blob, layer.size)).await?;
        let from = partial.length;
        let reception = Reception {
            layout: context.inner.layout.clone(),
            digest: layer.blob,
            size: layer.size,
            what: context.repository.blob_url(&layer.blob),
            conversion: (!has_layer).then(|| context.inner.conversion(layer.blob, layer.diff_id)),
            progress: context.progress.clone(),
        };
        let (sender, receiver) = mpsc::channel::<Chunk>(CHUNKS);
        let job = tokio::task::spawn_blocking(move || Ok((reception.run(partial, receiver), held)));
        let wanted = Wanted { digest: layer.blob, size: layer.size, from };
        let sent = context.repository.transfer(wanted, &sender, &context.progress).await;
        drop(sender);
        let (received, still_held) = joined(job.await)?;
        held = still_held;
        match (received, sent) {
            (Ok(()), _) => return Ok(()),
            (Err(error @ (Error::DigestMismatch { .. } | Error::SizeMismatch { .. })), _) => {
                let of_blob = !context.inner.layout.blob(&layer.blob).exists();
                if from == 0 || !of_blob {
                    return Err(error);
                }
                tracing::debug!(digest = %layer.blob, "what was kept of an earlier attempt was damaged: starting anew");
            }
            // A receiver that only saw the transfer end: the transfer knows why.
            (Err(Error::Cancelled), Err(error)) | (Err(error), _) => return Err(error),
        }
    }
}
