//! The cache: an image made from the same parent by the same step, or one of `--cache-from` with the same history.

use hyper_engine::Engine;
use hyper_image::{Derivation, Digest, History, Image, NewLayer};

use super::{Builder, State};
use crate::BuildError;

/// Changes with what a step's digest means.
const FORMAT: &str = "hyper-build-1";

/// What a step is going to do.
#[derive(Debug)]
pub(super) struct Done {
    /// The line of the image's history.
    pub created_by: String,
    /// What the line does not say and the result depends on.
    pub details: String,
}

impl Done {
    /// A step that is told all by its line of history.
    pub fn new(created_by: String) -> Self {
        Self { created_by, details: String::new() }
    }

    /// A step that is no command.
    pub fn metadata(said: &str) -> Self {
        Self::new(format!("/bin/sh -c #(nop)  {said}"))
    }

    fn digest(&self) -> Digest {
        let parts = [FORMAT, &self.created_by, &self.details];
        // Lengths, so that no two lists of parts are the same bytes.
        let text: String = parts.iter().map(|part| format!("{}:{part}", part.len())).collect();
        Digest::of(text.as_bytes())
    }
}

/// Images of `--cache-from`.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Image>);

impl Sources {
    /// Those that are here, and words about the others: nothing is pulled for them.
    pub fn find(engine: &Engine, names: &[String]) -> (Self, Vec<String>) {
        let (mut here, mut words) = (Vec::new(), Vec::new());
        for name in names {
            match engine.image(name) {
                Ok(image) => here.push(image),
                Err(_) => words.push(format!(
                    "[Warning] --cache-from {name}: no such image here, pull it first\n"
                )),
            }
        }
        (Self(here), words)
    }

    /// The image whose history begins with `history` on the same layers, and goes on with `created_by`.
    fn next(&self, state: &State, created_by: &str) -> Option<(&Image, &History)> {
        let history = &state.config.history;
        let layers = &state.config.rootfs.diff_ids;
        self.0.iter().find_map(|image| {
            let next = image.config.history.get(history.len())?;
            let same = |(a, b): (&History, &History)| {
                a.created_by == b.created_by && a.empty_layer == b.empty_layer
            };
            let fits = image.config.history.iter().zip(history).all(same)
                && image.config.rootfs.diff_ids.starts_with(layers)
                && next.created_by == created_by
                && (next.empty_layer || image.config.rootfs.diff_ids.len() > layers.len());
            fits.then_some((image, next))
        })
    }
}

impl Builder<'_> {
    /// Takes the step's result from the cache, if it is there.
    pub(super) async fn probe(
        &mut self,
        state: &mut State,
        done: &Done,
    ) -> Result<bool, BuildError> {
        if self.request.no_cache {
            return Ok(false);
        }
        let store = self.engine.image_store();
        if let Some(image) = store.made_from(state.image.as_ref(), &done.digest()) {
            state.image = Some(image.id);
            state.config = hyper_image::ImageConfig::clone(&image.config);
            self.hold(state);
        } else {
            let Some((image, entry)) = self.cached.next(state, &done.created_by) else {
                return Ok(false);
            };
            let (id, entry) = (image.id, entry.clone());
            let layer = match entry.empty_layer {
                true => None,
                false => Some(store.layer_of(&id, state.config.rootfs.diff_ids.len())?),
            };
            let created = entry.created.clone();
            self.commit_at(state, done, layer, created).await?;
        }
        self.say(" ---> Using cache\n".to_owned()).await?;
        Ok(true)
    }

    /// Makes the image of a step that was carried out.
    pub(super) async fn commit(
        &mut self,
        state: &mut State,
        done: &Done,
        layer: Option<NewLayer>,
    ) -> Result<(), BuildError> {
        let now = time::OffsetDateTime::now_utc();
        let created = now.format(&time::format_description::well_known::Rfc3339).ok();
        self.commit_at(state, done, layer, created).await
    }

    async fn commit_at(
        &mut self,
        state: &mut State,
        done: &Done,
        layer: Option<NewLayer>,
        created: Option<String>,
    ) -> Result<(), BuildError> {
        let mut config = state.config.clone();
        config.created.clone_from(&created);
        config.history.push(History {
            created,
            created_by: done.created_by.clone(),
            author: config.author.clone(),
            comment: String::new(),
            empty_layer: layer.is_none(),
        });
        let image = self
            .engine
            .image_store()
            .derive(Derivation { base: state.image, layer, config, step: Some(done.digest()) })
            .await?;
        state.image = Some(image.id);
        state.config = hyper_image::ImageConfig::clone(&image.config);
        self.hold(state);
        Ok(())
    }
}
