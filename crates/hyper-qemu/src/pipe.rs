//! QMP's byte stream: lines that are bounded and wanted come in, descriptors go out with bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Longest line of QMP; the list of block devices is the longest answer we ask for.
const LINE: usize = 1 << 20;
/// Events that are used. Others may have forms that this version of the schema does not know.
const EVENTS: [&str; 1] = ["SHUTDOWN"];

/// Splits the monitor's socket.
pub fn split(socket: UnixStream) -> (Lines, Writer, Attach) {
    let (reader, writer) = socket.into_split();
    let attach = Attach::default();
    let lines = Lines { reader, line: Vec::new(), ready: VecDeque::new() };
    (lines, Writer { writer, attach: attach.clone() }, attach)
}

/// Descriptors that go with the next bytes.
#[derive(Debug, Clone, Default)]
pub struct Attach(Arc<Mutex<Option<OwnedFd>>>);

impl Attach {
    /// Sends `fd` with the next command.
    pub fn next(&self, fd: OwnedFd) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fd);
    }
}

/// Whole lines, none longer than a bound, none of an event that nobody uses.
#[derive(Debug)]
pub struct Lines {
    reader: OwnedReadHalf,
    line: Vec<u8>,
    ready: VecDeque<u8>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    event: Option<std::borrow::Cow<'a, str>>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' {
                let wanted = match serde_json::from_slice::<Head<'_>>(&self.line) {
                    Ok(Head { event: Some(event) }) => EVENTS.contains(&&*event),
                    // An answer, or something that the parser shall complain about.
                    _ => true,
                };
                if wanted {
                    self.ready.extend(&self.line);
                }
                self.line.clear();
            } else if self.line.len() > LINE {
                return Err(io::Error::other("a line of QMP is longer than 1 MiB"));
            }
        }
        Ok(())
    }
}

impl AsyncRead for Lines {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            let mut chunk = [0; 4096];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.reader).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.take(read.filled())?;
        }
        let count = buf.remaining().min(this.ready.len());
        let (front, _) = this.ready.as_slices();
        let count = count.min(front.len());
        buf.put_slice(&front[..count]);
        this.ready.drain(..count);
        Poll::Ready(Ok(()))
    }
}

/// Writes, with a descriptor when one is attached.
#[derive(Debug)]
pub struct Writer {
    writer: OwnedWriteHalf,
    attach: Attach,
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let socket: &UnixStream = this.writer.as_ref();
        loop {
            let mut held = this.attach.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(fd) = held.as_ref() else {
                drop(held);
                return Pin::new(&mut this.writer).poll_write(cx, bytes);
            };
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_io(Interest::WRITABLE, || send(socket, bytes, fd)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    *held = None;
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

fn send(socket: &UnixStream, bytes: &[u8], fd: &OwnedFd) -> io::Result<usize> {
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

#[cfg(test)]
mod test {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn unknown_events_are_dropped_and_long_lines_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut lines, _writer, _attach) = split(ours);
        let said =
            b"{\"event\": \"NEW_THING\", \"x\": 1}\n{\"return\": {}}\n{\"event\": \"SHUTDOWN\"}\n";
        theirs.write_all(said).await.unwrap();
        let mut got = vec![0; 100];
        let wanted = "{\"return\": {}}\n{\"event\": \"SHUTDOWN\"}\n";
        lines.read_exact(&mut got[..wanted.len()]).await.unwrap();
        assert_eq!(&got[..wanted.len()], wanted.as_bytes());
        let flood = tokio::spawn(async move {
            let _ = theirs.write_all(&vec![b'x'; 3 << 20]).await;
        });
        let error = lines.read(&mut got).await.unwrap_err();
        assert!(error.to_string().contains("longer than 1 MiB"));
        drop((lines, _writer));
        flood.await.unwrap();
    }
}
