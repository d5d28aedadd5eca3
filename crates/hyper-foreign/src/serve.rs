//! `BUNDLE/pod.sock`: `hyper.pod.v1` for the container.

use std::io;
use std::sync::{PoisonError, Weak};

use containerd_shim_protos::api;
use hyper_stdio::Wanted;
use hyper_stdio::attach::write_answer;
use hyper_stdio::clients::{self, attached};
use hyper_task::pod::{Answer, Call, PodReport, ProcessInfo};
use tokio::net::{UnixListener, UnixStream};

use crate::container::Container;
use crate::error::Result;
use crate::{ForeignError, files, host};

/// Serves until it is aborted, or the container is gone.
pub(crate) async fn serve(container: Weak<Container>, listener: UnixListener) {
    let answer = move |call, stream| client(container.clone(), call, stream);
    clients::serve(listener, answer).await;
}

async fn client(container: Weak<Container>, call: Call, mut stream: UnixStream) -> io::Result<()> {
    let Some(container) = container.upgrade() else { return Ok(()) };
    let answer = match call {
        Call::Attach { exec, stdin, stdout, stderr } => {
            match container.find(&exec.unwrap_or_default()) {
                Ok(process) => {
                    let wanted = Wanted { stdin, stdout, stderr };
                    let attachment = process.streams.hub.attach(wanted);
                    // The process's own end is the streams': nothing else is held by a client.
                    drop((process, container));
                    return attached(attachment, stream).await;
                }
                Err(error) => Err(error),
            }
        }
        Call::Stat { path } => Ok(files::stat(&container, path).await),
        Call::Read { what } => return files::read(&container, what, stream).await,
        Call::Write { path, keep_directories, owner } => {
            return files::write(&container, path, keep_directories, owner, stream).await;
        }
        Call::Processes => {
            processes(&container).await.map(|processes| Answer::Processes { processes })
        }
        Call::Networks => {
            let pid = container.running();
            Ok(Answer::Networks { networks: pid.map(host::networks).unwrap_or_default() })
        }
        Call::Rewire => rewire(&container),
        Call::Hosts { gone, new } => change_hosts(&container, gone, new).await,
        Call::Phases => {
            let phases = container.phases.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Ok(Answer::Phases(phases))
        }
        Call::Pod => Ok(Answer::Pod(Box::new(report(&container)))),
    };
    let answer = answer.unwrap_or_else(|error| Answer::Error { message: chain(&error) });
    write_answer(&mut stream, &answer).await
}

/// Processes on the host's kernel are in the namespace itself.
fn rewire(container: &Container) -> Result<Answer> {
    if container.foreign.runtime.shares_kernel() {
        return Ok(Answer::Done);
    }
    Err(ForeignError::Invalid(format!(
        "runtime `{}` takes its networks as it starts: stop the container first",
        container.foreign.runtime.name
    )))
}

/// The bundle's file is the one that is mounted.
async fn change_hosts(
    container: &Container,
    gone: Vec<String>,
    new: Vec<String>,
) -> Result<Answer> {
    let path = container.settings.bundle.join(hyper_task::pod::HOSTS);
    let changed = files::work(move || hyper_files::hosts::change(&path, &gone, &new)).await;
    changed.map(|()| Answer::Done).map_err(|fault| ForeignError::Refused(fault.message))
}

/// The processes, as the host numbers them; those of a kernel of their own it cannot see.
async fn processes(container: &Container) -> Result<Vec<ProcessInfo>> {
    if !container.foreign.runtime.shares_kernel() {
        return Err(ForeignError::Invalid(format!(
            "the processes are those of a kernel of their own, which runtime `{}` does not show: \
             run ps inside",
            container.foreign.runtime.name
        )));
    }
    let request = api::PidsRequest { id: container.id(), ..Default::default() };
    let answer: api::PidsResponse = container.pass("Pids", &request).await?;
    let seen = answer.processes.iter().filter_map(|process| host::process(process.pid));
    Ok(seen.collect())
}

fn report(container: &Container) -> PodReport {
    let runtime = &container.foreign.runtime;
    PodReport {
        id: container.id(),
        hypervisor: runtime.name.clone(),
        wall: runtime.wall.clone(),
        hypervisor_pid: container.shim_pid(),
        supervisor_pid: std::process::id(),
        containers: vec![container.id()],
        ..PodReport::default()
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
