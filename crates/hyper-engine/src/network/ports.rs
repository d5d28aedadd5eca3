//! Published ports are held by sockets of ours: whoever has one already is told of before anything
//! starts, and nobody can take it meanwhile.
//!
//! The packet filter sends what is for the port to the pod before a socket sees it. What reaches
//! the socket all the same (IPv6, for a pod that has none; all, for a hyperd without root, whose packet filter is not
//! the host's) is passed on by hyperd, as long as there is one.
//!
//! A host's kernel may translate SCTP and have no sockets of it: there a port of SCTP is held by the
//! [`Register`] alone, against our own containers only.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_network::rules::Protocol;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::task::AbortOnDropHandle;

use super::sockets::HostSockets;
use super::spec::{PortWish, Published};
use super::{datagrams, messages};
use crate::{Error, Result};

/// How long a pod may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How often another port is tried when one is wanted in two families at once.
const TRIES: u32 = 16;

/// A port, as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Held {
    served: Vec<Served>,
    /// Each has its socket.
    tasks: Vec<AbortOnDropHandle<()>>,
    entries: Vec<Entry>,
}

impl Held {
    /// Gives the port back: it is free when this returns.
    pub(super) async fn release(self) {
        drop(self.served);
        for mut task in self.tasks {
            task.abort();
            // Its end by the abort is what is waited for.
            let _ = (&mut task).await;
        }
        drop(self.entries);
    }
}

/// What ports of the host are held by.
#[derive(Debug, Clone)]
pub(super) struct Host {
    sockets: Arc<dyn HostSockets>,
    sctp: Register,
}

impl Host {
    pub(super) fn new(sockets: Arc<dyn HostSockets>) -> Self {
        Self { sockets, sctp: Register::default() }
    }
}

/// SCTP ports that are held, whether or not the host has sockets of it: its module may be loaded at
/// any time.
#[derive(Debug, Clone, Default)]
pub(super) struct Register(Arc<Mutex<BTreeSet<SocketAddr>>>);

impl Register {
    fn all(&self) -> MutexGuard<'_, BTreeSet<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As `bind` would do it.
    fn enter(&self, at: SocketAddr) -> io::Result<Entry> {
        let clash = |one: &SocketAddr| {
            let (one_ip, ip) = (one.ip(), at.ip());
            let meet = one_ip == ip || one_ip.is_unspecified() || ip.is_unspecified();
            (one.port(), one.is_ipv4()) == (at.port(), at.is_ipv4()) && meet
        };
        let mut all = self.all();
        if all.iter().any(clash) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        all.insert(at);
        Ok(Entry { register: self.clone(), at })
    }
}

/// A port of the [`Register`], as long as this lives.
#[derive(Debug)]
struct Entry {
    register: Register,
    at: SocketAddr,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.register.all().remove(&self.at);
    }
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

/// Takes the first free port that will do. Within a tokio runtime; blocks for a moment.
pub(super) fn hold(host: &Host, wish: &PortWish, pod: IpAddr) -> Result<(Published, Held)> {
    let (first, last) = wish.range;
    let mut refusal = None;
    let candidates: Vec<u16> =
        if first == 0 { vec![0; TRIES as usize] } else { (first..=last.max(first)).collect() };
    for port in candidates {
        match one(host, wish, port, pod) {
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
        io::ErrorKind::PermissionDenied => Error::Forbidden(format!(
            "Bind for {at} failed: hyperd may not take {word} port {port} of the host without root: publish one from \
             1024 on, or `sysctl -w net.ipv4.ip_unprivileged_port_start={port}`"
        )),
        io::ErrorKind::AddrNotAvailable => {
            Error::Invalid(format!("Bind for {at} failed: {host} is no address of this host"))
        }
        _ => Error::Conflict(format!("Bind for {at} failed: {error}")),
    })
}

/// Takes a port again that was published before hyperd came back.
pub(super) fn hold_again(host: &Host, port: &Published, pod: IpAddr) -> Result<Held> {
    let wish = PortWish {
        protocol: port.protocol,
        port: port.port,
        host: port.host,
        range: (port.host_port, port.host_port),
    };
    hold(host, &wish, pod).map(|(_, held)| held)
}

fn one(on: &Host, wish: &PortWish, port: u16, pod: IpAddr) -> io::Result<(u16, Held)> {
    let mut held = Held::default();
    let hosts = match wish.host {
        Some(host) => vec![host],
        None => {
            vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        }
    };
    let mut port = port;
    for host in hosts {
        let (socket, stands_in) = match on.sockets.open(wish.protocol, SocketAddr::new(host, port))
        {
            // One of UDP tells whether the address is the host's, and chooses a number.
            Err(error) if is_unknown(&error, wish.protocol) => {
                (on.sockets.open(Protocol::Udp, SocketAddr::new(host, 0)), true)
            }
            socket => (socket, false),
        };
        let socket = match socket {
            // A host without IPv6 has nothing that could be taken.
            Err(error) if absent(&error, wish, host) => continue,
            socket => socket?,
        };
        if port == 0 {
            port = SocketAddr::try_from(rustix::net::getsockname(&socket)?)
                .map_err(io::Error::other)?
                .port();
        }
        let to = SocketAddr::new(pod, wish.port);
        match wish.protocol {
            Protocol::Tcp => {
                let listener = socket.try_clone()?;
                let theirs = TcpListener::from_std(socket.into())?;
                let task = AbortOnDropHandle::new(tokio::spawn(serve(theirs, to)));
                held.served.push(Served { listener, _task: task });
            }
            Protocol::Udp => {
                let task = tokio::spawn(datagrams::serve(UdpSocket::from_std(socket.into())?, to));
                held.tasks.push(AbortOnDropHandle::new(task));
            }
            Protocol::Sctp => {
                held.entries.push(on.sctp.enter(SocketAddr::new(host, port))?);
                if !stands_in {
                    let theirs = TcpListener::from_std(socket.into())?;
                    let task = tokio::spawn(messages::serve(theirs, to));
                    held.tasks.push(AbortOnDropHandle::new(task));
                }
            }
        }
    }
    Ok((port, held))
}

/// Whether the host's kernel has no sockets of a protocol.
fn is_unknown(error: &io::Error, protocol: Protocol) -> bool {
    let code = rustix::io::Errno::PROTONOSUPPORT.raw_os_error();
    protocol == Protocol::Sctp && error.raw_os_error() == Some(code)
}

fn absent(error: &io::Error, wish: &PortWish, host: IpAddr) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    let (no_family, no_address) = (rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL);
    host.is_ipv6() && wish.host.is_none() && (code == Some(no_family) || code == Some(no_address))
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
    use super::super::sockets::OwnSockets;
    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn host() -> Host {
        Host::new(Arc::new(OwnSockets))
    }

    fn wish(protocol: Protocol, host: Option<IpAddr>, port: u16) -> PortWish {
        PortWish { protocol, port: 80, host, range: (port, port) }
    }

    /// Compose, which removes a container and starts the next one, was told that the port was taken. On one thread the
    /// task's end comes after whoever wants the port next.
    #[tokio::test]
    async fn a_port_that_is_given_up_is_free_at_once() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let host = host();
            let at = |port| hold(&host, &wish(protocol, Some(HERE), port), HERE);
            let (published, held) = at(0).unwrap();
            tokio::task::yield_now().await;
            let taken = at(published.host_port).unwrap_err();
            assert!(matches!(taken, Error::Conflict(_)), "{taken}");
            held.release().await;
            at(published.host_port).unwrap();
        }
    }

    /// Where the host's kernel has no SCTP sockets, a second container had the first's port: no error, no packets.
    #[tokio::test]
    async fn two_containers_do_not_publish_one_sctp_port() {
        let own = host();
        let at = |host, port| hold(&own, &wish(Protocol::Sctp, host, port), HERE);
        let (everywhere, held) = at(None, 0).unwrap();
        let port = everywhere.host_port;
        for host in [None, Some(HERE)] {
            let taken = at(host, port).unwrap_err();
            assert!(taken.to_string().contains("sctp port"), "{taken}");
        }
        held.release().await;
        let (_, _held) = at(Some(HERE), port).unwrap();
        at(None, port).unwrap_err();
        at(Some(IpAddr::from([127, 0, 0, 2])), port).unwrap();
        let foreign = at(Some(IpAddr::from([192, 0, 2, 1])), port).unwrap_err();
        assert!(foreign.to_string().contains("no address of this host"), "{foreign}");
    }

    /// A hyperd that comes back knows none but those it is told of.
    #[tokio::test]
    async fn an_sctp_port_of_before_is_nobody_elses() {
        let wanted = wish(Protocol::Sctp, None, 0);
        let (published, held) = hold(&host(), &wanted, HERE).unwrap();
        held.release().await;
        let again = host();
        let _held = hold_again(&again, &published, HERE).unwrap();
        hold(&again, &wish(Protocol::Sctp, None, published.host_port), HERE).unwrap_err();
    }

    /// `docker port` said 0.0.0.0:0, and the rule was for port 0.
    #[tokio::test]
    async fn an_sctp_port_that_is_left_to_us_is_one_of_the_hosts_range() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let mut range = range.split_whitespace().map(|text| text.parse::<u16>().unwrap());
        let (first, last) = (range.next().unwrap(), range.next().unwrap());
        let own = host();
        let mut all = std::collections::BTreeMap::new();
        for _ in 0..50 {
            let (published, held) = hold(&own, &wish(Protocol::Sctp, None, 0), HERE).unwrap();
            assert!((first..=last).contains(&published.host_port), "{published:?}");
            let before = all.insert(published.host_port, held);
            assert!(before.is_none(), "{published:?} twice");
        }
    }
}
