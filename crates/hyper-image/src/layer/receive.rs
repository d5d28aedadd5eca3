//! The receiving end of a layer's transfer: one pass from network chunks to a blob and a converted layer.
//!
//! ```text
//!  async transfer ──chunks──► receiver thread ─► ingest/HEX.partial, digest
//!                  (bounded)      └──chunks──► converter thread ─► Conversion
//! ```
//! Two threads, so that inflating one part and hashing the next use two processors. If conversion fails, the
//! transfer goes on without it: only the digest tells a damaged transfer from a bad layer.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::convert::{Conversion, Converted};
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::progress::{LayerState, Progress};
use crate::registry::Chunk;
use crate::store::layout::{self, Layout};

/// Chunks on their way to the converter. A chunk is what the HTTP client read at once, 400 KiB at most.
const CHUNKS: usize = 8;
/// Between two reports of the same layer.
const REPORT: Duration = Duration::from_millis(100);
/// Pieces in which what an earlier attempt left is read again.
const REREAD: usize = 256 << 10;

/// A blob to receive. Blocking: for a blocking thread.
#[derive(Debug)]
pub(crate) struct Reception {
    pub layout: Layout,
    pub digest: Digest,
    pub size: u64,
    /// For messages: the blob's URL.
    pub what: String,
    /// `None` if the converted layer is there already.
    pub conversion: Option<Conversion>,
    pub progress: Progress,
}

/// What an earlier attempt left of a blob.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    /// In bytes.
    pub length: u64,
}

impl Partial {
    /// Opens it, or starts anew. More than the blob can have is thrown away.
    pub(crate) fn open(layout: &Layout, digest: &Digest, size: u64) -> Result<Self, Error> {
        let path = layout.partial(digest);
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|error| layout::failed("open", &path, error))?;
        let length =
            file.metadata().map_err(|error| layout::failed("examine", &path, error))?.len();
        if length <= size {
            return Ok(Self { file, length });
        }
        file.set_len(0).map_err(|error| layout::failed("truncate", &path, error))?;
        Ok(Self { file, length: 0 })
    }
}

impl Reception {
    /// Receives what `chunks` bring after the part that `partial` holds, and publishes blob and layer.
    pub(crate) fn run(self, partial: Partial, chunks: mpsc::Receiver<Chunk>) -> Result<(), Error> {
        let consumed = Arc::new(AtomicU64::new(0));
        let converted = thread::scope(|scope| {
            let (sender, receiver) = sync_channel(CHUNKS);
            let (done, finished) = sync_channel(1);
            let converting = self.conversion.is_some();
            if let Some(conversion) = &self.conversion {
                let stream = ChunkReader {
                    receiver,
                    current: Bytes::new(),
                    ended: false,
                    consumed: Arc::clone(&consumed),
                };
                let layout = &self.layout;
                scope.spawn(move || drop(done.send(conversion.run(layout, stream))));
            }
            let sender = converting.then_some(sender);
            self.receive(partial, chunks, sender)?;
            if converting { self.wait(&finished, &consumed).map(Some) } else { Ok(None) }
        })?;
        if let Some(converted) = converted {
            converted.publish(&self.layout)?;
        }
        self.progress.layer(self.digest, LayerState::Complete);
        Ok(())
    }

    /// Stores and checks the blob. The converter's end of `sender` sees the stream's end only if all of it came.
    fn receive(
        &self,
        partial: Partial,
        mut chunks: mpsc::Receiver<Chunk>,
        mut sender: Option<SyncSender<Piece>>,
    ) -> Result<(), Error> {
        let path = self.layout.partial(&self.digest);
        let mut blob = Hashing::new(partial.file);
        self.catch_up(&mut blob, partial.length, &mut sender, &path)?;
        let mut charge = self.layout.charge().after(blob.passed());
        let mut reported = Instant::now();
        self.report(blob.passed());
        loop {
            match chunks.blocking_recv() {
                Some(Chunk::Data(data)) => {
                    let left = self.size.saturating_sub(blob.passed());
                    charge.reach(blob.passed() + data.len() as u64)?;
                    blob.write_all(&data)
                        .map_err(|error| layout::full("write", &path, left, error))?;
                    forward(&mut sender, data);
                }
                Some(Chunk::End) => break,
                None => return Err(Error::Cancelled),
            }
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                self.report(blob.passed());
            }
        }
        self.report(blob.passed());
        self.progress.layer(self.digest, LayerState::Verifying);
        let (file, actual, bytes) = blob.finish();
        if bytes != self.size || actual != self.digest {
            // Of no use for another attempt.
            self.layout.discard(&path)?;
            let what = self.what.clone();
            return Err(if bytes == self.size {
                Error::DigestMismatch { what, expected: self.digest, actual }
            } else {
                Error::SizeMismatch { what, expected: self.size, actual: bytes }
            });
        }
        if let Some(sender) = sender {
            // A converter that gave up says why by its result.
            let _ = sender.send(Piece::End);
        }
        file.sync_data().map_err(|error| layout::full("sync", &path, self.size, error))?;
        let target = self.layout.blob(&self.digest);
        std::fs::rename(&path, &target).map_err(|error| layout::full("name", &target, 0, error))?;
        layout::sync(&self.layout.blobs())
    }

    /// Hashes and converts what an earlier attempt left.
    fn catch_up(
        &self,
        blob: &mut Hashing<File>,
        length: u64,
        sender: &mut Option<SyncSender<Piece>>,
        path: &Path,
    ) -> Result<(), Error> {
        let failed = |error| layout::failed("read", path, error);
        let mut file = File::open(path).map_err(failed)?.take(length);
        loop {
            let mut piece = vec![0; REREAD];
            let read = file.read(&mut piece).map_err(failed)?;
            if read == 0 {
                break;
            }
            piece.truncate(read);
            blob.catch_up(&piece);
            forward(sender, piece.into());
        }
        blob.get_mut().seek(io::SeekFrom::Start(length)).map(drop).map_err(failed)
    }

    /// Waits for the converter, telling how far it is.
    fn wait(
        &self,
        finished: &Receiver<Result<Converted, Error>>,
        consumed: &AtomicU64,
    ) -> Result<Converted, Error> {
        loop {
            match finished.recv_timeout(REPORT) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {
                    let current = consumed.load(Ordering::Relaxed);
                    self.progress
                        .layer(self.digest, LayerState::Extracting { current, total: self.size });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Cancelled),
            }
        }
    }

    fn report(&self, current: u64) {
        self.progress.layer(self.digest, LayerState::Downloading { current, total: self.size });
    }
}

enum Piece {
    Data(Bytes),
    End,
}

/// Gives a piece to the converter; stops giving when it has failed.
fn forward(sender: &mut Option<SyncSender<Piece>>, data: Bytes) {
    if sender.as_ref().is_some_and(|open| open.send(Piece::Data(data)).is_err()) {
        *sender = None;
    }
}

/// The converter's end: pieces as a stream. A channel closed without `End` is an error, so that a cancelled transfer
/// never looks like a short layer.
struct ChunkReader {
    receiver: Receiver<Piece>,
    current: Bytes,
    ended: bool,
    consumed: Arc<AtomicU64>,
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && !self.ended {
            match self.receiver.recv() {
                Ok(Piece::Data(data)) => self.current = data,
                Ok(Piece::End) => self.ended = true,
                Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the transfer broke off",
                    ));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.consumed.fetch_add(amount as u64, Ordering::Relaxed);
        let _ = self.current.split_to(amount.min(self.current.len()));
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let amount = available.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}
