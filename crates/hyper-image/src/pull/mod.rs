//! A pull, from the reference to the named image with its assembled root.
//!
//! ```text
//!  resolve ─► manifest for the platform ─► config ─► layers (parallel) ─► root ─► names
//!              └ checked before anything is fetched          all leased ┘        └ one rename
//! ```

mod layers;
mod referrers;
mod select;

pub(crate) use select::{check_manifest, select};

use std::sync::Arc;

use layers::{Context, Layer, fetch_all, missing_bytes};

use crate::config::ImageConfig;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Rootfs;
use crate::platform::Platform;
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registry::{Access, Repository};
use crate::spec::{Descriptor, Document, MAX_DOCUMENT, Manifest};
use crate::store::{self, Inner, Key, blocking, layout};

/// Pulls an image and returns its id.
pub(crate) async fn pull(
    inner: Arc<Inner>,
    reference: &Reference,
    platform: &Platform,
    credentials: &Credentials,
    progress: Progress,
) -> Result<Digest, Error> {
    let reference = reference.clone().or_latest();
    progress.send(Event::Resolving { reference: reference.clone() });
    let registries = Arc::clone(&inner.registries);
    let repository =
        Repository::new(registries, reference.clone(), credentials.clone(), Access::Pull).await?;
    let lease = Arc::new(inner.leases.lease());
    let held = Arc::clone(&lease);
    let context =
        Context { inner: Arc::clone(&inner), repository: Arc::new(repository), lease, progress };
    let outcome = run(context, reference, platform).await;
    inner.tidied(held, outcome).await
}

async fn run(context: Context, reference: Reference, platform: &Platform) -> Result<Digest, Error> {
    let found = resolve(&context, &reference, platform).await?;
    let mut digests = vec![found.digest, Digest::of(&found.bytes)];
    digests.dedup();
    if let Some(text) =
        context.inner.policy.judge(&reference, &digests, &context.repository).await?
    {
        context.progress.send(Event::Warning { text });
    }
    let config = fetch_config(&context, &found.manifest, &reference).await?;
    check_platform(&config, platform, &reference)?;
    let layers = pair(&found.manifest, &config, &reference.familiar())?;
    for layer in &layers {
        context.lease.keep(layer.blob);
        context.lease.keep(layer.diff_id);
    }
    let diff_ids = config.rootfs.diff_ids;
    context.lease.keep(store::chain(&diff_ids));
    check_space(&context, &layers).await?;
    let blobs: Vec<Digest> = layers.iter().map(|layer| layer.blob).collect();
    context.progress.send(Event::Resolved {
        reference: reference.clone(),
        digest: found.digest,
        layers: blobs.clone(),
    });
    fetch_all(&context, &layers).await?;

    let image = found.manifest.config.digest;
    rootfs(&context.inner, image, &blobs, &diff_ids).await?;
    let at_digest = reference.at_digest(found.digest);
    let names = match reference.digest() {
        Some(_) => vec![at_digest],
        None => vec![reference.clone(), at_digest],
    };
    let up_to_date = names.iter().all(|name| context.inner.catalog().named(name) == Some(image));
    let (inner, lease) = (Arc::clone(&context.inner), Arc::clone(&context.lease));
    blocking(move || {
        let _lease = lease;
        if let Some(index) = &found.index {
            inner.layout.write_blob(index)?;
        }
        inner.publish(&names, &found.bytes, &found.media_type)
    })
    .await?;
    if context.inner.referrers {
        referrers::fetch(&context, &digests).await;
    }
    let (reference, digest) = (Some(reference), found.digest);
    context.progress.send(Event::Done { reference, image, digest, up_to_date });
    Ok(image)
}

/// The assembled root of an image whose blobs are in the store; converts what is not converted.
pub(crate) async fn rootfs(
    inner: &Arc<Inner>,
    image: Digest,
    blobs: &[Digest],
    diff_ids: &[Digest],
) -> Result<Rootfs, Error> {
    let lease = inner.leases.lease();
    for digest in blobs.iter().chain(diff_ids) {
        lease.keep(*digest);
    }
    let chain = store::chain(diff_ids);
    lease.keep(chain);
    let flight = inner.flights.acquire(Key::Root(chain), || {}).await;
    let (shared, ids) = (Arc::clone(inner), diff_ids.to_vec());
    if let Some(found) = blocking(move || Ok(store::find_rootfs(&shared.layout, &ids))).await? {
        return Ok(found);
    }
    for (blob, diff_id) in blobs.iter().copied().zip(diff_ids.iter().copied()) {
        let flight = inner.flights.acquire(Key::Layer(diff_id), || {}).await;
        let inner = Arc::clone(inner);
        blocking(move || {
            let _flight = flight;
            if inner.has_layer(&diff_id) { Ok(()) } else { inner.convert_stored(blob, diff_id) }
        })
        .await?;
    }
    let (inner, diff_ids) = (Arc::clone(inner), diff_ids.to_vec());
    blocking(move || {
        let _held = (flight, lease);
        store::assemble(&inner, &image, &diff_ids)
    })
    .await
}

/// What a reference stands for.
struct Resolved {
    /// Of the index, or of the manifest if there is none.
    digest: Digest,
    index: Option<Vec<u8>>,
    manifest: Manifest,
    bytes: Vec<u8>,
    media_type: String,
}

async fn resolve(
    context: &Context,
    reference: &Reference,
    platform: &Platform,
) -> Result<Resolved, Error> {
    let name = reference.familiar();
    let raw = context.repository.manifest(&reference.manifest_key()).await?;
    context.lease.keep(raw.digest);
    let (digest, index, raw) = match parse_document(&raw.bytes, &raw.media_type, &name)? {
        Document::Index(index) => {
            let chosen = select(&index, platform, &name)?;
            context.lease.keep(chosen.digest);
            let (bytes, media_type) = manifest_bytes(context, chosen).await?;
            (raw.digest, Some(raw.bytes), (bytes, media_type))
        }
        _ => (raw.digest, None, (raw.bytes, raw.media_type)),
    };
    let (bytes, media_type) = raw;
    match parse_document(&bytes, &media_type, &name)? {
        Document::Manifest(manifest) => {
            check_manifest(&manifest, &name)?;
            context.lease.keep(manifest.config.digest);
            let media_type = manifest.media_type.clone().unwrap_or(media_type);
            Ok(Resolved { digest, index, manifest, bytes, media_type })
        }
        _ => Err(Error::NotAnImage { what: name, reason: "it is an index of indexes".to_owned() }),
    }
}

/// An index or a manifest, or an error that says what it is instead.
pub(crate) fn parse_document(
    bytes: &[u8],
    media_type: &str,
    name: &str,
) -> Result<Document, Error> {
    match Document::parse(bytes, media_type) {
        Ok(Document::Schema1) => Err(Error::Schema1 { reference: name.to_owned() }),
        Ok(Document::Other(reason)) => Err(Error::NotAnImage { what: name.to_owned(), reason }),
        Ok(document) => Ok(document),
        Err(error) => Err(Error::Malformed {
            what: format!("the manifest of {name}"),
            reason: error.to_string(),
        }),
    }
}

/// The manifest an index entry names, from the store if it is there.
async fn manifest_bytes(context: &Context, entry: &Descriptor) -> Result<(Vec<u8>, String), Error> {
    let bytes = match stored_document(context, entry.digest).await? {
        Some(bytes) => bytes,
        None => context.repository.manifest(&entry.digest.to_string()).await?.bytes,
    };
    if bytes.len() as u64 != entry.size {
        let what = format!("manifest {}", entry.digest);
        return Err(Error::SizeMismatch { what, expected: entry.size, actual: bytes.len() as u64 });
    }
    Ok((bytes, entry.media_type.clone()))
}

async fn fetch_config(
    context: &Context,
    manifest: &Manifest,
    reference: &Reference,
) -> Result<ImageConfig, Error> {
    let descriptor = &manifest.config;
    let bytes = match stored_document(context, descriptor.digest).await? {
        Some(bytes) => bytes,
        None => context.repository.small_blob(descriptor.digest, descriptor.size).await?,
    };
    let name = reference.familiar();
    let config = parse_config(&bytes, &descriptor.media_type, &name)?;
    let inner = Arc::clone(&context.inner);
    blocking(move || inner.layout.write_blob(&bytes)).await?;
    Ok(config)
}

/// The config of a container image; other artifacts have something else in its place.
pub(crate) fn parse_config(
    bytes: &[u8],
    media_type: &str,
    name: &str,
) -> Result<ImageConfig, Error> {
    use crate::spec::{DOCKER_CONFIG, OCI_CONFIG};
    // Some tools leave the type out or call it JSON; what counts is that it has layers.
    if !matches!(
        media_type,
        OCI_CONFIG | DOCKER_CONFIG | "" | "application/json" | "application/octet-stream"
    ) {
        let reason = format!("its config has media type `{media_type}`");
        return Err(Error::NotAnImage { what: name.to_owned(), reason });
    }
    serde_json::from_slice(bytes).map_err(|error| Error::Malformed {
        what: format!("the config of {name}"),
        reason: error.to_string(),
    })
}

/// A small blob of the store, if it is there and sound.
async fn stored_document(context: &Context, digest: Digest) -> Result<Option<Vec<u8>>, Error> {
    let inner = Arc::clone(&context.inner);
    blocking(move || {
        let found = layout::read(&inner.layout.blob(&digest), MAX_DOCUMENT);
        Ok(found.ok().filter(|bytes| Digest::of(bytes) == digest))
    })
    .await
}

fn check_platform(
    config: &ImageConfig,
    wanted: &Platform,
    reference: &Reference,
) -> Result<(), Error> {
    let offered = config.platform();
    // Old tools left it out; such images were for linux/amd64.
    if offered.os.is_empty() && offered.architecture.is_empty()
        || wanted.accepts(&offered).is_some()
    {
        return Ok(());
    }
    let reference = reference.familiar();
    Err(Error::NoPlatform {
        reference,
        wanted: wanted.clone(),
        offered: offered.normalised().to_string(),
    })
}

/// The layers of a manifest with their diff ids.
fn pair(manifest: &Manifest, config: &ImageConfig, name: &str) -> Result<Vec<Layer>, Error> {
    let diff_ids = &config.rootfs.diff_ids;
    if manifest.layers.len() != diff_ids.len() {
        let reason = format!(
            "its manifest has {} layers, its config {}",
            manifest.layers.len(),
            diff_ids.len()
        );
        return Err(Error::NotAnImage { what: name.to_owned(), reason });
    }
    let pairs = manifest.layers.iter().zip(diff_ids);
    Ok(pairs
        .map(|(layer, diff_id)| Layer { blob: layer.digest, size: layer.size, diff_id: *diff_id })
        .collect())
}

/// Refuses what cannot fit before fetching half of it.
async fn check_space(context: &Context, layers: &[Layer]) -> Result<(), Error> {
    let (inner, layers) = (Arc::clone(&context.inner), layers.to_vec());
    blocking(move || {
        let path = inner.layout.root().to_owned();
        let (need, available) = (missing_bytes(&inner, &layers), layout::available(&path));
        if need > available { Err(Error::NoSpace { path, need, available }) } else { Ok(()) }
    })
    .await
}
