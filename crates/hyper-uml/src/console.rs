//! The last bytes of the guest kernel's console.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// What is kept.
const KEPT: usize = 64 << 10;

/// A task that drains the console into a ring, so that the kernel never waits for us. Dropping it
/// ends the task.
#[derive(Debug)]
pub struct Console {
    ring: Arc<Mutex<VecDeque<u8>>>,
    ended: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Console {
    /// Reads until all writers are gone. A socket, not a pipe: the guest's console is read from,
    /// too, though nobody ever says anything.
    pub fn drain(mut socket: UnixStream) -> Self {
        let ring = Arc::new(Mutex::new(VecDeque::new()));
        let (end, ended) = watch::channel(false);
        let kept = Arc::clone(&ring);
        let task = tokio::spawn(async move {
            let mut chunk = vec![0; 4096];
            while let Ok(count @ 1..) = socket.read(&mut chunk).await {
                keep(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), &chunk[..count]);
            }
            // Nobody may be waiting any more.
            let _ = end.send(true);
        });
        Self { ring, ended, task }
    }

    /// What is kept, as text.
    pub fn text(&self) -> String {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let (head, tail) = ring.as_slices();
        String::from_utf8_lossy(&[head, tail].concat()).into_owned()
    }

    /// Waits until all that a process wrote that has ended is in the ring.
    pub async fn settle(&self) {
        let mut ended = self.ended.clone();
        // A second is long for a socket's buffer; an error is as good as the end.
        let _ = timeout(Duration::from_secs(1), ended.wait_for(|ended| *ended)).await;
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn keep(ring: &mut VecDeque<u8>, bytes: &[u8]) {
    ring.extend(bytes);
    let surplus = ring.len().saturating_sub(KEPT);
    ring.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[test]
    fn the_ring_keeps_the_last_64_kib() {
        let mut ring = VecDeque::new();
        keep(&mut ring, &vec![1; KEPT]);
        keep(&mut ring, &[2, 3]);
        assert_eq!(ring.len(), KEPT);
        assert_eq!((ring[0], ring[KEPT - 1]), (1, 3));
    }

    #[tokio::test]
    async fn settle_waits_for_the_last_writer() {
        let (read, mut write) = UnixStream::pair().unwrap();
        let console = Console::drain(read);
        write.write_all("last words \u{1f4a5}".as_bytes()).await.unwrap();
        drop(write);
        console.settle().await;
        assert_eq!(console.text(), "last words \u{1f4a5}");
    }
}
