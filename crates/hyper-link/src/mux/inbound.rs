//! The task that reads the carrier.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{Inbox, Shared};
use crate::{
    error::LinkError,
    frame::{HEADER, MAX_PAYLOAD, parse_frame},
    handshake::Leftover,
};

/// Room for two frames of the greatest length.
const BUFFER: usize = 2 * (HEADER + MAX_PAYLOAD);

/// Reads until the link ends, one way or another.
pub(super) async fn run<Io: AsyncRead + Unpin>(
    shared: Arc<Shared>,
    mut io: Io,
    leftover: Leftover,
    mut inbox: impl Inbox,
) {
    let reading = read_frames(&shared, &mut io, &leftover, &mut inbox);
    let error = tokio::select! {
        Err(error) = reading => error,
        error = shared.ended() => error,
    };
    shared.fail(error);
}

async fn read_frames<Io: AsyncRead + Unpin>(
    shared: &Shared,
    io: &mut Io,
    leftover: &[u8],
    inbox: &mut impl Inbox,
) -> Result<std::convert::Infallible, LinkError> {
    // The tail is only touched, and so only becomes memory, when large frames come.
    let mut buffer = vec![0; BUFFER.max(leftover.len() + HEADER + MAX_PAYLOAD)];
    buffer[..leftover.len()].copy_from_slice(leftover);
    let (mut start, mut end) = (0, leftover.len());
    loop {
        while let Some((frame, used)) = parse_frame(&buffer[start..end])? {
            let (waker, message) = shared.lock().receive(frame)?;
            shared.due.notify_one();
            if let Some(waker) = waker {
                waker.wake();
            }
            if let Some(message) = message {
                inbox.message(&message)?;
            }
            start += used;
        }
        if start == end {
            (start, end) = (0, 0);
        } else if buffer.len() - end < MAX_PAYLOAD {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        end += match io.read(&mut buffer[end..]).await? {
            0 => return Err(LinkError::Closed),
            len => len,
        };
    }
}
