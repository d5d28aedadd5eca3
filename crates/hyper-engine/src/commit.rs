//! `commit`: what a container changed as a layer, and its image with that layer on top.

use std::io::Write as _;

use hyper_image::{ContainerConfig, Derivation, Digest, Empty, History, NewLayer, Reference};
use tokio::sync::mpsc;

use crate::container::state::Status;
use crate::core::{blocking, image_error};
use crate::engine::Engine;
use crate::event::Kind;
use crate::{Error, Result, View};

/// Pieces of the archive between the guest and the thread that compresses them.
const PIECES: usize = 8;

/// How an image is made of a container.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The image's name; without, it has none.
    pub name: Option<Reference>,
    pub author: String,
    pub comment: String,
    /// What the image says about its containers; `None`: [`Engine::commit_config`].
    pub config: Option<ContainerConfig>,
    /// The container's processes stand still meanwhile.
    pub pause: bool,
}

/// An image made of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub id: Digest,
    /// What the container changed and no layer can hold, in words.
    pub note: Option<String>,
}

impl Engine {
    /// Makes an image of what a container changed.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::Image`], [`Error::Supervisor`].
    pub async fn commit(&self, reference: &str, options: CommitOptions) -> Result<Committed> {
        let view = self.container(reference)?;
        let engine = self.clone();
        self.detached(async move { engine.commit_view(&view, options).await }).await
    }

    /// What an image made of this container says about its containers: what the container was made
    /// with, over what its image says.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NoSuchImage`].
    pub fn commit_config(&self, reference: &str) -> Result<ContainerConfig> {
        let spec = self.container(reference)?.spec;
        let mut config = self.image(&spec.image_id)?.config.config.clone();
        // Triggers were for whoever builds on the image, and the container did not.
        config.on_build.clear();
        config.user.clone_from(&spec.user);
        config.env.clone_from(&spec.env);
        config.entrypoint.clone_from(&spec.entrypoint);
        config.cmd.clone_from(&spec.cmd);
        config.working_dir.clone_from(&spec.working_dir);
        config.labels.clone_from(&spec.labels);
        config.stop_signal = Some(spec.stop_signal.clone()).filter(|signal| !signal.is_empty());
        let set = |list: &[String]| list.iter().map(|item| (item.clone(), Empty {})).collect();
        config.exposed_ports = set(&spec.exposed_ports);
        config.volumes = set(&spec.volumes);
        Ok(config)
    }

    /// What a container changed since its image, as a layer of the image store, and what of it no layer can hold, in
    /// words.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Supervisor`].
    pub async fn changes_layer(&self, reference: &str) -> Result<(NewLayer, Option<String>)> {
        let mut archive = self.changes_archive(reference).await?;
        let wrong = |error| image_error("layer", error);
        let (store, images) = (self.core.images.clone(), self.core.layout.images());
        let (sender, mut pieces) = mpsc::channel::<Option<bytes::Bytes>>(PIECES);
        let writing = blocking(move || {
            let mut writer = store.layer_writer().map_err(wrong)?;
            while let Some(piece) = pieces.blocking_recv() {
                let Some(piece) = piece else { return Ok(writer) };
                writer.write_all(&piece).map_err(|source| Error::File {
                    action: "write to",
                    path: images.clone(),
                    source,
                })?;
            }
            // Whoever sent has failed, and says why.
            Err(Error::ShuttingDown)
        });
        // With its end, the channel closes.
        let reading = async move {
            loop {
                let piece = archive.next().await?;
                let ended = piece.is_none();
                // A writer that is gone says why.
                if sender.send(piece).await.is_err() || ended {
                    return Ok::<_, Error>(archive.note().map(str::to_owned));
                }
            }
        };
        let (written, read) = tokio::join!(writing, reading);
        let note = read?;
        Ok((self.core.images.add_layer(written?).await.map_err(wrong)?, note))
    }

    async fn commit_view(&self, view: &View, options: CommitOptions) -> Result<Committed> {
        let spec = &view.spec;
        let config = match options.config {
            Some(config) => config,
            None => self.commit_config(&spec.id)?,
        };
        // What stands still already, or does not run, need not be stopped.
        let paused = options.pause && view.state.status == Status::Running;
        if paused {
            self.pause(&spec.id).await?;
        }
        let layer = self.changes_layer(&spec.id).await;
        if paused && let Err(error) = self.unpause(&spec.id).await {
            tracing::warn!(container = spec.id, error = error.chain(), "stays paused after commit");
        }
        let (layer, note) = layer?;
        let base = self.image(&spec.image_id)?;
        let now = hyper_stdio::rfc3339_nano(hyper_stdio::now_ns());
        let mut whole = hyper_image::ImageConfig::clone(&base.config);
        whole.created = Some(now.clone());
        whole.author.clone_from(&options.author);
        whole.comment.clone_from(&options.comment);
        whole.config = config;
        whole.history.push(History {
            created: Some(now),
            created_by: spec.args().join(" "),
            author: options.author,
            comment: options.comment,
            empty_layer: false,
        });
        let wanted =
            Derivation { base: Some(base.id), layer: Some(layer), config: whole, step: None };
        let made =
            self.core.images.derive(wanted).await.map_err(|e| image_error(&spec.image, e))?;
        if let Some(name) = &options.name {
            self.tag(&made.id.to_string(), name).await?;
        }
        let mut labels = crate::container::actor::attributes(spec, &view.name);
        labels.insert("comment".to_owned(), made.config.comment.clone());
        labels.insert("imageID".to_owned(), made.id.to_string());
        self.core.events.publish(Kind::Container, "commit", &spec.id, labels);
        Ok(Committed { id: made.id, note })
    }
}
