//! The link device, and descriptors as asynchronous streams in general.
//!
//! A tty carries bytes once it is raw. A virtio console port exists at once, but until the host
//! has connected, writes wait and reads find the end of the file.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open as open_file},
    io::Errno,
    termios::{OptionalActions, isatty, tcgetattr, tcsetattr},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// How often a device that is not there yet is looked for.
const RETRY: Duration = Duration::from_millis(2);

/// Opens the link device, waiting for it to appear.
///
/// # Errors
/// The device is there and cannot be used.
pub(crate) async fn open(path: &str) -> io::Result<Descriptor> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = loop {
        match open_file(path, flags, Mode::empty()) {
            Ok(device) => break device,
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::BUSY | Errno::AGAIN) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(io::Error::other(format!("{path}: {error}"))),
        }
    };
    if isatty(&device) {
        let mut settings = tcgetattr(&device)?;
        settings.make_raw();
        tcsetattr(&device, OptionalActions::Now, &settings)?;
    }
    Descriptor::new(device)
}

/// A pollable descriptor: tty, port, pipe or socket.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Makes `fd` non-blocking and watches it.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Self::watching(fd, Interest::READABLE | Interest::WRITABLE)
    }

    /// The same for the ways `fd` can be used: a pipe's end has only one.
    pub(crate) fn watching(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        crate::sys::watch(fd, interest).map(Self)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        isatty(self.0.get_ref())
    }

    /// Takes what is there without waiting: 0 at the end of the file.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::io::read(self.0.get_ref(), buffer)
    }

    /// Resolves with what `take` makes of the descriptor once it does not say `EAGAIN`.
    pub(crate) async fn when_readable<T>(
        &self,
        mut take: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(Interest::READABLE, |fd| take(fd.as_fd())).await
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let outcome =
                guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), buf.initialize_unfilled())?));
            match outcome {
                Ok(Ok(len)) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Descriptor {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(outcome) => return Poll::Ready(outcome),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
