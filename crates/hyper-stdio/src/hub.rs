//! One process's output to its log and its attached clients, and their input to its stdin.
//!
//! ```text
//! new ──pump(stdout), pump(stderr)──► both return ──finish──► finished
//!  │            attach: at any time; before the pumps start nothing is missed;
//!  └─────────────────── after `finish` a client gets end-of-stream at once
//! ```
//! A pump reads a chunk, writes its lines to the log, queues it for each client, reads the next.
//! A client whose queue is full holds its process up; one that is gone is forgotten. After
//! [`Hub::ended`] the process can no longer be held up: a client that takes nothing for
//! [`LINGER`] is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper_task::stdio::LogConfig;
use tokio::io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc, watch};

use crate::{Entry, LogError, LogWriter, Loss, Splitter, Stream, now_ns};

/// Chunks of at most 64 KiB that wait for one client.
pub const CLIENT_QUEUE: usize = 8;
/// How long a client may take nothing once the process has ended.
pub const LINGER: Duration = Duration::from_secs(5);
const CHUNK: usize = 64 << 10;

/// Which streams a client joins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A client's end of the hub.
#[derive(Debug)]
pub struct Attachment {
    /// Output; ends after the last byte.
    pub output: mpsc::Receiver<(Stream, Bytes)>,
    /// Input; `None` when not wanted or when stdin is closed already.
    pub stdin: Option<StdinHandle>,
}

/// Feeds a process's stdin. Dropping it does not end the stdin.
#[derive(Debug, Clone)]
pub struct StdinHandle {
    sender: mpsc::Sender<Option<Bytes>>,
}

impl StdinHandle {
    /// Waits until the process has room. `false`: its stdin is closed.
    pub async fn write(&self, data: Bytes) -> bool {
        data.is_empty() || self.sender.send(Some(data)).await.is_ok()
    }

    /// Ends the stdin after what was written.
    pub async fn close(&self) {
        let _ = self.sender.send(None).await;
    }
}

#[derive(Debug)]
struct Client {
    id: u64,
    wanted: Wanted,
    queue: mpsc::Sender<(Stream, Bytes)>,
}

/// See the module.
#[derive(Debug)]
pub struct Hub {
    /// `None` without a log, and while a write runs on a blocking thread.
    log: Mutex<Option<LogWriter>>,
    /// `None` once finished.
    clients: StdMutex<Option<Vec<Client>>>,
    next_id: AtomicU64,
    stdin: mpsc::Sender<Option<Bytes>>,
    stdin_end: StdMutex<Option<mpsc::Receiver<Option<Bytes>>>>,
    ended: watch::Sender<bool>,
}

impl Hub {
    /// A hub that logs to `log`, opened here.
    ///
    /// # Errors
    /// The log's.
    pub fn new(log: Option<&LogConfig>) -> Result<Self, LogError> {
        let log = log.map(LogWriter::open).transpose()?;
        let (stdin, stdin_end) = mpsc::channel(CLIENT_QUEUE);
        Ok(Self {
            log: Mutex::new(log),
            clients: StdMutex::new(Some(Vec::new())),
            next_id: AtomicU64::new(0),
            stdin,
            stdin_end: StdMutex::new(Some(stdin_end)),
            ended: watch::Sender::new(false),
        })
    }

    /// Joins the streams from now on.
    pub fn attach(&self, wanted: Wanted) -> Attachment {
        let (queue, output) = mpsc::channel(CLIENT_QUEUE);
        if let Some(clients) = self.clients().as_mut() {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            clients.push(Client { id, wanted, queue });
        }
        let stdin = (wanted.stdin && !self.stdin.is_closed()).then(|| self.stdin());
        Attachment { output, stdin }
    }

    /// The process's stdin, for whoever feeds it without listening.
    pub fn stdin(&self) -> StdinHandle {
        StdinHandle { sender: self.stdin.clone() }
    }

    /// Carries one output stream to the log and the clients until it ends; returns its bytes.
    ///
    /// # Errors
    /// The source's. What was read before is delivered.
    pub async fn pump(
        &self,
        stream: Stream,
        mut source: impl AsyncRead + Unpin,
    ) -> io::Result<u64> {
        let mut splitter = Splitter::new(stream);
        let mut buffer = BytesMut::new();
        let mut total = 0;
        let result = loop {
            buffer.reserve(CHUNK);
            match source.read_buf(&mut buffer).await {
                Ok(0) => break Ok(total),
                Ok(read) => {
                    total += read as u64;
                    let chunk = buffer.split().freeze();
                    let mut entries = Vec::new();
                    let mut log = self.log.lock().await;
                    if log.is_some() {
                        splitter.push(&chunk, now_ns(), &mut entries);
                        write(&mut log, entries).await;
                    }
                    drop(log);
                    self.deliver(stream, chunk).await;
                }
                Err(error) => break Err(error),
            }
        };
        let mut entries = Vec::new();
        splitter.finish(now_ns(), &mut entries);
        write(&mut *self.log.lock().await, entries).await;
        result
    }

    /// Carries what the clients send to the process's stdin until one ends it, or the process
    /// takes no more.
    ///
    /// # Errors
    /// The sink's.
    pub async fn feed_stdin(&self, mut sink: impl AsyncWrite + Unpin) -> io::Result<()> {
        let taken = self.stdin_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut input) = taken else { return sink.shutdown().await };
        while let Some(Some(data)) = input.recv().await {
            sink.write_all(&data).await?;
            if input.is_empty() {
                sink.flush().await?;
            }
        }
        drop(input);
        sink.shutdown().await
    }

    /// The process reads no stdin: what clients send is refused from here on.
    pub fn refuse_stdin(&self) {
        self.stdin_end.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The process has ended: slow clients no longer hold its output up for ever.
    pub fn ended(&self) {
        self.ended.send_replace(true);
    }

    /// After the pumps have returned: the clients' streams end after their last byte.
    pub async fn finish(&self) -> Loss {
        self.ended();
        self.refuse_stdin();
        self.clients().take();
        self.log.lock().await.take().map(|log| log.loss().clone()).unwrap_or_default()
    }

    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        let queues: Vec<_> = self
            .clients()
            .iter()
            .flatten()
            .filter(|client| match stream {
                Stream::Stdout => client.wanted.stdout,
                Stream::Stderr => client.wanted.stderr,
            })
            .map(|client| (client.id, client.queue.clone()))
            .collect();
        for (id, queue) in queues {
            let sent = tokio::select! {
                biased;
                sent = queue.send((stream, chunk.clone())) => sent.is_ok(),
                () = self.lingered() => {
                    tracing::warn!(client = id, "attached client takes no output of an ended process; dropped");
                    false
                }
            };
            if !sent && let Some(clients) = self.clients().as_mut() {
                clients.retain(|client| client.id != id);
            }
        }
    }

    async fn lingered(&self) {
        // An error would mean that the sender is gone, and it is in `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        tokio::time::sleep(LINGER).await;
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, Option<Vec<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes off the runtime; the writer comes back even if nothing could be written.
async fn write(slot: &mut Option<LogWriter>, entries: Vec<Entry>) {
    if entries.is_empty() {
        return;
    }
    let Some(mut log) = slot.take() else { return };
    let written = tokio::task::spawn_blocking(move || {
        log.write(&entries);
        log
    });
    match written.await {
        Ok(log) => *slot = Some(log),
        Err(error) => tracing::error!(%error, "log writer failed; the log ends here"),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{LogReader, ReadOptions};

    const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true };

    async fn all(mut attachment: Attachment) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some((_, chunk)) = attachment.output.recv().await {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    }

    #[tokio::test]
    async fn every_client_and_the_log_get_everything() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogConfig {
            driver: "json-file".into(),
            path: dir.path().join("c.log"),
            max_file: 1,
            ..LogConfig::default()
        };
        let hub = Hub::new(Some(&log)).unwrap();
        let (first, second) = (hub.attach(ALL), hub.attach(ALL));
        let text: Vec<u8> = (0..200_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let pump = async {
            assert_eq!(hub.pump(Stream::Stdout, &text[..]).await.unwrap(), text.len() as u64);
            assert_eq!(hub.finish().await, Loss::default());
        };
        let ((), first, second) = tokio::join!(pump, all(first), all(second));
        assert!(first == text && second == text);
        assert_eq!(all(hub.attach(ALL)).await, b"");
        let mut reader = LogReader::open(&log, ReadOptions::default()).await.unwrap();
        let mut logged = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            logged.extend_from_slice(&entry.data);
        }
        assert!(logged == text);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_client_is_dropped_only_after_the_end() {
        let hub = Hub::new(None).unwrap();
        let stuck = hub.attach(ALL);
        let text = vec![b'x'; CHUNK * (CLIENT_QUEUE + 4)];
        let mut pump = Box::pin(hub.pump(Stream::Stderr, &text[..]));
        let waited = tokio::time::timeout(Duration::from_secs(3600), &mut pump).await;
        assert!(waited.is_err(), "a slow client holds the process up");
        hub.ended();
        assert_eq!(pump.await.unwrap(), text.len() as u64);
        drop(stuck);
    }

    #[tokio::test]
    async fn a_gone_client_is_forgotten() {
        let hub = Hub::new(None).unwrap();
        drop(hub.attach(ALL));
        hub.pump(Stream::Stdout, &b"x"[..]).await.unwrap();
        assert!(hub.clients().as_ref().unwrap().is_empty());
    }

    #[tokio::test]
    async fn stdin_of_two_clients_ends_once() {
        let hub = Hub::new(None).unwrap();
        let (first, second) = (hub.attach(ALL).stdin.unwrap(), hub.attach(ALL).stdin.unwrap());
        assert!(first.write("a".into()).await);
        assert!(second.write("b".into()).await);
        drop(first);
        second.close().await;
        let mut sink = Vec::new();
        hub.feed_stdin(&mut sink).await.unwrap();
        assert_eq!(sink, b"ab");
        assert!(!second.write("c".into()).await);
    }
}
