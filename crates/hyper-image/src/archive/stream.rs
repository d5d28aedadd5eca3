//! An async reader as a blocking one, with the end told apart from being given up.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// A piece of the stream, or its end. A channel closed without an end is an error for the reader.
type Piece = Option<Bytes>;

/// Sends a stream piece by piece. A receiver that went away is no error here: it says why itself.
pub(super) async fn pump(
    mut archive: impl AsyncRead + Unpin,
    sender: mpsc::Sender<Piece>,
) -> io::Result<()> {
    loop {
        let mut piece = bytes::BytesMut::with_capacity(PIECE);
        let read = archive.read_buf(&mut piece).await?;
        let sent = sender.send((read > 0).then(|| piece.freeze())).await;
        if read == 0 || sent.is_err() {
            return Ok(());
        }
    }
}

/// The blocking end.
#[derive(Debug)]
pub(super) struct ChannelReader {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl ChannelReader {
    pub(super) fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self { receiver, current: Bytes::new(), ended: false }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.current = piece,
                Some(None) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the stream was given up",
                    ));
                }
            }
        }
        let amount = self.current.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&self.current.split_to(amount));
        Ok(amount)
    }
}
