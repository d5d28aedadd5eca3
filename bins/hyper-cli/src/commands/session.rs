//! What attach, run and exec have in common: the terminal's size and the user's signals.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::client::{Body, Client};
use crate::terminal;

/// Ends its task when dropped.
#[derive(Debug)]
pub struct Background(JoinHandle<()>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the terminal of `target` (`/containers/ID` or `/exec/ID`) as large as the user's.
pub fn follow_size(client: &Client, target: String) -> Background {
    let client = Arc::new(client.clone());
    Background(tokio::spawn(async move {
        let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
        loop {
            if let Some((rows, columns)) = terminal::size() {
                // The process may not have started or may be gone: the next change tells it again.
                let path = format!("{target}/resize?h={rows}&w={columns}");
                let _ = client.post(&path, Body::None).await;
            }
            if changes.recv().await.is_none() {
                return;
            }
        }
    }))
}

/// Passes the user's signals on to a container.
pub fn pass_signals(client: &Client, container: String) -> Background {
    let client = client.clone();
    Background(tokio::spawn(async move {
        let kinds = [
            (SignalKind::interrupt(), "INT"),
            (SignalKind::terminate(), "TERM"),
            (SignalKind::hangup(), "HUP"),
            (SignalKind::quit(), "QUIT"),
            (SignalKind::user_defined1(), "USR1"),
            (SignalKind::user_defined2(), "USR2"),
        ];
        let (sender, mut received) = tokio::sync::mpsc::channel(8);
        let mut tasks = tokio::task::JoinSet::new();
        for (kind, name) in kinds {
            let Ok(mut stream) = signal(kind) else { continue };
            let sender = sender.clone();
            tasks.spawn(async move {
                while stream.recv().await.is_some() {
                    if sender.send(name).await.is_err() {
                        return;
                    }
                }
            });
        }
        while let Some(name) = received.recv().await {
            let path = format!("/containers/{container}/kill?signal={name}");
            if let Err(error) = client.post(&path, Body::None).await {
                eprintln!("hyper: pass signal {name} on: {error}");
            }
        }
    }))
}
