//! The task that writes the carrier.

use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::Shared;
use crate::error::LinkError;

/// Writes until the link ends, one way or another.
pub(super) async fn run<Io: AsyncWrite + Unpin>(shared: Arc<Shared>, mut io: Io) {
    let writing = write_batches(&shared, &mut io);
    let error = tokio::select! {
        Err(error) = writing => error,
        error = shared.ended() => error,
    };
    shared.fail(error);
}

async fn write_batches<Io: AsyncWrite + Unpin>(
    shared: &Shared,
    io: &mut Io,
) -> Result<std::convert::Infallible, LinkError> {
    let mut batch = Vec::new();
    let mut wake = Vec::new();
    loop {
        batch.clear();
        let idle = {
            let mut state = shared.lock();
            state.fill(&mut batch, &mut wake);
            state.is_idle()
        };
        wake.drain(..).for_each(std::task::Waker::wake);
        if batch.is_empty() {
            if idle {
                shared.settled.notify_waiters();
            }
            shared.due.notified().await;
        } else {
            io.write_all(&batch).await?;
            io.flush().await?;
        }
    }
}
