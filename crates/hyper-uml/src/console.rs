//! The guest kernel's console, drained until its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A task that drains the console, so that the kernel never waits for us. Dropping it ends the task.
#[derive(Debug)]
pub struct Console {
    said: Arc<hyper_hypervisor::Console>,
    ended: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Console {
    /// Reads until all writers are gone. A socket, not a pipe: the guest's console is read from,
    /// too, though nobody ever says anything.
    pub fn drain(socket: UnixStream) -> Self {
        let said = Arc::new(hyper_hypervisor::Console::default());
        let (end, ended) = watch::channel(false);
        let kept = Arc::clone(&said);
        let task = tokio::spawn(async move {
            kept.follow(socket).await;
            // Nobody may be waiting any more.
            let _ = end.send(true);
        });
        Self { said, ended, task }
    }

    /// What is kept, as text.
    pub fn text(&self) -> String {
        self.said.text()
    }

    /// Waits until all that a process wrote that has ended is kept.
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

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
