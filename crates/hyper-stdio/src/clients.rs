//! The supervisor's side of a pod socket: accepts clients and hears what they want.

use std::io;
use std::time::Duration;

use hyper_task::pod::{Answer, Call};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::Attachment;
use crate::attach::{self, read_call, write_answer};

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients at a time.
const CLIENTS: usize = 64;

/// Has `answer` carry out each client's call, until this is aborted, which ends the clients too.
pub async fn serve<A, F>(listener: UnixListener, answer: A)
where
    A: Fn(Call, UnixStream) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        if clients.len() >= CLIENTS {
            clients.join_next().await;
        }
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let answer = answer.clone();
                clients.spawn(async move {
                    let served = async {
                        let call = tokio::time::timeout(PATIENCE, read_call(&mut stream)).await??;
                        answer(call, stream).await
                    };
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "client of the pod socket");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "pod socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Tells a client that it is attached, and carries its streams until one of them ends.
///
/// # Errors
/// The client is gone.
pub async fn attached(attachment: Attachment, mut stream: UnixStream) -> io::Result<()> {
    write_answer(&mut stream, &Answer::Attached).await?;
    let (read, write) = stream.into_split();
    attach::serve(attachment, read, write).await
}
