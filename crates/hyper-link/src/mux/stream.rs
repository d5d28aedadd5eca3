//! The two ends of a stream as its user holds them.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{SEND_BUFFER, Shared, state::End};

/// What the peer sends on a stream.
///
/// End of file after the peer half-closed; `ConnectionReset` after it reset its direction;
/// `ConnectionAborted` with the [`crate::LinkError`] inside after the link ended. Bytes that had
/// arrived are delivered first. Dropped before the end, it tells the peer to stop sending.
pub struct StreamReader {
    shared: Arc<Shared>,
    id: u32,
}

/// What this side sends on a stream.
///
/// `shutdown` half-closes, and so does dropping: bytes that were accepted are still sent.
/// [`Self::reset`] throws them away. Once the peer reads no more, writes fail with `BrokenPipe`.
pub struct StreamWriter {
    shared: Arc<Shared>,
    id: u32,
}

impl StreamReader {
    pub(super) fn new(shared: &Arc<Shared>, id: u32) -> Self {
        Self { shared: Arc::clone(shared), id }
    }
}

impl StreamWriter {
    pub(super) fn new(shared: &Arc<Shared>, id: u32) -> Self {
        Self { shared: Arc::clone(shared), id }
    }

    /// Ends this direction as incomplete: the peer's reader fails with `ConnectionReset`.
    pub fn reset(self) {
        self.shared.lock().end(self.id, End::Reset);
    }

    /// Resolves when the peer reads no more, or the link has ended.
    pub async fn stopped(&mut self) {
        std::future::poll_fn(|cx| {
            let mut state = self.shared.lock();
            if state.error.is_some() {
                return Poll::Ready(());
            }
            match state.streams.get_mut(&self.id) {
                Some(stream) if !stream.stopped => {
                    stream.write_waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter").field("id", &self.id).finish_non_exhaustive()
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.shared.lock();
        let state = &mut *state;
        let Some(stream) = state.streams.get_mut(&self.id) else {
            return Poll::Ready(Ok(()));
        };
        let len = stream.inbox.len().min(buf.remaining());
        if len > 0 {
            buf.put_slice(&stream.inbox[..len]);
            stream.inbox.advance(len);
            if state.took(self.id, len) {
                self.shared.due.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        match (stream.ended, &state.error) {
            (Some(End::Eof), _) => Poll::Ready(Ok(())),
            (Some(End::Reset), _) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            (None, Some(error)) => Poll::Ready(Err(error.clone().into())),
            (None, None) => {
                stream.read_waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        let state = &mut *state;
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone().into()));
        }
        let Some(stream) = state.streams.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if stream.stopped || stream.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let len = bytes.len().min(SEND_BUFFER.saturating_sub(stream.out.len()));
        if len == 0 {
            stream.write_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        stream.out.extend_from_slice(&bytes[..len]);
        state.schedule(self.id);
        self.shared.due.notify_one();
        Poll::Ready(Ok(len))
    }

    /// Nothing to do: what was accepted is sent without being asked.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().end(self.id, End::Eof);
        self.shared.due.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.shared.lock().drop_reader(self.id);
        self.shared.due.notify_one();
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.end(self.id, End::Eof);
            if let Some(stream) = state.streams.get_mut(&self.id) {
                stream.writer_gone = true;
                stream.write_waker = None;
            }
            state.forget_if_over(self.id);
        }
        self.shared.due.notify_one();
    }
}
