//! A build from its first `FROM` to the names of its result.
//!
//! - [`step`]: one instruction: expanded, found in the cache or carried out.
//! - [`base`]: what a `FROM` or `--from` names.
//! - [`cache`]: what a step hashes to, and images that hold its result already.

mod base;
mod cache;
mod step;

use std::collections::HashMap;
use std::sync::Arc;

use hyper_engine::{Engine, ImageHold};
use hyper_image::{Digest, Image, ImageConfig, Platform};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::BuildError;
use crate::arguments::{Arguments, Given, Global};
use crate::context::Scratch;
use crate::request::{Event, Request};
use crate::tree::Files;
use hyper_dockerfile::expand::{self, word};
use hyper_dockerfile::{Dockerfile, Instruction, Stage, Step};

/// Builds an image. Ends early when `cancel` is, with nothing left running; events must be read, and dropping their
/// receiver cancels too.
///
/// # Errors
/// [`BuildError`]. Finished steps stay in the store as the cache of the next attempt.
pub async fn build(
    engine: &Engine,
    request: Request,
    file: Dockerfile,
    events: mpsc::Sender<Event>,
    cancel: CancellationToken,
) -> Result<Image, BuildError> {
    let platform = match &request.platform {
        Some(text) => text.parse::<Platform>().map_err(hyper_image::Error::from)?.normalised(),
        None => Platform::host(),
    };
    let last = match &request.target {
        None => file.stages.len() - 1,
        Some(name) => file.stage(name, file.stages.len()).ok_or_else(|| {
            let names: Vec<&str> =
                file.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
            BuildError::Invalid(format!(
                "failed to reach build target {name} in Dockerfile: its stages are {}",
                if names.is_empty() { "without names".to_owned() } else { names.join(", ") }
            ))
        })?,
    };
    let store = engine.image_store();
    let scratch = Scratch {
        directory: engine.config().layout.data_root.clone(),
        unpacker: store.unpacker().clone(),
    };
    let given = Given::new(request.arguments.clone(), &platform);
    let mut builder = Builder {
        engine,
        events,
        cancel,
        scratch,
        platform,
        given,
        global: Arguments::default(),
        stages: Vec::new(),
        files: HashMap::new(),
        cached: cache::Sources::default(),
        holds: Vec::new(),
        number: 0,
        steps: 0,
        escape: file.escape,
        request,
    };
    builder.all(&file, last).await
}

/// One build.
struct Builder<'b> {
    engine: &'b Engine,
    request: Request,
    events: mpsc::Sender<Event>,
    cancel: CancellationToken,
    scratch: Scratch,
    platform: Platform,
    given: Given,
    global: Arguments,
    /// Results of finished stages.
    stages: Vec<State>,
    /// Files of images that were copied from or to, by id.
    files: HashMap<Digest, Arc<Files>>,
    cached: cache::Sources,
    /// Nobody prunes what the build stands on.
    holds: Vec<ImageHold>,
    /// Of the step at hand, from 1, and of all.
    number: usize,
    steps: usize,
    escape: char,
}

/// What a stage has come to.
#[derive(Debug, Clone)]
struct State {
    /// `None`: still nothing but `FROM scratch`.
    image: Option<Digest>,
    config: ImageConfig,
    arguments: Arguments,
    /// This Dockerfile has said what the command is.
    command_set: bool,
}

impl Builder<'_> {
    async fn all(&mut self, file: &Dockerfile, last: usize) -> Result<Image, BuildError> {
        for (name, default) in &file.arguments {
            let scope = Global { arguments: &self.global, given: &self.given };
            let default = default
                .as_ref()
                .map(|text| word(text, &scope, self.escape))
                .transpose()
                .map_err(|why| BuildError::Invalid(format!("ARG {name}: {why}")))?;
            let value = self.given.declare(name, default);
            self.global.set(name, value);
        }
        let sources = self.request.cache_from.clone();
        let (cached, words) = cache::Sources::find(self.engine, &sources);
        self.cached = cached;
        for text in words {
            self.say(text).await?;
        }
        let stages = &file.stages[..=last];
        self.steps = stages.iter().map(|stage| 1 + stage.steps.len()).sum::<usize>()
            + usize::from(!self.request.labels.is_empty());
        for (at, stage) in stages.iter().enumerate() {
            let mut state = self.stage(file, stage, at).await?;
            if at == last && !self.request.labels.is_empty() {
                let step = label_step(&self.request.labels);
                self.step(file, &mut state, &step, at, true).await?;
            }
            self.stages.push(state);
        }
        let result = self.stages.last().and_then(|state| state.image);
        let id = result.ok_or_else(|| {
            BuildError::Invalid("No image was generated. Is your Dockerfile empty?".to_owned())
        })?;
        self.finish(id).await
    }

    async fn stage(
        &mut self,
        file: &Dockerfile,
        stage: &Stage,
        at: usize,
    ) -> Result<State, BuildError> {
        self.heading(&stage.from.text).await?;
        let at_from = |error| at_step(&stage.from, error);
        let (mut state, triggers) = self.base(file, stage, at).await.map_err(at_from)?;
        self.hold(&state);
        match &state.image {
            Some(image) => self.say(format!(" ---> {}\n", image.short())).await?,
            None => self.say(" ---> \n".to_owned()).await?,
        }
        if !triggers.is_empty() {
            let plural = if triggers.len() == 1 { "" } else { "s" };
            self.say(format!("# Executing {} build trigger{plural}\n", triggers.len())).await?;
            for trigger in triggers {
                let step = Dockerfile::parse_trigger(&trigger)?;
                self.step(file, &mut state, &step, at, false).await?;
            }
        }
        for step in &stage.steps {
            self.step(file, &mut state, step, at, true).await?;
        }
        Ok(state)
    }

    /// Carries one step out, with its heading if it is one of the Dockerfile's own.
    async fn step(
        &mut self,
        file: &Dockerfile,
        state: &mut State,
        step: &Step,
        stage: usize,
        counted: bool,
    ) -> Result<(), BuildError> {
        if self.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        if counted {
            self.heading(&step.text).await?;
        }
        self.carry_out(file, state, step, stage).await.map_err(|error| at_step(step, error))?;
        match &state.image {
            Some(image) => self.say(format!(" ---> {}\n", image.short())).await,
            None => Ok(()),
        }
    }

    async fn heading(&mut self, text: &str) -> Result<(), BuildError> {
        self.number += 1;
        self.say(format!("Step {}/{} : {text}\n", self.number, self.steps)).await
    }

    async fn finish(&mut self, id: Digest) -> Result<Image, BuildError> {
        let unused = self.given.unused().join(" ");
        if !unused.is_empty() {
            self.say(format!("[Warning] One or more build-args [{unused}] were not consumed\n"))
                .await?;
        }
        // Whoever is gone by now gets no name changed.
        if self.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        self.tell(Event::Built(id)).await?;
        self.say(format!("Successfully built {}\n", id.short())).await?;
        for tag in &self.request.tags.clone() {
            self.engine.tag(&id.to_string(), tag).await?;
            self.say(format!("Successfully tagged {}\n", tag.familiar())).await?;
        }
        Ok(self.engine.image(&id.to_string())?)
    }

    /// Once more for each step: they are few.
    fn hold(&mut self, state: &State) {
        self.holds.extend(state.image.map(|image| self.engine.hold_image(image)));
    }

    async fn say(&self, text: String) -> Result<(), BuildError> {
        self.tell(Event::Text(text)).await
    }

    async fn tell(&self, event: Event) -> Result<(), BuildError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(BuildError::Cancelled),
            sent = self.events.send(event) => sent.map_err(|_| BuildError::Cancelled),
        }
    }

    /// Waits for something that may be given up.
    async fn or_cancelled<T, E: Into<BuildError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, BuildError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(BuildError::Cancelled),
            done = work => done.map_err(Into::into),
        }
    }
}

/// An error of a step, with the step.
fn at_step(step: &Step, error: BuildError) -> BuildError {
    match error {
        BuildError::Invalid(why) if step.line > 0 => {
            let instruction =
                step.text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
            // Docker's own words begin with it.
            let why = match why.starts_with(&instruction) {
                true => why,
                false => format!("{instruction}: {why}"),
            };
            BuildError::Step { line: step.line, why }
        }
        error => error,
    }
}

/// `--label`, as a step at the end. The values are as they are to be: nothing in them is expanded.
fn label_step(labels: &std::collections::BTreeMap<String, String>) -> Step {
    let quoted = |text: &String| format!("'{}'", text.replace('\'', "'\"'\"'"));
    let pairs: Vec<(String, String)> =
        labels.iter().map(|(name, value)| (quoted(name), quoted(value))).collect();
    let shown: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Step {
        line: 0,
        text: format!("LABEL {}", shown.join(" ")),
        instruction: Instruction::Label(pairs),
    }
}

/// Work on files, off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(BuildError::Cancelled),
    }
}
