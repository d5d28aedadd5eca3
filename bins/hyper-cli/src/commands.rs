//! One module per command (or family of commands).

mod bench;
mod build;
mod changes;
mod container;
mod copy;
mod credentials;
mod doctor;
mod events;
mod exec;
mod image;
mod inspect;
mod live;
mod login;
mod logs;
mod manifest;
mod network;
mod pod;
mod pull;
mod push;
mod run;
mod service;
mod session;
mod system;
mod uri;
mod volume;

use crate::arguments::{
    BenchCommand, BuilderCommand, Cli, Command, ImageCommand, InspectFlags, SystemCommand,
};
use crate::client::{Client, ClientError};
use crate::daemon;

/// Runs one command; `Ok` is the exit code.
pub async fn run(cli: Cli) -> anyhow::Result<i32> {
    // These need no hyperd.
    match &cli.command {
        Command::Bench(BenchCommand::Vmm(flags)) => return bench::vmm(flags),
        Command::Bench(BenchCommand::Report { dir }) => return bench::report(dir),
        Command::Bench(BenchCommand::Compare { before, after }) => {
            return bench::compare(before, after);
        }
        _ => {}
    }
    if let Command::Doctor { json } = cli.command {
        return doctor::doctor(json);
    }
    let client = &daemon::connect(cli.host.as_deref()).await?;
    match cli.command {
        Command::Run(flags) => run::run(client, flags).await,
        Command::Create(flags) => run::create(client, flags).await,
        Command::Start(flags) => container::start(client, flags).await,
        Command::Stop(flags) => container::stop(client, flags).await,
        Command::Kill(flags) => container::kill(client, flags).await,
        Command::Restart(flags) => live::restart(client, flags).await,
        Command::Rename { container, name } => live::rename(client, &container, &name).await,
        Command::Update(flags) => live::update(client, flags).await,
        Command::Top(flags) => live::top(client, flags).await,
        Command::Stats(flags) => live::stats(client, flags).await,
        Command::Rm(flags) => container::remove(client, flags).await,
        Command::Ps(flags) => container::list(client, flags).await,
        Command::Exec(flags) => exec::exec(client, flags).await,
        Command::Attach(flags) => run::attach(client, flags).await,
        Command::Logs(flags) => logs::logs(client, flags).await,
        Command::Wait { containers } => container::wait(client, containers).await,
        Command::Pause { containers } => container::post_each(client, containers, "pause").await,
        Command::Unpause { containers } => {
            container::post_each(client, containers, "unpause").await
        }
        Command::Apply(flags) => manifest::apply(client, &flags).await,
        Command::Delete(flags) => manifest::delete(client, &flags).await,
        Command::Pod(command) => pod::pod(client, command).await,
        Command::Cp(flags) => copy::copy(client, flags).await,
        Command::Diff { container } => changes::diff(client, &container).await,
        Command::Export(flags) => changes::export(client, flags).await,
        Command::Commit(flags) => changes::commit(client, flags).await,
        Command::Inspect(flags) => inspect::inspect(client, flags).await,
        Command::Build(flags) => build::build(client, flags).await,
        Command::Builder(BuilderCommand::Build(flags)) => build::build(client, *flags).await,
        Command::Builder(BuilderCommand::Prune(flags)) => build::prune(client, flags).await,
        Command::Pull(flags) => pull::pull_command(client, flags).await,
        Command::Push(flags) => push::push(client, flags).await,
        Command::Tag(flags) => image::tag(client, flags).await,
        Command::Save(flags) => image::save(client, flags).await,
        Command::Load(flags) => image::load(client, flags).await,
        Command::Import(flags) => image::import(client, flags).await,
        Command::History(flags) => image::history(client, flags).await,
        Command::Image(command) => image_command(client, command).await,
        Command::Volume(command) => volume::run(client, command).await,
        Command::Login(flags) => login::login(client, flags).await,
        Command::Network(command) => network::network(client, command).await,
        Command::Port { container, port } => {
            network::port(client, &container, port.as_deref()).await
        }
        Command::Logout { server } => login::logout(server.as_deref()).await,
        Command::System(SystemCommand::Df { verbose, format }) => {
            system::df(client, verbose, format.as_deref()).await
        }
        Command::Images(flags) => image::list(client, flags).await,
        Command::Rmi(flags) => image::remove(client, flags).await,
        Command::Events(flags) | Command::System(SystemCommand::Events(flags)) => {
            events::events(client, flags).await
        }
        Command::Info { format } | Command::System(SystemCommand::Info { format }) => {
            system::info(client, format).await
        }
        Command::Version { format } => system::version(client, format).await,
        Command::Bench(BenchCommand::Start(flags)) => bench::start(client, flags).await,
        Command::Bench(BenchCommand::Many(flags)) => bench::many(client, flags).await,
        Command::Bench(BenchCommand::Pull(flags)) => bench::pull(client, &flags).await,
        Command::Bench(BenchCommand::Run(flags)) => bench::run(client, flags).await,
        // Above: they need no daemon.
        Command::Doctor { .. }
        | Command::Bench(
            BenchCommand::Vmm(_) | BenchCommand::Report { .. } | BenchCommand::Compare { .. },
        ) => Ok(0),
    }
}

/// `image VERB`: the same as the short commands, and what has none.
async fn image_command(client: &Client, command: ImageCommand) -> anyhow::Result<i32> {
    match command {
        ImageCommand::Ls(flags) => image::list(client, flags).await,
        ImageCommand::Inspect { format, names } => {
            let kind = Some("image".to_owned());
            inspect::inspect(client, InspectFlags { format, kind, names }).await
        }
        ImageCommand::Rm(flags) => image::remove(client, flags).await,
        ImageCommand::Prune(flags) => image::prune(client, flags).await,
        ImageCommand::Referrers { no_trunc, format, image } => {
            image::referrers(client, &image, no_trunc, format.as_deref()).await
        }
        ImageCommand::Verify { json } => image::verify(client, json).await,
        ImageCommand::Pull(flags) => pull::pull_command(client, flags).await,
        ImageCommand::Push(flags) => push::push(client, flags).await,
        ImageCommand::Tag(flags) => image::tag(client, flags).await,
        ImageCommand::Save(flags) => image::save(client, flags).await,
        ImageCommand::Load(flags) => image::load(client, flags).await,
        ImageCommand::Import(flags) => image::import(client, flags).await,
        ImageCommand::History(flags) => image::history(client, flags).await,
    }
}

/// The container could not be created or started.
#[derive(Debug, thiserror::Error)]
#[error("{stage}")]
pub struct RunFailed {
    pub stage: &'static str,
    /// 125, 126 or 127.
    pub code: u8,
    #[source]
    pub source: ClientError,
}

impl RunFailed {
    /// Docker's mapping from the engine's words to an exit code.
    pub fn new(stage: &'static str, source: ClientError) -> Self {
        let text = source.to_string();
        let code =
            if ["executable file not found", "no such file or directory", "command not found"]
                .iter()
                .any(|words| text.contains(words))
            {
                127
            } else if ["permission denied", "not executable", "is a directory", "exec format error"]
                .iter()
                .any(|words| text.contains(words))
            {
                126
            } else {
                125
            };
        Self { stage, code, source }
    }
}

/// Exit code for an error.
pub fn failure_code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<RunFailed>().map_or(1, |failed| failed.code)
}

/// What the user can do about an error, when the engine has not said it already.
pub fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let client = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>())?;
    match client {
        ClientError::Connect { source, .. } => Some(match source.kind() {
            std::io::ErrorKind::PermissionDenied => "run as root, or join the group of the socket",
            _ => "is hyperd running there? start it with `hyperd -H unix://…`",
        }),
        _ => None,
    }
}
