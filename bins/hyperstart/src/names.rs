//! The pod's resolver: takes questions on 127.0.0.11 and passes them on to the supervisor, which
//! knows the names of the pod's networks and asks others for the rest.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use hyper_link::{
    StreamReader, StreamWriter,
    names::{OVER_TCP, read, write},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Mutex, oneshot},
};

/// Docker's place for it, and DNS's port.
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// Questions under way; the oldest is forgotten for one more.
const PENDING: usize = 256;
/// Connections at once.
const CONNECTIONS: usize = 16;
/// How long a question, or a silent connection, is kept.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest question over UDP.
const DATAGRAM: usize = 4096;

/// Who asked.
enum Asker {
    Datagram(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

struct Resolver {
    socket: UdpSocket,
    pending: RefCell<(u32, BTreeMap<u32, Asker>)>,
    questions: Mutex<StreamWriter>,
    connections: std::cell::Cell<usize>,
}

/// Takes the address.
///
/// # Errors
/// Somebody has it.
pub(crate) async fn listen() -> io::Result<(UdpSocket, TcpListener)> {
    Ok((UdpSocket::bind(ADDRESS).await?, TcpListener::bind(ADDRESS).await?))
}

/// Serves until the stream ends.
pub(crate) async fn serve(
    (socket, listener): (UdpSocket, TcpListener),
    mut answers: StreamReader,
    questions: StreamWriter,
) {
    let resolver = Rc::new(Resolver {
        socket,
        pending: RefCell::default(),
        questions: Mutex::new(questions),
        connections: std::cell::Cell::default(),
    });
    tokio::select! {
        () = resolver.datagrams() => {}
        () = resolver.connections(&listener) => {}
        () = resolver.answers(&mut answers) => {}
    }
}

impl Resolver {
    async fn datagrams(&self) {
        let mut question = vec![0; DATAGRAM];
        loop {
            // An error is about an earlier answer to somebody who has gone.
            let Ok((length, from)) = self.socket.recv_from(&mut question).await else { continue };
            if self.ask(Asker::Datagram(from), &question[..length]).await.is_err() {
                return;
            }
        }
    }

    async fn connections(self: &Rc<Self>, listener: &TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if self.connections.get() >= CONNECTIONS {
                continue;
            }
            self.connections.set(self.connections.get() + 1);
            let resolver = Rc::clone(self);
            tokio::task::spawn_local(async move {
                // It ends by its client's will, or by silence.
                let _ended = resolver.connection(stream).await;
                resolver.connections.set(resolver.connections.get() - 1);
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await??;
            let mut question = vec![0; usize::from(length)];
            tokio::time::timeout(PATIENCE, stream.read_exact(&mut question)).await??;
            let (sender, answer) = oneshot::channel();
            self.ask(Asker::Connection(sender), &question).await?;
            let answer = tokio::time::timeout(PATIENCE, answer).await?.map_err(io::Error::other)?;
            stream.write_u16(u16::try_from(answer.len()).map_err(io::Error::other)?).await?;
            stream.write_all(&answer).await?;
        }
    }

    async fn ask(&self, asker: Asker, question: &[u8]) -> io::Result<()> {
        let tcp = if matches!(asker, Asker::Connection(_)) { OVER_TCP } else { 0 };
        let number = {
            let (last, pending) = &mut *self.pending.borrow_mut();
            *last = last.wrapping_add(1) & !OVER_TCP;
            while pending.len() >= PENDING {
                pending.pop_first();
            }
            pending.insert(*last, asker);
            *last
        };
        write(&mut *self.questions.lock().await, number | tcp, question).await
    }

    async fn answers(&self, answers: &mut StreamReader) {
        while let Ok(Some((number, answer))) = read(answers).await {
            let asker = self.pending.borrow_mut().1.remove(&(number & !OVER_TCP));
            match asker {
                // Whoever is gone does not wait for it.
                Some(Asker::Datagram(to)) => drop(self.socket.send_to(&answer, to).await),
                Some(Asker::Connection(sender)) => drop(sender.send(answer)),
                None => {}
            }
        }
    }
}
