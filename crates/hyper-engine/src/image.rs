//! Images, with the events and rules that come from containers using them.

use std::collections::BTreeMap;

use hyper_image::{Auth, Image, ImageUser, Loaded, Platform, Progress, Reference, Removed, Usage};
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
        auth: &Auth,
        progress: Progress,
    ) -> Result<Image> {
        let name = reference.familiar();
        let wrong = |error| image_error(&name, error);
        let platform = match platform {
            Some(text) => text.parse::<Platform>().map_err(|e| wrong(e.into()))?,
            None => Platform::host(),
        };
        let image =
            self.core.images.pull(reference, &platform, auth, progress).await.map_err(wrong)?;
        self.image_event("pull", &name, &image);
        Ok(image)
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

    /// Gives an image a further name.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Image`].
    pub async fn tag(&self, image: &str, name: &Reference) -> Result<()> {
        let image = self.image(image)?;
        let familiar = name.familiar();
        self.core
            .images
            .tag(&image.id, name)
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

    fn image_users(&self) -> Vec<ImageUser> {
        let users = self.core.views().into_iter().filter_map(|view| {
            Some(ImageUser {
                image: view.spec.image_id.parse().ok()?,
                container: id::short(&view.spec.id).to_owned(),
                running: view.state.status.is_up(),
            })
        });
        users.collect()
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
