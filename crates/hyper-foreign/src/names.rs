//! The resolver at 127.0.0.11 of a container's network namespace: the same answers that guests get.
//!
//! The sockets are made in the namespace and served from outside of it, so that questions about the
//! rest of the world are asked on the host, also of resolvers on its loopback.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_network::{Netlink, NetworkError, namespace};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::{Result, blocking, file};

const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// Questions of one container that are resolved at the same time.
const AT_ONCE: usize = 32;
/// Connections at once.
const CONNECTIONS: usize = 16;
/// Longest question over UDP.
const DATAGRAM: usize = 4096;
/// How long a silent connection is kept.
const PATIENCE: Duration = Duration::from_secs(20);

/// Brings the namespace's loopback up and, with `names`, opens the resolver there.
pub(crate) async fn prepare(namespace: &Path, names: Option<PathBuf>) -> Result<Option<Resolver>> {
    let (path, wanted) = (namespace.to_owned(), names.is_some());
    let sockets = blocking(move || {
        let work = move || {
            let failed = |action: &'static str| {
                move |source| NetworkError::Link { action, name: "lo".to_owned(), source }
            };
            let mut netlink = Netlink::open().map_err(failed("open rtnetlink for"))?;
            if let Some(lo) = netlink.link("lo")? {
                netlink.up(lo.index)?;
            }
            if !wanted {
                return Ok(None);
            }
            let bind = || {
                let (udp, tcp) = (UdpSocket::bind(ADDRESS)?, TcpListener::bind(ADDRESS)?);
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                Ok(Some((udp, tcp)))
            };
            bind().map_err(failed("open the resolver at 127.0.0.11:53 of"))
        };
        Ok(namespace::within(&path, work)?)
    })
    .await?;
    let (Some((udp, tcp)), Some(names)) = (sockets, names) else { return Ok(None) };
    let open =
        || Ok((tokio::net::UdpSocket::from_std(udp)?, tokio::net::TcpListener::from_std(tcp)?));
    let (udp, tcp) = open().map_err(file::<std::io::Error>("serve names of", namespace))?;
    Ok(Some(Resolver { udp: Arc::new(udp), tcp, names: names.into() }))
}

#[derive(Debug)]
pub(crate) struct Resolver {
    udp: Arc<tokio::net::UdpSocket>,
    tcp: tokio::net::TcpListener,
    names: Arc<Path>,
}

impl Resolver {
    /// Serves until it is aborted.
    pub async fn serve(self) {
        let Self { udp, tcp, names } = self;
        tokio::join!(datagrams(udp, names.clone()), connections(tcp, names));
    }
}

async fn datagrams(socket: Arc<tokio::net::UdpSocket>, names: Arc<Path>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        while tasks.try_join_next().is_some() {}
        // Not reading on is what stops a container that asks too much.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match socket.recv_from(&mut buffer).await {
            Ok((length, asker)) => {
                let question = buffer[..length].to_vec();
                let (socket, names) = (socket.clone(), names.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    if let Some(answer) = hyper_pod::resolve_name(&names, &question, false).await {
                        let _ = socket.send_to(&answer, asker).await;
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "resolver");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn connections(listener: tokio::net::TcpListener, names: Arc<Path>) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= CONNECTIONS {
            tasks.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let names = names.clone();
                tasks.spawn(async move {
                    let _ = connection(stream, &names).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "resolver");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn connection(mut stream: tokio::net::TcpStream, names: &Path) -> std::io::Result<()> {
    loop {
        let question = async {
            let length = stream.read_u16().await?;
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await?;
            Ok::<_, std::io::Error>(question)
        };
        let question = tokio::time::timeout(PATIENCE, question).await??;
        let Some(answer) = hyper_pod::resolve_name(names, &question, true).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
}
