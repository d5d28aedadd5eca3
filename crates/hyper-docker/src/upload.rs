//! Large request bodies, read to their end even when the work on them has failed.
//!
//! A client that is still sending when the connection closes reports a broken pipe instead of the answer.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

/// Pieces between the connection and the work.
const PIECES: usize = 4;
/// How long what nobody wants any more is read.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `work` on a body. Its result is returned when the body is at its end too, or after a while.
pub(crate) async fn with_body<T, F>(
    body: Body,
    work: impl FnOnce(Box<dyn AsyncRead + Send + Unpin>) -> F,
) -> T
where
    F: Future<Output = T>,
{
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    let reader = StreamReader::new(Box::pin(pieces));
    let (result, ()) = tokio::join!(work(Box::new(reader)), feed(body, sender));
    result
}

async fn feed(body: Body, sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let broken = piece.is_err();
        if sender.send(piece.map_err(io::Error::other)).await.is_err() {
            break;
        }
        if broken {
            return;
        }
    }
    drop(sender);
    // Ends at once if the body is at its end.
    let rest = async { while let Some(Ok(_)) = pieces.next().await {} };
    if tokio::time::timeout(PATIENCE, rest).await.is_err() {
        tracing::debug!("a client goes on sending what nobody reads");
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn rest_is_read_after_the_work_has_failed() {
        let read = Arc::new(AtomicUsize::new(0));
        let counter = read.clone();
        let pieces = futures_util::stream::iter(0..50).map(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok::<_, io::Error>(Bytes::from_static(b"x"))
        });
        let result = with_body(Body::from_stream(pieces), |reader| async {
            drop(reader);
            "failed"
        })
        .await;
        assert_eq!((result, read.load(Ordering::SeqCst)), ("failed", 50));
    }
}
