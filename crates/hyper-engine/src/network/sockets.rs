//! Sockets at addresses of the host, by which published ports are held.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use hyper_network::rules::Protocol;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

/// Connections that may wait to be passed on.
const BACKLOG: i32 = 64;

/// Opens sockets in the host's network, wherever hyperd itself is.
pub trait HostSockets: Debug + Send + Sync {
    /// A socket bound to `at` that does not block; one of TCP or SCTP listens. Blocks for a moment.
    ///
    /// # Errors
    /// The kernel's.
    fn open(&self, protocol: Protocol, at: SocketAddr) -> io::Result<OwnedFd>;
}

/// Those of the network that this process is in.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnSockets;

impl HostSockets for OwnSockets {
    fn open(&self, protocol: Protocol, at: SocketAddr) -> io::Result<OwnedFd> {
        let socket = new(protocol, at.is_ipv4())?;
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
}

/// A socket that does not block, of IPv4 or of IPv6. One of SCTP is of one connection, as TCP's.
pub(super) fn new(protocol: Protocol, ipv4: bool) -> io::Result<OwnedFd> {
    let family = if ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, Some(rustix::net::ipproto::TCP)),
        Protocol::Udp => (SocketType::DGRAM, Some(rustix::net::ipproto::UDP)),
        Protocol::Sctp => (SocketType::STREAM, Some(rustix::net::ipproto::SCTP)),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, kind, flags, number)?)
}
