//! What the agent and the children it forks say to each other, over a socket pair that keeps
//! message boundaries.
//!
//! ```text
//!  agent                              process to be
//!    │── fork ────────────────────────────►│ sets itself up
//!    │◄────────────────── Ready (terminal) │ waits
//!    │── go ──────────────────────────────►│ executes: socket closes
//!    │◄── Failed, at any point ────────────│
//!
//!    │── fork ────────────────────────────►│ other work that may block
//!    │◄────────────────── Done or Failed ──│ exits
//! ```

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use hyper_link::message::{Failure, FailureKind};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::{carrier::Descriptor, failure::failure};

/// Longest message; a failure's text is cut to fit.
const MAX_WORD: usize = 4096;
const READY: u8 = b'r';
const DONE: u8 = b'd';
const FAILED: u8 = b'f';
const GO: u8 = b'g';

/// What a child says.
#[derive(Debug)]
pub(crate) enum Word {
    /// The process is set up and waits to be told to go. Its terminal, if it has one.
    Ready(Option<OwnedFd>),
    /// All is done; there is no process to come.
    Done,
    Failed(Failure),
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Ear(Descriptor);

/// A child's end.
#[derive(Debug)]
pub(crate) struct Mouth(OwnedFd);

/// Both ends.
///
/// # Errors
/// Out of descriptors or memory.
pub(crate) fn pair() -> io::Result<(Ear, Mouth)> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    Ok((Ear(Descriptor::new(ours)?), Mouth(theirs)))
}

impl Ear {
    /// The next word; `None` when every child that could speak has ended or become a program.
    pub(crate) async fn hear(&self) -> io::Result<Option<Word>> {
        self.0.when_readable(receive).await
    }

    /// Lets the process become its program.
    pub(crate) fn go(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &[GO])?;
        Ok(())
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Word>> {
    let mut buffer = [0; MAX_WORD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?;
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let nonsense = || io::Error::other("nonsense from a child of the agent");
    Ok(Some(match buffer.get(..message.bytes).ok_or_else(nonsense)? {
        [] => return Ok(None),
        [READY] => Word::Ready(rights),
        [DONE] => Word::Done,
        [FAILED, text @ ..] => {
            Word::Failed(serde_json::from_slice(text).unwrap_or_else(|_cut| {
                failure(FailureKind::Internal, String::from_utf8_lossy(text))
            }))
        }
        _ => return Err(nonsense()),
    }))
}

impl Mouth {
    /// Says a word. There is nobody to tell when it cannot be said: the agent sees the silence.
    pub(crate) fn say(&self, word: &Word) {
        let mut text = Vec::new();
        let mut rights = None;
        match word {
            Word::Ready(terminal) => {
                text.push(READY);
                rights = terminal.as_ref().map(AsFd::as_fd);
            }
            Word::Done => text.push(DONE),
            Word::Failed(failure) => {
                text.push(FAILED);
                text.extend(serde_json::to_vec(failure).unwrap_or_default());
                if text.len() > MAX_WORD {
                    text.truncate(1);
                    text.extend(failure.message.bytes().take(MAX_WORD - 1));
                }
            }
        }
        let rights = rights.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !rights.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(rights));
        }
        let _unheard = sendmsg(&self.0, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL);
    }

    /// Waits to be told to go; false when the agent is gone or has given up.
    pub(crate) fn wait(&self) -> bool {
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return outcome == Ok(1) && byte == [GO],
            }
        }
    }

    /// The copy that [`crate::sys::adopt`] kept.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Mouth {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
