//! Published ports are held by sockets of ours: whoever has one already is told of before anything
//! starts, and nobody can take it meanwhile.
//!
//! The packet filter sends what is for the port to the pod before a socket sees it. What reaches
//! the socket all the same (IPv6, for a pod that has none) is passed on by hyperd, as long as there
//! is one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use hyper_network::rules::Protocol;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::spec::{PortWish, Published};
use crate::{Error, Result};

/// Connections that may wait to be passed on.
const BACKLOG: i32 = 64;
/// How long a pod may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How often another port is tried when one is wanted in two families at once.
const TRIES: u32 = 16;

/// A port, as long as this lives.
#[derive(Debug)]
pub(super) struct Held {
    _idle: Vec<OwnedFd>,
    _served: Vec<Served>,
}

/// A listener whose connections are passed on.
#[derive(Debug)]
struct Served {
    listener: OwnedFd,
    _task: AbortOnDropHandle<()>,
}

impl Drop for Served {
    /// The task drops its end when the runtime comes to it, and until then nobody else could listen.
    fn drop(&mut self) {
        // It is one that listens, and nothing else could fail.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

/// Takes the first free port that will do. Within a tokio runtime.
pub(super) fn hold(wish: &PortWish, pod: IpAddr) -> Result<(Published, Held)> {
    let (first, last) = wish.range;
    let mut refusal = None;
    let candidates: Vec<u16> =
        if first == 0 { vec![0; TRIES as usize] } else { (first..=last.max(first)).collect() };
    for port in candidates {
        match one(wish, port, pod) {
            Ok((host_port, held)) => {
                let (protocol, port, host) = (wish.protocol, wish.port, wish.host);
                return Ok((Published { protocol, port, host, host_port }, held));
            }
            Err(error) => refusal = Some((port, error)),
        }
    }
    let (port, error) = refusal.unwrap_or((first, io::ErrorKind::AddrInUse.into()));
    let host = wish.host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let at = SocketAddr::new(host, port);
    let word = wish.protocol.word();
    Err(match error.kind() {
        io::ErrorKind::AddrInUse => Error::Conflict(format!(
            "Bind for {at} failed: port is already allocated: {word} port {port} of the host is \
             taken by another program or container: publish another one"
        )),
        io::ErrorKind::AddrNotAvailable => {
            Error::Invalid(format!("Bind for {at} failed: {host} is no address of this host"))
        }
        _ => Error::Conflict(format!("Bind for {at} failed: {error}")),
    })
}

/// Takes a port again that was published before hyperd came back.
pub(super) fn hold_again(port: &Published, pod: IpAddr) -> Result<Held> {
    let wish = PortWish {
        protocol: port.protocol,
        port: port.port,
        host: port.host,
        range: (port.host_port, port.host_port),
    };
    hold(&wish, pod).map(|(_, held)| held)
}

fn one(wish: &PortWish, port: u16, pod: IpAddr) -> io::Result<(u16, Held)> {
    let mut held = Held { _idle: Vec::new(), _served: Vec::new() };
    let hosts = match wish.host {
        Some(host) => vec![host],
        None => {
            vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        }
    };
    let mut port = port;
    for host in hosts {
        let socket = match socket(wish.protocol, SocketAddr::new(host, port)) {
            // A host without IPv6, or a kernel without SCTP, has nothing that could be taken.
            Err(error) if absent(&error, wish, host) => continue,
            socket => socket?,
        };
        if port == 0 {
            port = SocketAddr::try_from(rustix::net::getsockname(&socket)?)
                .map_err(io::Error::other)?
                .port();
        }
        match wish.protocol {
            Protocol::Tcp => {
                let listener = socket.try_clone()?;
                let theirs = TcpListener::from_std(socket.into())?;
                let to = SocketAddr::new(pod, wish.port);
                let task = AbortOnDropHandle::new(tokio::spawn(serve(theirs, to)));
                held._served.push(Served { listener, _task: task });
            }
            Protocol::Udp | Protocol::Sctp => held._idle.push(socket),
        }
    }
    Ok((port, held))
}

fn absent(error: &io::Error, wish: &PortWish, host: IpAddr) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    let (no_family, no_address, no_protocol) = (
        rustix::io::Errno::AFNOSUPPORT,
        rustix::io::Errno::ADDRNOTAVAIL,
        rustix::io::Errno::PROTONOSUPPORT,
    );
    (host.is_ipv6() && wish.host.is_none() && (code == Some(no_family) || code == Some(no_address)))
        || (wish.protocol == Protocol::Sctp && code == Some(no_protocol))
}

fn socket(protocol: Protocol, at: SocketAddr) -> io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, Some(rustix::net::ipproto::TCP)),
        Protocol::Udp => (SocketType::DGRAM, Some(rustix::net::ipproto::UDP)),
        Protocol::Sctp => (SocketType::STREAM, Some(rustix::net::ipproto::SCTP)),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, number)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // What an earlier connection left in TIME_WAIT does not matter; who listens does.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &at)?;
    if protocol != Protocol::Udp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// Passes connections on until it is aborted.
async fn serve(listener: TcpListener, to: SocketAddr) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((mut from, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            if let Ok(Ok(mut pod)) = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
                // Either side may go at any time.
                let _ = tokio::io::copy_bidirectional(&mut from, &mut pod).await;
            }
        });
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// Compose, which removes a container and starts the next one, was told that the port was taken. On one thread the
    /// task's end comes after whoever wants the port next.
    #[tokio::test]
    async fn a_port_that_is_given_up_is_free_at_once() {
        let pod = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let wish = |port| PortWish {
            protocol: Protocol::Tcp,
            port: 80,
            host: Some(pod),
            range: (port, port),
        };
        let (published, held) = hold(&wish(0), pod).unwrap();
        tokio::task::yield_now().await;
        let taken = hold(&wish(published.host_port), pod).unwrap_err();
        assert!(matches!(taken, Error::Conflict(_)), "{taken}");
        drop(held);
        hold(&wish(published.host_port), pod).unwrap();
    }
}
