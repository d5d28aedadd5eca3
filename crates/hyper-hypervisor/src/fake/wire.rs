//! Both ends of a fake guest's link, which stall and end with the guest.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// The supervisor's end.
pub type HostLink = Guard;
/// The guest's end.
pub type GuestLink = Guard;

/// Which end a [`Guard`] is: only the guest's stalls while paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Host,
    Guest,
}

/// Running, paused or ended, and who waits for a change.
#[derive(Debug, Default)]
pub struct Switch(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    paused: bool,
    ended: bool,
    wakers: Vec<Waker>,
}

impl Switch {
    pub fn pause(&self, paused: bool) {
        self.change(|inner| inner.paused = paused);
    }

    pub fn end(&self) {
        self.change(|inner| inner.ended = true);
    }

    fn change(&self, act: impl FnOnce(&mut Inner)) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut inner);
        inner.wakers.drain(..).for_each(Waker::wake);
    }

    /// (paused, ended); the task is woken at the next change.
    fn look(&self, cx: &Context<'_>) -> (bool, bool) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            inner.wakers.push(cx.waker().clone());
        }
        (inner.paused, inner.ended)
    }
}

/// One end of the link.
#[derive(Debug)]
pub struct Guard {
    side: Side,
    stream: DuplexStream,
    switch: Arc<Switch>,
}

impl Guard {
    pub(super) fn new(side: Side, stream: DuplexStream, switch: Arc<Switch>) -> Self {
        Self { side, stream, switch }
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (paused, ended) = self.switch.look(cx);
        match (self.side, paused, ended) {
            (Side::Guest, _, true) => Poll::Ready(Ok(())),
            (Side::Guest, true, false) => Poll::Pending,
            // What the guest said before it ended is still delivered.
            (Side::Host, _, true) => match Pin::new(&mut self.stream).poll_read(cx, buf) {
                Poll::Pending => Poll::Ready(Ok(())),
                ready => ready,
            },
            _ => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let (paused, ended) = self.switch.look(cx);
        if ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if paused && self.side == Side::Guest {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
