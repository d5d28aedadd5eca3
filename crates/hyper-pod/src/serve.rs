//! `BUNDLE/pod.sock`: `hyper.pod.v1` for one container.

use std::io;

use hyper_link::message::{ProcessId, WriteFiles};
use hyper_stdio::Wanted;
use hyper_stdio::attach::write_answer;
use hyper_stdio::clients::{self, attached};
use hyper_task::pod::{Answer, Call};
use tokio::net::{UnixListener, UnixStream};

use crate::error::chain;
use crate::{Pod, PodError, files};

/// Serves until it is aborted; clients whose output is still on its way are served to the end by
/// tasks of their own when the pod goes on.
pub(crate) async fn serve(pod: Pod, container: String, listener: UnixListener) {
    let answer = move |call, stream| {
        let (pod, container) = (pod.clone(), container.clone());
        async move { client(&pod, container, call, stream).await }
    };
    clients::serve(listener, answer).await;
}

async fn client(
    pod: &Pod,
    container: String,
    call: Call,
    mut stream: UnixStream,
) -> io::Result<()> {
    let answer = match call {
        Call::Phases => pod.phases(&container).await.map(Answer::Phases),
        Call::Networks => {
            let guest = pod.guest(&container, "tell what passed its networks").await;
            let networks = match guest {
                Ok(guest) => guest.network_counters().await,
                Err(error) => Err(error),
            };
            networks.map(|networks| Answer::Networks { networks })
        }
        Call::Rewire => {
            let guest = pod.guest(&container, "change its networks").await;
            match guest {
                Ok(guest) => guest.rewire(&container).await.map(|()| Answer::Done),
                Err(error) => Err(error),
            }
        }
        Call::Hosts { gone, new } => {
            files::change_hosts(pod, container, gone, new).await.map(|()| Answer::Done)
        }
        Call::Pod => pod.report().await.map(|report| Answer::Pod(Box::new(report))),
        Call::Stat { path } => Ok(files::stat(pod, container, path).await),
        Call::Read { what } => return files::read(pod, container, what, stream).await,
        Call::Write { path, keep_directories, owner } => {
            let request = WriteFiles { container, path, keep_directories, owner, stream: 0 };
            return files::write(pod, request, stream).await;
        }
        Call::Processes => pod.processes(&container).await.map(|processes| Answer::Processes {
            processes: processes.into_iter().map(files::process).collect(),
        }),
        Call::Attach { exec, stdin, stdout, stderr } => {
            let process = ProcessId { container, exec };
            match pod.attach(process, Wanted { stdin, stdout, stderr }).await {
                Ok(attachment) => return attached(attachment, stream).await,
                Err(error) => Err(error),
            }
        }
    };
    let answer = answer.unwrap_or_else(|error: PodError| Answer::Error { message: chain(&error) });
    write_answer(&mut stream, &answer).await
}
