//! One instruction.

use std::io::Read;
use std::sync::Arc;

use hyper_erofs::NodeKind;
use hyper_erofs::tar::Reader;
use hyper_image::UnpackError;

use super::cache::Done;
use super::{Builder, State, blocking, expand, word};
use crate::BuildError;
use crate::arguments::Scope;
use crate::context::{Scratch, unpack};
use crate::metadata;
use crate::owner;
use crate::run::Running;
use crate::transfer::{self, LayerFiles, Placing, Selected, Selection};
use crate::tree::{Files, absolute};
use crate::{fetch, tree};
use hyper_dockerfile::Ignore;
use hyper_dockerfile::{
    Command, Dockerfile, Heredoc, Instruction, Run, Source, Step, Transfer, TransferKind,
};

impl Builder<'_> {
    pub(super) async fn carry_out(
        &mut self,
        file: &Dockerfile,
        state: &mut State,
        step: &Step,
        stage: usize,
    ) -> Result<(), BuildError> {
        match &step.instruction {
            Instruction::Arg(arguments) => self.argument(state, arguments).await,
            Instruction::Run(run) => self.run(state, run).await,
            Instruction::Transfer(transfer) => self.transfer(file, state, transfer, stage).await,
            Instruction::Workdir(path) => self.workdir(state, path).await,
            Instruction::Maintainer(name) => {
                state.config.author.clone_from(name);
                self.described(state, &format!("MAINTAINER {name}")).await
            }
            Instruction::From { .. } => Ok(()),
            other => {
                let mut config = state.config.config.clone();
                let scope = Scope { env: &state.config.config.env, arguments: &state.arguments };
                let set = &mut state.command_set;
                let said = metadata::apply(other, &mut config, &scope, self.escape, set)
                    .map_err(BuildError::Invalid)?;
                state.config.config = config;
                self.described(state, &said.unwrap_or_default()).await
            }
        }
    }

    /// The image of a step that only described it.
    async fn described(&mut self, state: &mut State, said: &str) -> Result<(), BuildError> {
        let done = Done::metadata(said);
        // What the cache holds was made from the same description: only times differ.
        if self.probe(state, &done).await? { Ok(()) } else { self.commit(state, &done, None).await }
    }

    async fn argument(
        &mut self,
        state: &mut State,
        arguments: &[(String, Option<String>)],
    ) -> Result<(), BuildError> {
        let mut said = "ARG".to_owned();
        for (name, default) in arguments {
            let scope = Scope { env: &state.config.config.env, arguments: &state.arguments };
            let expanded = |text: &String| word(text, &scope, self.escape);
            let name = expanded(name).map_err(BuildError::Invalid)?;
            let default =
                default.as_ref().map(expanded).transpose().map_err(BuildError::Invalid)?;
            said.push_str(&format!(" {name}"));
            if let Some(default) = &default {
                said.push_str(&format!("={default}"));
            }
            // Without a default, one before the first FROM counts.
            let default = default.or_else(|| self.global.get(&name).map(str::to_owned));
            let value = self.given.declare(&name, default);
            state.arguments.set(&name, value);
        }
        self.described(state, &said).await
    }

    async fn workdir(&mut self, state: &mut State, path: &str) -> Result<(), BuildError> {
        let scope = Scope { env: &state.config.config.env, arguments: &state.arguments };
        let path = metadata::working_directory(path, &state.config.config, &scope, self.escape)
            .map_err(BuildError::Invalid)?;
        state.config.config.working_dir.clone_from(&path);
        let done = Done::metadata(&format!("WORKDIR {path}"));
        if self.probe(state, &done).await? {
            return Ok(());
        }
        let files = self.current_files(state).await?;
        let archive = blocking(move || {
            let image = files.view().map_err(|e| BuildError::Context(Box::new(e)))?;
            transfer::directory(&image, &path)
        })
        .await?;
        let layer = match archive {
            None => None,
            Some(archive) => Some(
                self.layer(move |writer| {
                    std::io::Write::write_all(writer, &archive)
                        .map_err(|e| BuildError::file("write a layer", e))
                })
                .await?,
            ),
        };
        self.commit(state, &done, layer).await
    }

    async fn run(&mut self, state: &mut State, run: &Run) -> Result<(), BuildError> {
        let config = &state.config.config;
        let argv = run_argv(run, &metadata::shell(config))?;
        let arguments = state.arguments.effective(&config.env);
        let command = argv.join(" ");
        // As Docker: `|COUNT NAME=value …` in front of what was run.
        let created_by = match arguments.len() {
            0 => command.clone(),
            count => format!("|{count} {} {command}", arguments.join(" ")),
        };
        let mut details = serde_json::to_string(&(&argv, &arguments)).unwrap_or_default();
        // What a step may reach can change what it makes.
        if run.network.is_some() || !run.tmpfs.is_empty() {
            details.push_str(&format!("{:?}{:?}", run.network, run.tmpfs));
        }
        let done = Done { created_by, details };
        if self.probe(state, &done).await? {
            return Ok(());
        }
        let image = state.image.ok_or_else(|| {
            BuildError::Invalid(
                "there is nothing to run in an image FROM scratch: COPY or ADD files first"
                    .to_owned(),
            )
        })?;
        let predefined = self.given.predefined().map(|(name, value)| format!("{name}={value}"));
        let env = arguments.into_iter().chain(predefined).collect();
        let running = Running {
            engine: self.engine,
            events: &self.events,
            cancel: &self.cancel,
            host: &self.request.host,
            image,
            argv,
            env,
            network: run.network.clone(),
            tmpfs: run.tmpfs.clone(),
            command,
            keep: self.request.keep,
        };
        let layer = running.run().await?;
        self.commit(state, &done, Some(layer)).await
    }

    async fn transfer(
        &mut self,
        file: &Dockerfile,
        state: &mut State,
        transfer: &Transfer,
        stage: usize,
    ) -> Result<(), BuildError> {
        let name = match transfer.kind {
            TransferKind::Add => "ADD",
            TransferKind::Copy => "COPY",
        };
        let expanded = self.expanded(state, transfer)?;
        let other = match &transfer.from {
            None => None,
            Some(from) => Some(self.other_files(file, from, stage).await?),
        };
        let selections = self.selections(&expanded, other, transfer, name).await?;
        let destination = {
            let slash = expanded.destination.ends_with('/') || expanded.destination.ends_with("/.");
            let path = absolute(&state.config.config.working_dir, &expanded.destination);
            if slash && path != "/" { format!("{path}/") } else { path }
        };
        let hashed = selections.clone();
        let digest = blocking(move || transfer::digest(&hashed)).await?;
        let mut flags = String::new();
        for (flag, value) in [("chown", &expanded.chown), ("chmod", &expanded.chmod)] {
            if let Some(value) = value {
                flags.push_str(&format!("--{flag}={value} "));
            }
        }
        if transfer.link {
            flags.push_str("--link ");
        }
        let done = Done::metadata(&format!("{name} {flags}{digest} in {destination} "));
        if self.probe(state, &done).await? {
            return Ok(());
        }
        let image = self.current_files(state).await?;
        let (chown, chmod, link) = (expanded.chown, expanded.chmod, transfer.link);
        let layer = self
            .layer(move |writer| {
                let broken = |e| BuildError::Context(Box::new(e));
                let below = image.view().map_err(broken)?;
                let owner = chown
                    .map(|text| owner::owner(&text, &below))
                    .transpose()
                    .map_err(BuildError::Invalid)?;
                let mode = chmod.map(|text| owner::mode(&text)).transpose();
                let mode = mode.map_err(BuildError::Invalid)?;
                let placing = Placing { name, destination, owner, mode, link };
                let nothing = Files::default();
                let empty = nothing.view().map_err(broken)?;
                let onto = if link { &empty } else { &below };
                let views = selections
                    .iter()
                    .map(|selection| selection.files.view())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(broken)?;
                LayerFiles::plan(&selections, &views, onto, &placing)?.write(&selections, writer)
            })
            .await?;
        self.commit(state, &done, Some(layer)).await
    }

    /// An instruction's words with their variables replaced.
    fn expanded(&self, state: &State, transfer: &Transfer) -> Result<Expanded, BuildError> {
        let scope = Scope { env: &state.config.config.env, arguments: &state.arguments };
        let one = |text: &String| word(text, &scope, self.escape).map_err(BuildError::Invalid);
        let mut sources = Vec::new();
        for source in &transfer.sources {
            sources.push(match source {
                Source::Path(path) => Source::Path(one(path)?),
                Source::Inline(heredoc) if heredoc.expand => {
                    let content = expand::document(&heredoc.content, &scope, self.escape)
                        .map_err(BuildError::Invalid)?;
                    Source::Inline(Heredoc { content, ..heredoc.clone() })
                }
                inline @ Source::Inline(_) => inline.clone(),
            });
        }
        let destination = one(&transfer.destination)?;
        if destination.is_empty() {
            return Err(BuildError::Invalid(format!(
                "the destination {} is empty after its variables were replaced",
                transfer.destination
            )));
        }
        Ok(Expanded {
            sources,
            destination,
            chown: transfer.chown.as_ref().map(one).transpose()?,
            chmod: transfer.chmod.as_ref().map(one).transpose()?,
        })
    }

    async fn selections(
        &mut self,
        expanded: &Expanded,
        other: Option<Arc<Files>>,
        transfer: &Transfer,
        name: &'static str,
    ) -> Result<Vec<Selection>, BuildError> {
        let mut selections = Vec::new();
        let mut inline = Vec::new();
        let from_context = other.is_none();
        let files = other.unwrap_or_else(|| Arc::clone(&self.request.context.files));
        let add = transfer.kind == TransferKind::Add;
        for source in &expanded.sources {
            let path = match source {
                Source::Inline(heredoc) => {
                    inline.push((heredoc.name.clone(), heredoc.content.clone()));
                    continue;
                }
                Source::Path(path) => path,
            };
            if fetch::is_git(path) && add {
                return Err(BuildError::Invalid(format!(
                    "{path}: cloning a repository needs BuildKit; add an archive of it instead"
                )));
            }
            if fetch::is_url(path) {
                if !add {
                    return Err(BuildError::Invalid(format!(
                        "source can't be a URL for COPY: {path}; ADD fetches it"
                    )));
                }
                let store = self.engine.image_store();
                let checksum = transfer.checksum.as_deref();
                let fetched = fetch::fetch(store, path, checksum, &self.scratch);
                let (files, file_name) = self.or_cancelled(fetched).await?;
                let selected = blocking(move || transfer::select(&files, &file_name, name)).await?;
                selections.push(selected);
                continue;
            }
            if transfer.checksum.is_some() {
                return Err(BuildError::Invalid(format!("--checksum is for URLs, not for {path}")));
            }
            let (files, path, scratch) = (Arc::clone(&files), path.clone(), self.scratch.clone());
            let found = blocking(move || {
                let selection = transfer::select(&files, &path, name)?;
                if add && from_context {
                    unpacked(&selection, &scratch)
                } else {
                    Ok(vec![selection])
                }
            });
            selections.extend(found.await?);
        }
        if !inline.is_empty() {
            let scratch = self.scratch.clone();
            let found = blocking(move || {
                let files = fetch::inline(&inline, &scratch)?;
                let named = inline.iter().map(|(file, _)| Selected {
                    path: file.clone().into_bytes(),
                    name: file.clone().into_bytes(),
                    directory: false,
                });
                Ok(Selection { files, selected: named.collect(), unpacked: false })
            });
            selections.push(found.await?);
        }
        Ok(selections)
    }

    async fn current_files(&mut self, state: &State) -> Result<Arc<Files>, BuildError> {
        match state.image {
            Some(image) => self.files_of(image).await,
            None => Ok(Arc::default()),
        }
    }

    /// A layer of what `write` writes.
    async fn layer(
        &self,
        write: impl FnOnce(&mut hyper_image::LayerWriter) -> Result<(), BuildError> + Send + 'static,
    ) -> Result<hyper_image::NewLayer, BuildError> {
        let store = self.engine.image_store().clone();
        let writer = blocking(move || {
            let mut writer = store.layer_writer()?;
            write(&mut writer)?;
            Ok(writer)
        })
        .await?;
        Ok(self.engine.image_store().add_layer(writer).await?)
    }
}

/// The words of a `COPY` or `ADD`, as they are meant.
struct Expanded {
    sources: Vec<Source>,
    destination: String,
    chown: Option<String>,
    chmod: Option<String>,
}

/// `ADD`: archives among what was selected are taken apart. Blocking.
fn unpacked(selection: &Selection, scratch: &Scratch) -> Result<Vec<Selection>, BuildError> {
    let files = Arc::clone(&selection.files);
    let view = files.view().map_err(|e| BuildError::Context(Box::new(e)))?;
    let mut all = Vec::new();
    let mut plain = Vec::new();
    for selected in &selection.selected {
        let node = view.at(&selected.path).map(|node| node.kind);
        let Some(NodeKind::File { layer, data }) = node else {
            plain.push(selected.clone());
            continue;
        };
        let limits = &scratch.unpacker.limits;
        let begins =
            |stream: &mut dyn Read| matches!(Reader::new(stream, limits).next_entry(), Ok(Some(_)));
        let is_archive = match scratch.unpacker.plain(files.reader(layer, data), begins) {
            Ok(is_archive) => is_archive,
            Err(error @ UnpackError::Start(_)) => return Err(BuildError::Context(Box::new(error))),
            Err(_) => false,
        };
        if !is_archive {
            plain.push(selected.clone());
            continue;
        }
        let (contents, _) = unpack(files.reader(layer, data), scratch).map_err(|error| {
            let path = tree::shown(&selected.path);
            BuildError::Invalid(format!("ADD cannot unpack {path}: {}", error.chain()))
        })?;
        all.push(Selection {
            files: Arc::new(Files { files: contents, ignore: Ignore::default() }),
            selected: vec![Selected { path: Vec::new(), name: Vec::new(), directory: true }],
            unpacked: true,
        });
    }
    if !plain.is_empty() {
        all.push(Selection { selected: plain, ..selection.clone() });
    }
    Ok(all)
}

/// What a `RUN` runs. A heredoc alone is a script; others are the shell's own.
fn run_argv(run: &Run, shell: &[String]) -> Result<Vec<String>, BuildError> {
    let line = match &run.command {
        Command::Exec(words) => return Ok(words.clone()),
        Command::Shell(line) => line,
    };
    let with_shell = |script: String| shell.iter().cloned().chain([script]).collect();
    match run.heredocs.as_slice() {
        [] => Ok(with_shell(line.clone())),
        [only] if only.word == *line => match only.content.strip_prefix("#!") {
            None => Ok(with_shell(only.content.clone())),
            Some(rest) => {
                let interpreter = rest.lines().next().unwrap_or_default().trim();
                if interpreter.is_empty() {
                    return Err(BuildError::Invalid("the script's `#!` names nothing".to_owned()));
                }
                // In memory: it must not become a file of the image.
                let mut end = "HYPER_END".to_owned();
                while only.content.contains(&end) {
                    end.push('_');
                }
                let script = "/dev/shm/hyper-build-script";
                let text = &only.content;
                Ok(with_shell(format!(
                    "cat >{script} <<'{end}'\n{text}{end}\nexec {interpreter} {script}"
                )))
            }
        },
        several => {
            let mut script = line.clone();
            for heredoc in several {
                script.push_str(&format!("\n{}{}", heredoc.content, heredoc.name));
            }
            script.push('\n');
            Ok(with_shell(script))
        }
    }
}
