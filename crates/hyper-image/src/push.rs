//! A push: what a name means here, to the registry it names.
//!
//! ```text
//!  name ─► manifest (and index, if whole) ─► layers (parallel) ─► configs ─► manifests ─► tag
//!           all leased                        └ there, mounted from another repository, or sent
//! ```
//! Documents go byte for byte, so that what was pulled keeps its digest. The tag comes last: a push that fails leaves
//! only blobs behind that nothing refers to.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Pushed;
use crate::progress::{Event, LayerState, Progress};
use crate::reference::{Reference, ReferenceError};
use crate::registry::{Access, Blob, Repository, Uploaded};
use crate::store::{Catalog, Held, Inner, Lease, blocking, joined};

/// What the uploads of one push share.
#[derive(Debug, Clone)]
struct Context {
    inner: Arc<Inner>,
    repository: Arc<Repository>,
    progress: Progress,
    _lease: Arc<Lease>,
}

/// Pushes one tag.
pub(crate) async fn push(
    inner: Arc<Inner>,
    reference: &Reference,
    credentials: &Credentials,
    progress: Progress,
) -> Result<Pushed, Error> {
    if reference.digest().is_some() {
        return Err(ReferenceError::NotATag(reference.familiar()).into());
    }
    let reference = reference.clone().or_latest();
    let lease = Arc::new(inner.leases.lease());
    let held = look(&inner, &reference, &lease).await?;
    let sources = Sources::of(&inner.catalog(), &reference);
    let mut mounts: Vec<String> =
        held.blobs.keys().filter_map(|digest| sources.of_blob(digest)).collect();
    mounts.sort();
    mounts.dedup();
    progress.send(Event::Pushing { reference: reference.clone(), layers: held.layers.clone() });
    let (registries, access) = (Arc::clone(&inner.registries), Access::Push { mounts });
    let repository =
        Repository::new(registries, reference.clone(), credentials.clone(), access).await?;
    let repository = Arc::new(repository);
    let context = Context { inner, repository, progress, _lease: lease };

    let is_layer = |digest: &Digest| held.layers.contains(digest);
    let (layers, configs): (Vec<_>, Vec<_>) =
        held.blobs.iter().map(|(d, s)| (*d, *s)).partition(|(digest, _)| is_layer(digest));
    send_all(&context, &sources, &layers, true).await?;
    send_all(&context, &sources, &configs, false).await?;
    for child in &held.children {
        let key = child.digest.to_string();
        context.repository.put_manifest(&key, &child.media_type, &child.bytes).await?;
    }
    let top = &held.top;
    let tag = reference.manifest_key();
    context.repository.put_manifest(&tag, &top.media_type, &top.bytes).await?;
    send_referrers(&context, &sources, &held).await?;

    let pushed = Pushed { reference, digest: top.digest, size: top.bytes.len() as u64 };
    let (at_digest, inner) = (pushed.reference.at_digest(top.digest), Arc::clone(&context.inner));
    let reference = pushed.reference.clone();
    blocking(move || remember(&inner, &reference, &at_digest)).await?;
    context.progress.send(Event::Pushed {
        reference: pushed.reference.clone(),
        digest: pushed.digest,
        size: pushed.size,
    });
    Ok(pushed)
}

/// What is about the image goes where it goes. After it: a registry may refuse what is about nothing it has.
async fn send_referrers(context: &Context, sources: &Sources, held: &Held) -> Result<(), Error> {
    for (attached, document) in &held.referrers {
        let parts: Vec<_> = attached.parts().iter().map(|p| (p.digest, p.size)).collect();
        send_all(context, sources, &parts, false).await?;
        let key = document.digest.to_string();
        let noted =
            context.repository.put_manifest(&key, &document.media_type, &document.bytes).await?;
        if !noted {
            context.repository.list_by_tag(&attached.subject, &attached.descriptor).await?;
        }
    }
    Ok(())
}

async fn look(
    inner: &Arc<Inner>,
    reference: &Reference,
    lease: &Arc<Lease>,
) -> Result<Held, Error> {
    let (inner, reference, lease) = (Arc::clone(inner), reference.clone(), Arc::clone(lease));
    blocking(move || {
        let catalog = inner.catalog();
        let missing = || Error::NoSuchImage { name: reference.familiar() };
        let entry = catalog.entry_named(&reference).ok_or_else(missing)?;
        Held::of(&inner.layout, &catalog, entry, &lease)
    })
    .await
}

/// Where on a registry blobs are already, as far as we know: repositories that images were pulled from or pushed to.
#[derive(Debug, Clone)]
struct Sources(Vec<(Digest, String)>);

impl Sources {
    fn of(catalog: &Catalog, target: &Reference) -> Self {
        let mut found = Vec::new();
        for entry in &catalog.entries {
            let Some(name) = entry.name.as_ref().filter(|name| name.digest().is_some()) else {
                continue;
            };
            if name.registry() != target.registry() || name.repository() == target.repository() {
                continue;
            }
            let layers = entry.stored.manifest.layers.iter();
            found.extend(layers.map(|layer| (layer.digest, name.repository().to_owned())));
        }
        Self(found)
    }

    fn of_blob(&self, digest: &Digest) -> Option<String> {
        self.0.iter().find(|(blob, _)| blob == digest).map(|(_, repository)| repository.clone())
    }
}

/// Sends blobs, some at a time; stops at the first error.
async fn send_all(
    context: &Context,
    sources: &Sources,
    blobs: &[(Digest, u64)],
    shown: bool,
) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    for (digest, size) in blobs.iter().copied() {
        let mut context = context.clone();
        if shown {
            context.progress.layer(digest, LayerState::Pending);
        } else {
            context.progress = Progress::none();
        }
        let blob = Blob { digest, size, path: context.inner.layout.blob(&digest) };
        tasks.spawn(send(context, blob, sources.of_blob(&digest)));
    }
    // The first error drops the set, which aborts the rest.
    while let Some(result) = tasks.join_next().await {
        joined(result)?;
    }
    Ok(())
}

async fn send(context: Context, blob: Blob, from: Option<String>) -> Result<(), Error> {
    let slots = Arc::clone(&context.inner.upload_slots);
    let _slot = slots.acquire_owned().await.map_err(|_| Error::Cancelled)?;
    let done = context.repository.upload(&blob, from.as_deref(), &context.progress).await?;
    let state = match done {
        Uploaded::Exists => LayerState::Exists,
        Uploaded::Mounted(from) => LayerState::Mounted { from },
        Uploaded::Pushed => LayerState::Pushed,
    };
    context.progress.layer(blob.digest, state);
    Ok(())
}

/// Notes that the repository has this image now: its digest is a name, and its blobs can be mounted from there.
fn remember(inner: &Inner, reference: &Reference, at_digest: &Reference) -> Result<(), Error> {
    if inner.catalog().named(at_digest).is_some() {
        return Ok(());
    }
    inner.change(
        |catalog| {
            // A name that was moved or removed meanwhile is nobody's concern here.
            if let Some(entry) = catalog.entry_named(reference).cloned() {
                let descriptor = entry.descriptor;
                catalog.set(
                    Some(at_digest),
                    &descriptor.media_type,
                    &entry.stored,
                    descriptor.size,
                );
            }
            Ok(())
        },
        |_, _, _, ()| Ok(()),
    )
}
