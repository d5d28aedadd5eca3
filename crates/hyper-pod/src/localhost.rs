//! The guest's localhost, for who enters the pod's namespace on the host: containerd's `port-forward`
//! connects there.
//!
//! ```text
//!  containerd ── 127.0.0.1:PORT of the namespace ──► serve() ── connect(PORT) ──► agent ──► a process
//!                                                       ◄═════ bytes on a stream ═════►
//! ```
//! Only who may enter the namespace gets here: the host's root.

use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_link::Link;
use hyper_link::message::Request;
use hyper_link::sockets::carry;
use hyper_network::localhost;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::PodError;
use crate::create::blocking;
use crate::error::chain;

/// Connections at a time. Each may hold two windows of the link.
const AT_ONCE: usize = 64;
/// How long the agent may take: longer than it waits itself.
const CONNECT: Duration = Duration::from_secs(15);
/// After an error of `accept`: out of descriptors, or the client has gone already.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes localhost of a namespace for the guest behind `link`, until it is dropped. What a host cannot give is told
/// in the log: a pod does without.
pub(crate) async fn serve(link: Link, namespace: PathBuf) {
    let place = namespace.clone();
    let taking = blocking(move || localhost::take(&place).map_err(PodError::Network));
    let taken = match taking.await {
        Ok(taken) => taken,
        Err(error) => {
            let (path, error) = (namespace.display(), chain(&error));
            return tracing::info!(%path, error, "no ports can be forwarded to the pod");
        }
    };
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let v6 = async {
        if let Some(listener) = taken.v6 {
            listen(listener, &link, &room).await;
        }
    };
    tokio::join!(listen(taken.v4, &link, &room), v6);
}

async fn listen(listener: StdListener, link: &Link, room: &Arc<Semaphore>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "localhost of the pod"),
    };
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let link = link.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    forward(socket, &link).await;
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Carries one connection, or resets it: who connected learns that nobody is there.
async fn forward(socket: TcpStream, link: &Link) {
    let Ok(port) = socket.local_addr().map(|at| at.port()) else { return };
    let (stream, reader, writer) = link.open();
    match link.call(Request::Connect { port, stream }, CONNECT).await {
        Ok(_) => carry(socket, reader, writer).await,
        Err(error) => {
            tracing::warn!(port, error = chain(&error), "a port cannot be forwarded");
            let _ = socket.set_zero_linger();
        }
    }
}
