//! An image of the store, as queries return it.

use std::path::PathBuf;
use std::sync::Arc;

use hyper_task::rootfs::RootfsImage;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::platform::Platform;

/// An image. Cheap to clone; a snapshot of the moment it was asked for.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the config: Docker's image id.
    pub id: Digest,
    /// Digest of the manifest it was stored with (the newest, if there were several).
    pub manifest: Digest,
    /// Familiar names with tags, sorted: `busybox:latest`.
    pub repo_tags: Vec<String>,
    /// Familiar names with digests, sorted: `busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes of all file contents of all layers, as `docker images` shows.
    pub size: u64,
    /// The parsed config: labels, created, command, layers.
    pub config: Arc<ImageConfig>,
    /// The image it was made from here, if it was.
    pub parent: Option<Digest>,
    /// What was done to the parent, in the words of whoever made it.
    pub step: Option<Digest>,
    /// Without any name, and others were made from it: a step of a build.
    pub intermediate: bool,
    pub(crate) raw_config: Arc<[u8]>,
}

impl Image {
    /// The config's bytes, whose digest is the id.
    #[must_use]
    pub fn raw_config(&self) -> &[u8] {
        &self.raw_config
    }

    /// The platform it was made for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        self.config.platform()
    }

    /// Without tags: `<none>` in Docker's tables.
    #[must_use]
    pub fn is_dangling(&self) -> bool {
        self.repo_tags.is_empty()
    }
}

/// An assembled root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The JSON file of [`RootfsImage`]: the `source` of a Task `Create` mount of type
    /// [`MOUNT_TYPE`](hyper_task::rootfs::MOUNT_TYPE). Absolute.
    pub path: PathBuf,
    /// Its content.
    pub image: RootfsImage,
}

/// A container that uses an image, for [`Store::remove`](crate::Store::remove).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUser {
    /// The image.
    pub image: Digest,
    /// Name or short id, for the error.
    pub container: String,
    /// A running one forbids removal even by force.
    pub running: bool,
}

/// What [`Store::remove`](crate::Store::remove) did, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A familiar name no longer points to the image.
    Untagged(String),
    /// An image or one of its layers (by diff id) is gone.
    Deleted(Digest),
}

/// What [`Store::push`](crate::Store::push) put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// With its tag.
    pub reference: crate::Reference,
    /// Of the manifest or index that the tag stands for now.
    pub digest: Digest,
    /// Bytes of that document.
    pub size: u64,
}

/// What [`Store::load`](crate::Store::load) found.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Familiar names it was given; empty if the archive had none.
    pub names: Vec<String>,
    /// The image.
    pub image: Image,
}
