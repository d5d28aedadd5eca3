//! Images, with the events and rules that come from containers using them.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::Stream;
use hyper_image::{
    Credentials, Digest, Image, ImageConfig, ImageUser, Loaded, Platform, Progress, Pushed,
    Reference, Removed, Usage, VerifyReport,
};
use tokio::io::AsyncRead;

use crate::core::image_error;
use crate::engine::Engine;
use crate::event::Kind;
use crate::{Error, Result, id};

impl Engine {
    /// All images, newest first.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        self.core.images.list()
    }

    /// The image that a reference, an id or the start of one means.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Image`].
    pub fn image(&self, reference: &str) -> Result<Image> {
        self.core.images.resolve(reference).map_err(|error| image_error(reference, error))
    }

    /// The image store itself, for whoever makes images.
    #[must_use]
    pub fn image_store(&self) -> &hyper_image::Store {
        &self.core.images
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&str>,
        credentials: &Credentials,
        progress: Progress,
    ) -> Result<Image> {
        let name = reference.familiar();
        let wrong = |error| image_error(&name, error);
        let platform = match platform {
            Some(text) => text.parse::<Platform>().map_err(|e| wrong(e.into()))?,
            None => Platform::host(),
        };
        let image = self
            .core
            .images
            .pull(reference, &platform, credentials, progress)
            .await
            .map_err(wrong)?;
        self.image_event("pull", &name, &image);
        Ok(image)
    }

    /// Shows credentials to a registry; returns the identity token that stands for them, if it gave one.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn login(&self, server: &str, credentials: &Credentials) -> Result<Option<String>> {
        let wrong = |error| image_error(server, error);
        self.core.images.login(server, credentials).await.map_err(wrong)
    }

    /// Pushes a tag to the repository it names.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Image`].
    pub async fn push(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: Progress,
    ) -> Result<Pushed> {
        let name = reference.familiar();
        let image = self.image(&name)?;
        let wrong = |error| image_error(&name, error);
        let pushed =
            self.core.images.push(reference, credentials, progress).await.map_err(wrong)?;
        self.image_event("push", &name, &image);
        Ok(pushed)
    }

    /// Images as one archive, a docker-archive that is an OCI layout too.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Image`].
    pub async fn save(
        &self,
        names: Vec<String>,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
        let images: Vec<(String, Image)> =
            names.iter().filter_map(|name| Some((name.clone(), self.image(name).ok()?))).collect();
        let stream = self.core.images.save(names).await.map_err(|error| match error {
            hyper_image::Error::NoSuchImage { name } => Error::NoSuchImage(name),
            other => image_error("archive", other),
        })?;
        for (name, image) in images {
            self.image_event("save", &name, &image);
        }
        Ok(stream)
    }

    /// Bytes of the file contents of an image's layers by diff id, bottom first.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn layer_sizes(&self, image: &Image) -> Result<Vec<(Digest, u64)>> {
        let wrong = |error| image_error(&image.id.to_string(), error);
        self.core.images.layer_sizes(image).await.map_err(wrong)
    }

    /// Reads the whole image store and checks every digest.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn verify_images(&self) -> Result<VerifyReport> {
        self.core.images.verify().await.map_err(|error| image_error("store", error))
    }

    /// The documents about an image that came with it.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]
    pub fn referrers(&self, name: &str) -> Result<Vec<hyper_image::Referrer>> {
        self.core.images.referrers(name).map_err(|error| image_error(name, error))
    }

    /// Loads an archive.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn load<R>(&self, archive: R, progress: Progress) -> Result<Vec<Loaded>>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let wrong = |error| image_error("archive", error);
        let loaded = self.core.images.load(archive, progress).await.map_err(wrong)?;
        for one in &loaded {
            let name = one.names.first().cloned().unwrap_or_else(|| one.image.id.to_string());
            self.image_event("load", &name, &one.image);
        }
        Ok(loaded)
    }

    /// Makes an image of a root file system's archive.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn import<R>(
        &self,
        archive: R,
        config: ImageConfig,
        name: Option<&Reference>,
    ) -> Result<Image>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let wrong = |error| image_error("archive", error);
        let image = self.core.images.import(archive, config).await.map_err(wrong)?;
        let id = image.id.to_string();
        if let Some(name) = name {
            self.core.images.tag(&image.id, name).await.map_err(wrong)?;
        }
        let shown = name.map_or_else(|| id.clone(), Reference::familiar);
        self.image_event("import", &shown, &image);
        self.image(&id)
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Image`].
    pub async fn tag(&self, source: &str, name: &Reference) -> Result<()> {
        let image = self.image(source)?;
        let familiar = name.familiar();
        self.core
            .images
            .tag_from(source, name)
            .await
            .map_err(|error| image_error(&familiar, error))?;
        self.image_event("tag", &familiar, &image);
        Ok(())
    }

    /// Removes a name, and the image with its last one, unless a container uses it.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Image`].
    pub async fn remove_image(&self, reference: &str, force: bool) -> Result<Vec<Removed>> {
        let image = self.image(reference)?;
        let removed = self
            .core
            .images
            .remove(reference, force, &self.image_users())
            .await
            .map_err(|error| image_error(reference, error))?;
        for one in &removed {
            let action = match one {
                Removed::Untagged(_) => "untag",
                Removed::Deleted(_) => "delete",
            };
            self.image_event(action, &image.id.to_string(), &image);
        }
        Ok(removed)
    }

    /// What the image store occupies.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn image_usage(&self) -> Result<Usage> {
        self.core.images.usage().await.map_err(|error| image_error("store", error))
    }

    /// Keeps an image from being removed, though no container uses it, until the guard is dropped.
    #[must_use]
    pub fn hold_image(&self, image: Digest) -> crate::ImageHold {
        self.core.holds.hold(image)
    }

    fn image_users(&self) -> Vec<ImageUser> {
        let users = self.core.views().into_iter().filter_map(|view| {
            Some(ImageUser {
                image: view.spec.image_id.parse().ok()?,
                container: id::short(&view.spec.id).to_owned(),
                running: view.state.status.is_up(),
            })
        });
        users.chain(self.core.holds.users()).collect()
    }

    fn image_event(&self, action: &str, name: &str, image: &Image) {
        let mut attributes: BTreeMap<String, String> = image.config.config.labels.clone();
        attributes.insert("name".to_owned(), name.to_owned());
        self.core.events.publish(Kind::Image, action, name, attributes);
    }
}

impl From<hyper_image::ReferenceError> for Error {
    fn from(error: hyper_image::ReferenceError) -> Self {
        Self::Invalid(error.to_string())
    }
}
