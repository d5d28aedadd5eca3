//! What `FROM` and `--from` name: nothing, an earlier stage, an image here, an image of a registry.

use std::sync::Arc;

use hyper_image::{Credentials, Image, ImageConfig, Progress, Reference};

use super::{Builder, State};
use crate::BuildError;
use crate::arguments::{Arguments, Global, variable};
use crate::request::Event;
use crate::tree::Files;
use hyper_dockerfile::Ignore;
use hyper_dockerfile::expand::word;
use hyper_dockerfile::{Dockerfile, Stage};

/// Docker's search path of images that have none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where Docker's clients keep the credentials of its own registry.
const DOCKER_AUTH: &str = "https://index.docker.io/v1/";

impl Builder<'_> {
    /// The state a stage begins with, and the triggers of its base.
    pub(super) async fn base(
        &mut self,
        file: &Dockerfile,
        stage: &Stage,
        at: usize,
    ) -> Result<(State, Vec<String>), BuildError> {
        let scope = Global { arguments: &self.global, given: &self.given };
        let name = word(&stage.base, &scope, self.escape).map_err(BuildError::Invalid)?;
        let platform = match &stage.platform {
            None => None,
            Some(text) => Some(word(text, &scope, self.escape).map_err(BuildError::Invalid)?),
        };
        if name.is_empty() {
            return Err(BuildError::Invalid(format!(
                "base name ({}) should not be blank: give its ARG a value with --build-arg",
                stage.base
            )));
        }
        if let Some(platform) = &platform {
            self.check_platform(platform)?;
        }
        if name == "scratch" {
            return Ok((self.scratch_state(), Vec::new()));
        }
        if let Some(earlier) = file.stage(&name, at) {
            let mut state = self.stages[earlier].clone();
            state.arguments = Arguments::default();
            state.command_set = false;
            return Ok((state, Vec::new()));
        }
        let image = self.image(&name, self.request.pull).await?;
        let mut config = ImageConfig::clone(&image.config);
        let triggers = std::mem::take(&mut config.config.on_build);
        if variable(&config.config.env, "PATH").is_none() {
            config.config.env.push(PATH.to_owned());
        }
        let state = State {
            image: Some(image.id),
            config,
            arguments: Arguments::default(),
            command_set: false,
        };
        Ok((state, triggers))
    }

    fn scratch_state(&self) -> State {
        let mut config = ImageConfig {
            architecture: self.platform.architecture.clone(),
            os: self.platform.os.clone(),
            variant: self.platform.variant.clone(),
            ..ImageConfig::default()
        };
        config.config.env.push(PATH.to_owned());
        State { image: None, config, arguments: Arguments::default(), command_set: false }
    }

    fn check_platform(&self, text: &str) -> Result<(), BuildError> {
        let wanted: hyper_image::Platform =
            text.parse().map_err(|e| BuildError::Invalid(format!("--platform: {e}")))?;
        let wanted = wanted.normalised();
        if (&wanted.os, &wanted.architecture) == (&self.platform.os, &self.platform.architecture) {
            return Ok(());
        }
        Err(BuildError::Invalid(format!(
            "--platform={text}: this build is for {}; stages of another platform are not supported",
            self.platform
        )))
    }

    /// An image that is here, or is fetched.
    async fn image(&mut self, name: &str, pull: bool) -> Result<Image, BuildError> {
        if !pull && let Ok(image) = self.engine.image(name) {
            let has = image.platform().normalised();
            if (&has.os, &has.architecture) == (&self.platform.os, &self.platform.architecture) {
                return Ok(image);
            }
        }
        let reference: Reference = name
            .parse()
            .map_err(|e| BuildError::Invalid(format!("invalid reference format: `{name}`: {e}")))?;
        let reference = reference.or_latest();
        let auth = self.auth(&reference);
        let (progress, mut reports) = Progress::channel();
        let platform = self.platform.to_string();
        let pulling = self.engine.pull(&reference, Some(&platform), &auth, progress);
        let telling = async {
            while let Some(report) = reports.recv().await {
                self.tell(Event::Pull(Box::new(reference.clone()), Box::new(report))).await?;
            }
            Ok::<(), BuildError>(())
        };
        // The reports end with the pull, which holds their sender.
        let both = async { tokio::join!(pulling, telling) };
        let (image, told) = self.or_cancelled(async { Ok::<_, BuildError>(both.await) }).await?;
        told?;
        image.map_err(|error| {
            BuildError::Invalid(format!("no image {}: {}", reference.familiar(), error.chain()))
        })
    }

    fn auth(&self, reference: &Reference) -> Credentials {
        let registry = reference.registry();
        let docker = registry == hyper_image::DEFAULT_REGISTRY;
        let same = |key: &str| {
            let bare = key.trim_start_matches("https://").trim_start_matches("http://");
            bare.split('/').next() == Some(registry) || (docker && key == DOCKER_AUTH)
        };
        let found = self.request.auth.iter().find(|(key, _)| same(key));
        found.map(|(_, auth)| auth.clone()).unwrap_or_default()
    }

    /// The files that `--from` names: of an earlier stage, or of an image.
    pub(super) async fn other_files(
        &mut self,
        file: &Dockerfile,
        name: &str,
        stage: usize,
    ) -> Result<Arc<Files>, BuildError> {
        if let Some(earlier) = file.stage(name, stage) {
            return match self.stages[earlier].image {
                Some(image) => self.files_of(image).await,
                None => Ok(Arc::default()),
            };
        }
        let this = &file.stages[stage];
        if this.name.as_deref() == Some(&name.to_lowercase()) {
            return Err(BuildError::Invalid(format!("--from={name} is this very stage")));
        }
        if name.parse::<usize>().is_ok() {
            return Err(BuildError::Invalid(format!(
                "invalid from flag value {name}: there are {stage} stages before this one"
            )));
        }
        let image = self.image(name, false).await?;
        self.files_of(image.id).await
    }

    /// The files of an image, kept for the next who asks.
    pub(super) async fn files_of(
        &mut self,
        image: hyper_image::Digest,
    ) -> Result<Arc<Files>, BuildError> {
        if let Some(files) = self.files.get(&image) {
            return Ok(Arc::clone(files));
        }
        let files = self.engine.image_store().files(&image).await?;
        let files = Arc::new(Files { files, ignore: Ignore::default() });
        // Each holds its layers' indexes in memory: the last few are enough.
        if self.files.len() >= 8 {
            self.files.clear();
        }
        self.files.insert(image, Arc::clone(&files));
        Ok(files)
    }
}
