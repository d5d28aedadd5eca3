//! Connections of SCTP that reach a published port's own socket are passed on to the pod, message by message.
//!
//! What is kept: the bounds of messages up to [`LARGEST`] and their order. Not the streams of a connection and the
//! protocol ids of messages, which only ancillary data would tell, nor further addresses of either side.
//!
//! A socket of SCTP for one connection is one of TCP in all but what is sent through it, which is what
//! [`TcpStream`] stands for here.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use hyper_network::rules::Protocol;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, Shutdown, recvmsg, send, shutdown,
};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::sockets;

/// Longest message that arrives as one; of a longer one each part of this length is. Well below what a socket sends at
/// once by default.
const LARGEST: usize = 64 << 10;
/// How long a pod may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long one side may take to hear of the other's end; the kernel goes on by itself with what is sent already.
const END: Duration = Duration::from_secs(10);
/// After an error that nothing is known to be done about.
const REST: Duration = Duration::from_millis(100);

/// Passes connections on until it is aborted.
pub(super) async fn serve(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                while connections.try_join_next().is_some() {}
                // Either side may go at any time.
                connections.spawn(async move { drop(pass(client, to).await) });
            }
            // Out of descriptors, most likely.
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

async fn pass(client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let pod = tokio::time::timeout(CONNECT, connect(to)).await??;
    // A connection of SCTP ends as a whole: who ends it has heard all that it wants to.
    let mut there = pin!(pump(&client, &pod));
    let mut back = pin!(pump(&pod, &client));
    let _ = tokio::select! {
        () = &mut there => tokio::time::timeout(END, back).await,
        () = &mut back => tokio::time::timeout(END, there).await,
    };
    Ok(())
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = sockets::new(Protocol::Sctp, to.is_ipv4())?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from_std(socket.into())?;
    socket.writable().await?;
    match socket.take_error()? {
        None => Ok(socket),
        Some(error) => Err(error),
    }
}

/// Until the one has ended, which the other is told then, or the other takes no more.
async fn pump(from: &TcpStream, to: &TcpStream) {
    let mut message = vec![0; LARGEST];
    loop {
        let length = receive(from, &mut message).await.unwrap_or(0);
        if length == 0 {
            let _ = shutdown(to, Shutdown::Write);
            return;
        }
        let give = || Ok(send(to, &message[..length], SendFlags::NOSIGNAL)?);
        if to.async_io(Interest::WRITABLE, give).await.is_err() {
            return;
        }
    }
}

/// A message, or as much of it as there is room for; 0: the other side has ended.
async fn receive(from: &TcpStream, message: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        let take = || {
            let mut room = [IoSliceMut::new(&mut message[length..])];
            let mut nothing = RecvAncillaryBuffer::default();
            let taken = recvmsg(from, &mut room, &mut nothing, RecvFlags::empty())?;
            Ok((taken.bytes, taken.flags.contains(ReturnFlags::EOR)))
        };
        let (bytes, whole) = from.async_io(Interest::READABLE, take).await?;
        length += bytes;
        if bytes == 0 || whole || length == message.len() {
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{bind, listen};

    use super::*;

    fn listener() -> Option<(TcpListener, SocketAddr)> {
        let socket = match sockets::new(Protocol::Sctp, true) {
            Err(error) if error.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error()) => {
                eprintln!("skipped: the host's kernel has no SCTP sockets");
                return None;
            }
            socket => socket.unwrap(),
        };
        bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&socket, 8).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let at = listener.local_addr().unwrap();
        Some((listener, at))
    }

    async fn say(socket: &TcpStream, text: &[u8]) {
        let give = || Ok(send(socket, text, SendFlags::NOSIGNAL)?);
        socket.async_io(Interest::WRITABLE, give).await.unwrap();
    }

    async fn hear(socket: &TcpStream) -> Vec<u8> {
        let mut message = vec![0; LARGEST];
        let wait = tokio::time::timeout(Duration::from_secs(5), receive(socket, &mut message));
        let length = wait.await.unwrap().unwrap();
        message.truncate(length);
        message
    }

    #[tokio::test]
    async fn messages_stay_messages_and_an_end_is_told_after_them() {
        let (Some((host, at)), Some((pod, to))) = (listener(), listener()) else { return };
        let serving = tokio::spawn(serve(host, to));
        for ended_by_client in [true, false] {
            let client = connect(at).await.unwrap();
            let (server, _) = pod.accept().await.unwrap();
            let large: Vec<u8> = (0..LARGEST).map(|at| at as u8).collect();
            for text in [&b"one"[..], b"two", &large] {
                say(&client, text).await;
            }
            // One and two are not "onetwo".
            assert_eq!(hear(&server).await, b"one");
            assert_eq!(hear(&server).await, b"two");
            assert_eq!(hear(&server).await, large);
            let (last, other) = if ended_by_client { (client, server) } else { (server, client) };
            say(&last, b"the last").await;
            drop(last);
            assert_eq!(hear(&other).await, b"the last");
            assert_eq!(hear(&other).await, b"");
        }
        serving.abort();
    }

    #[tokio::test]
    async fn a_pod_where_nobody_listens_ends_the_connection() {
        let (Some((host, at)), Some((pod, to))) = (listener(), listener()) else { return };
        drop(pod);
        let serving = tokio::spawn(serve(host, to));
        let client = connect(at).await.unwrap();
        assert_eq!(hear(&client).await, b"");
        serving.abort();
    }
}
