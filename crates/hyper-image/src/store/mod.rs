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

use std::path::PathBuf;

use hyper_erofs::Limits;
use tokio::io::AsyncRead;

use crate::credentials::Auth;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, ImageUser, Loaded, Removed, Rootfs};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::RegistryOptions;

/// How a store works.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How registries are reached.
    pub registry: RegistryOptions,
    /// What one layer may cost.
    pub limits: Limits,
}

/// What the store occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images with an id.
    pub images: u64,
    /// Bytes of layer contents, each layer once (`docker system df`'s size).
    pub layer_bytes: u64,
    /// Bytes on disk of everything.
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
pub struct Store {}

impl Store {
    /// Opens the store at `root`, creating it if there is none, and cleans up what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it; [`Error::Damaged`] if `index.json` cannot be understood.
    pub async fn open(root: impl Into<PathBuf>, options: Options) -> Result<Self, Error> {
        let _ = (root.into(), options);
        todo!()
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
        auth: &Auth,
        progress: Progress,
    ) -> Result<Image, Error> {
        let _ = (reference, platform, auth, progress);
        todo!()
    }

    /// Loads all images of a docker-archive or OCI layout in tar form, plain or compressed (gzip, zstd).
    ///
    /// # Errors
    /// [`Error::Archive`] and [`Error::ArchiveRead`] for the archive; of the content or the disk otherwise.
    pub async fn load<R>(&self, archive: R, progress: Progress) -> Result<Vec<Loaded>, Error>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let _ = (archive, progress);
        todo!()
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
        let _ = (path.into(), progress);
        todo!()
    }

    /// All images, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        todo!()
    }

    /// The image that `name_or_id` means: a reference, an id with or without `sha256:`, or a unique start of one.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::AmbiguousId`], [`Error::Reference`]
    pub fn resolve(&self, name_or_id: &str) -> Result<Image, Error> {
        let _ = name_or_id;
        todo!()
    }

    /// Gives an image a further name, taking it from whatever image had it.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]; disk.
    pub async fn tag(&self, image: &Digest, name: &Reference) -> Result<(), Error> {
        let _ = (image, name);
        todo!()
    }

    /// Removes a name, and the image with its last name, by Docker's rules: an image in use is kept unless `force`,
    /// and then only loses its names; one used by a running container is refused always; an id with several names
    /// needs `force`. Layers that nothing refers to any more are deleted.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NoSuchImage`], [`Error::AmbiguousId`]; disk.
    pub async fn remove(
        &self,
        name_or_id: &str,
        force: bool,
        users: &[ImageUser],
    ) -> Result<Vec<Removed>, Error> {
        let _ = (name_or_id, force, users);
        todo!()
    }

    /// The assembled root of an image. Made if it is not there yet: milliseconds, unless a layer has to be converted again.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Rootfs`], [`Error::Layer`]; disk.
    pub async fn rootfs(&self, image: &Digest) -> Result<Rootfs, Error> {
        let _ = image;
        todo!()
    }

    /// What the store occupies.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub async fn usage(&self) -> Result<Usage, Error> {
        todo!()
    }

    /// Reads everything and checks every digest.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read at all; what is found to be wrong is in the report.
    pub async fn verify(&self) -> Result<VerifyReport, Error> {
        todo!()
    }
}
