//! The content store.
//!
//! ```text
//!  ROOT/lock                       held while a process has the store
//!  ROOT/oci-layout, index.json     an OCI image layout: skopeo and umoci read it
//!  ROOT/blobs/sha256/HEX           manifests, indexes, configs, layers as they were distributed
//!  ROOT/layers/HEX/{blob,index}    a converted layer, by diff id: 4 KiB-aligned contents, and everything else
//!  ROOT/rootfs/HEX/{meta.erofs,rootfs.json}   an assembled root, by the chain of its diff ids
//!  ROOT/ingest/                    what is not finished
//! ```
//! Readers see an immutable catalog; one writer at a time replaces it. Work on the same content is done once
//! ([`flights`]); content in the making is leased ([`lease`]), so that removal cannot take it.

mod catalog;
mod derive;
mod files;
mod flights;
mod held;
mod inner;
pub(crate) mod layout;
mod lease;
pub(crate) mod quota;
pub(crate) mod referrers;
mod remove;
mod roots;
mod sweep;
mod verify;

pub(crate) use catalog::{Catalog, Entry};
pub use derive::{Derivation, LayerWriter, NewLayer};
pub use files::{ImageFiles, LayerFile};
pub(crate) use flights::{Flight, Key};
pub(crate) use held::{Document, Held};
pub(crate) use inner::Inner;
pub(crate) use lease::Lease;
pub use referrers::Referrer;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use hyper_erofs::Limits;
use tokio::io::AsyncRead;

use crate::archive;
use crate::config::ImageConfig;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, ImageUser, Loaded, Pushed, Removed, Rootfs};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::pull;
use crate::push;
use crate::reference::{Reference, ReferenceError};
use crate::registry::RegistryOptions;
use crate::trust::Policy;
use crate::unpack::{Confine, Unpacker};

/// How a store works.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How registries are reached.
    pub registry: RegistryOptions,
    /// What one layer may cost.
    pub limits: Limits,
    /// Whose signatures images must have.
    pub policy: Policy,
    /// Starts the processes that take layers apart; without it this process does.
    pub confine: Option<Arc<dyn Confine>>,
    /// Signatures and other documents about an image stay in the registry when it is pulled.
    pub without_referrers: bool,
    /// Bytes the store may hold; without it, as many as the disk has.
    pub limit: Option<u64>,
}

/// What the store occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images with an id.
    pub images: u64,
    /// Bytes of layer contents as converted, each layer once (`docker system df`'s size).
    pub layer_bytes: u64,
    /// Bytes of everything, layers as distributed included.
    pub disk_bytes: u64,
}

/// What [`Store::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blobs whose digest was checked.
    pub blobs: u64,
    /// Converted layers that were checked.
    pub layers: u64,
    /// Assembled roots that were checked.
    pub roots: u64,
    /// What is wrong, a sentence each; empty if all is well.
    pub problems: Vec<String>,
}

/// The store of one engine. Cheap to clone; all clones are the same store.
///
/// Every method may be cancelled by dropping its future: what was finished stays, what was not is resumed or cleaned.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Opens the store at `root`, creating it if there is none, and cleans up what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it; [`Error::Damaged`] if `index.json` cannot be understood.
    pub async fn open(root: impl Into<PathBuf>, options: Options) -> Result<Self, Error> {
        let root = root.into();
        let inner = blocking(move || Inner::open(&root, options)).await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Pulls `reference` (`:latest` if it has neither tag nor digest) for `platform` and names it.
    ///
    /// # Errors
    /// Of the registry, of the content, or of the disk; see [`Error`]. The store is then as before, except that layers
    /// already fetched are kept for a day for the next attempt.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        credentials: &Credentials,
        progress: Progress,
    ) -> Result<Image, Error> {
        let id =
            pull::pull(Arc::clone(&self.inner), reference, platform, credentials, progress).await?;
        self.image(&id)
    }

    /// Shows credentials to a registry; returns the identity token that stands for them, if it gave one.
    ///
    /// # Errors
    /// [`Error::LoginRefused`]; of the registry.
    pub async fn login(
        &self,
        server: &str,
        credentials: &Credentials,
    ) -> Result<Option<String>, Error> {
        self.inner.registries.login(server, credentials).await
    }

    /// Pushes what `reference` (with its tag) means here to the repository it names: the manifest as it was pulled,
    /// byte for byte, or the index that it came with if everything of that is here.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]; of the registry.
    pub async fn push(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: Progress,
    ) -> Result<Pushed, Error> {
        push::push(Arc::clone(&self.inner), reference, credentials, progress).await
    }

    /// Writes images as one archive that is both a docker-archive and an OCI layout: tags, all tags of a repository, or
    /// ids (whose images get no name there). The same images and names give the same bytes.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Damaged`] before anything is written; the stream ends with an error if a blob
    /// cannot be read.
    pub async fn save(
        &self,
        names: Vec<String>,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static, Error> {
        archive::save(Arc::clone(&self.inner), names).await
    }

    /// Bytes of the file contents of an image's layers by diff id, bottom first.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`]
    pub async fn layer_sizes(&self, image: &Image) -> Result<Vec<(Digest, u64)>, Error> {
        let (inner, config) = (Arc::clone(&self.inner), Arc::clone(&image.config));
        blocking(move || {
            let size = |diff_id: &Digest| {
                let one = std::slice::from_ref(diff_id);
                Ok((*diff_id, roots::content_bytes(&inner.layout, one, &inner.limits)?))
            };
            config.rootfs.diff_ids.iter().map(size).collect()
        })
        .await
    }

    /// Loads all images of a docker-archive or OCI layout in tar form, plain or compressed (gzip, zstd, bzip2, xz).
    ///
    /// # Errors
    /// [`Error::Archive`] and [`Error::ArchiveRead`] for the archive; of the content or the disk otherwise. Images
    /// loaded before the one at fault stay.
    pub async fn load<R>(&self, archive: R, progress: Progress) -> Result<Vec<Loaded>, Error>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        archive::load(Arc::clone(&self.inner), archive, progress).await
    }

    /// Makes an image without a name of a root file system's archive, plain or compressed (gzip, zstd, bzip2, xz).
    ///
    /// # Errors
    /// [`Error::Archive`], [`Error::ArchiveRead`], [`Error::Layer`]; disk.
    pub async fn import<R>(&self, archive: R, config: ImageConfig) -> Result<Image, Error>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let lease = Arc::new(self.inner.leases.lease());
        let outcome = archive::import(self, archive, config).await;
        self.inner.tidied(lease, outcome).await
    }

    /// As [`load`](Self::load), from a file or from the directory of an OCI layout.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub async fn load_path(
        &self,
        path: impl Into<PathBuf>,
        progress: Progress,
    ) -> Result<Vec<Loaded>, Error> {
        archive::load_path(Arc::clone(&self.inner), path.into(), progress).await
    }

    /// All images, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        let catalog = self.inner.catalog();
        let mut images: Vec<Image> =
            catalog.ids().iter().filter_map(|id| catalog.image(id)).collect();
        images.sort_by(|a, b| b.config.created.cmp(&a.config.created).then(a.id.cmp(&b.id)));
        images
    }

    /// The image that `name_or_id` means: a reference, an id with or without `sha256:`, or a unique start of one.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::AmbiguousId`], [`Error::Reference`]
    pub fn resolve(&self, name_or_id: &str) -> Result<Image, Error> {
        let id = self.inner.catalog().resolve(name_or_id)?;
        self.image(&id)
    }

    /// Gives an image a further name, taking it from whatever image had it.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]; [`Error::Reference`] if the name has a digest; disk.
    pub async fn tag(&self, image: &Digest, name: &Reference) -> Result<(), Error> {
        self.tag_from(&image.to_string(), name).await
    }

    /// As [`tag`](Self::tag), by a name or an id. A name also says which manifest is meant, if the image was stored
    /// with several: what is pushed under the new name is then what was pulled under the old one.
    ///
    /// # Errors
    /// As [`tag`](Self::tag).
    pub async fn tag_from(&self, source: &str, name: &Reference) -> Result<(), Error> {
        if name.digest().is_some() {
            return Err(ReferenceError::NotATag(name.familiar()).into());
        }
        let name = name.clone().or_latest();
        let (inner, source) = (Arc::clone(&self.inner), source.to_owned());
        blocking(move || {
            inner.change(
                |catalog| {
                    let id = catalog.resolve(&source)?;
                    let missing = || Error::NoSuchImage { name: source.clone() };
                    let reference = source.parse::<Reference>().ok().map(Reference::or_latest);
                    let named = reference.and_then(|name| catalog.entry_named(&name));
                    let named = named.filter(|entry| entry.stored.id() == id);
                    let entry = named.or_else(|| catalog.entries_of(&id).last());
                    let entry = entry.cloned().ok_or_else(missing)?;
                    let descriptor = entry.descriptor;
                    catalog.set(
                        Some(&name),
                        &descriptor.media_type,
                        &entry.stored,
                        descriptor.size,
                    );
                    Ok(())
                },
                |_, _, _, ()| Ok(()),
            )
        })
        .await
    }

    /// Removes a name, and the image with its last name, by Docker's rules: an image in use is kept unless `force`,
    /// and then only loses its names; one used by a running container is refused (by id always, by its last name
    /// unless `force`); an id with names in several repositories needs `force`. Layers that nothing refers to any
    /// more are deleted.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NoSuchImage`], [`Error::AmbiguousId`]; disk.
    pub async fn remove(
        &self,
        name_or_id: &str,
        force: bool,
        users: &[ImageUser],
    ) -> Result<Vec<Removed>, Error> {
        let (inner, name, users) = (Arc::clone(&self.inner), name_or_id.to_owned(), users.to_vec());
        blocking(move || {
            inner.change(
                |catalog| remove::remove(catalog, &name, force, &users),
                |inner, before, after, mut done| {
                    let layers = sweep::release(&inner.layout, &inner.leases, before, after)?;
                    done.extend(layers.into_iter().map(Removed::Deleted));
                    Ok(done)
                },
            )
        })
        .await
    }

    /// The assembled root of an image. Made if it is not there yet: milliseconds, unless a layer has to be converted again.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Rootfs`], [`Error::Layer`]; disk.
    pub async fn rootfs(&self, image: &Digest) -> Result<Rootfs, Error> {
        let catalog = self.inner.catalog();
        let missing = || Error::NoSuchImage { name: image.to_string() };
        let stored = Arc::clone(&catalog.entries_of(image).last().ok_or_else(missing)?.stored);
        let blobs: Vec<Digest> = stored.manifest.layers.iter().map(|layer| layer.digest).collect();
        pull::rootfs(&self.inner, *image, &blobs, &stored.config.rootfs.diff_ids).await
    }

    /// A client for files of `host` that are no registry's: the system's CAs and those of `certs.d/HOST`.
    ///
    /// # Errors
    /// [`Error::ClientFile`], [`Error::Unreachable`]
    pub async fn web_client(&self, host: &str) -> Result<reqwest::Client, Error> {
        self.inner.registries.client(host, true).await
    }

    /// What one layer may cost here.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// What takes archives apart here, within those limits.
    #[must_use]
    pub fn unpacker(&self) -> &Unpacker {
        &self.inner.unpacker
    }

    /// What the store occupies.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub async fn usage(&self) -> Result<Usage, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let images = inner.catalog().ids().len() as u64;
            let layer_bytes = layout::bytes_of(&inner.layout.layers())?;
            Ok(Usage { images, layer_bytes, disk_bytes: layout::bytes_of(inner.layout.root())? })
        })
        .await
    }

    /// Reads everything and checks every digest; converted layers and assembled roots are made again and compared.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read at all; what is found to be wrong is in the report.
    pub async fn verify(&self) -> Result<VerifyReport, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || verify::verify(&inner.layout, &inner.catalog(), &inner.unpacker)).await
    }

    /// Where the store lies.
    pub(crate) fn root(&self) -> PathBuf {
        self.inner.layout.root().to_owned()
    }

    fn image(&self, id: &Digest) -> Result<Image, Error> {
        self.inner.catalog().image(id).ok_or_else(|| Error::NoSuchImage { name: id.to_string() })
    }
}

/// Assembles the root of some layers that are all converted, unless it is there. Blocking.
pub(crate) fn assemble(inner: &Inner, id: &Digest, diff_ids: &[Digest]) -> Result<Rootfs, Error> {
    match roots::find(&inner.layout, diff_ids) {
        Some(found) => Ok(found),
        None => roots::assemble(&inner.layout, id, diff_ids, &inner.limits),
    }
}

pub(crate) use roots::{chain, find as find_rootfs};

/// Runs blocking work on its own thread. A panic in it is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    joined(tokio::task::spawn_blocking(work).await)
}

/// The result of a task that nobody aborts but the runtime's end.
pub(crate) fn joined<T>(
    result: Result<Result<T, Error>, tokio::task::JoinError>,
) -> Result<T, Error> {
    match result {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Cancelled),
    }
}
