//! The QMP session: every call has a deadline, one call runs at a time.

use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::StreamExt;
use hyper_hypervisor::VmError;
use qapi::ExecuteError;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::{Event, QmpCommand, ShutdownCause};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::NAME;
use crate::commands::{AddFd, GetFd, RemoveFd};
use crate::pipe::{self, Attach, Writer};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for the first word: QEMU has its libraries to load, on a host that may thrash.
const START: Duration = Duration::from_secs(30);

/// The monitor of one QEMU.
pub struct Control {
    service: Mutex<QapiService<QmpStreamTokio<Writer>>>,
    attach: Attach,
    shutdown: watch::Receiver<Option<ShutdownCause>>,
    events: JoinHandle<()>,
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// QEMU's own words.
    #[error("{0}")]
    Refused(String),
    /// The monitor is gone, with QEMU most likely.
    #[error("the monitor is closed: {0}")]
    Closed(std::io::Error),
}

impl Control {
    /// Speaks first words with the monitor behind `socket`.
    pub async fn open(socket: UnixStream) -> Result<Self, CallError> {
        let (lines, writer, attach) = pipe::split(socket);
        let stream = within(START, async {
            let greeted = QmpStreamTokio::open_split(lines, writer).await?;
            greeted.negotiate().await
        });
        let stream = stream.await?.map_err(CallError::Closed)?;
        let (service, mut events) = stream.into_parts();
        let (told, shutdown) = watch::channel(None);
        let events = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                if let Event::SHUTDOWN { data, .. } = event {
                    told.send_replace(Some(data.reason));
                }
            }
        });
        Ok(Self { service: Mutex::new(service), attach, shutdown, events })
    }

    /// One command.
    pub async fn call<C: QmpCommand>(&self, command: C) -> Result<C::Ok, CallError> {
        within(DEADLINE, async {
            let service = self.service.lock().await;
            service.execute(command).await
        })
        .await?
        .map_err(CallError::from)
    }

    /// Names an open file, for one migration.
    pub async fn name_fd(&self, fd: OwnedFd, name: &'static str) -> Result<(), CallError> {
        let answer = within(DEADLINE, async {
            let service = self.service.lock().await;
            self.attach.next(fd);
            service.execute(GetFd { fdname: name }).await
        });
        answer.await?.map(drop).map_err(CallError::from)
    }

    /// Puts an open file into QEMU's descriptor set `set`.
    pub async fn add_fd(&self, fd: OwnedFd, set: u32) -> Result<(), CallError> {
        let answer = within(DEADLINE, async {
            // The lock makes the descriptor and its command one thing.
            let service = self.service.lock().await;
            self.attach.next(fd);
            service.execute(AddFd { fdset_id: set }).await
        });
        answer.await?.map(drop).map_err(CallError::from)
    }

    /// Closes sets, as far as they are there.
    pub async fn remove_fds(&self, sets: std::ops::Range<u32>) {
        for set in sets {
            let gone = self.call(RemoveFd { fdset_id: set }).await;
            if let Err(error) = gone {
                tracing::debug!(set, %error, "remove a descriptor set");
            }
        }
    }

    /// Why QEMU stopped the machine, when it has said so.
    pub fn shutdown(&self) -> Option<ShutdownCause> {
        *self.shutdown.borrow()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.events.abort();
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("shutdown", &self.shutdown()).finish_non_exhaustive()
    }
}

impl CallError {
    /// As an error of the port.
    pub fn while_doing(self, what: &'static str) -> VmError {
        match self {
            Self::Silent(after) => {
                VmError::Silent { hypervisor: NAME, what, seconds: after.as_secs() }
            }
            Self::Closed(source) => VmError::Io { what, source },
            Self::Refused(words) => VmError::Io { what, source: std::io::Error::other(words) },
        }
    }
}

impl From<ExecuteError> for CallError {
    fn from(error: ExecuteError) -> Self {
        match error {
            ExecuteError::Qapi(error) => Self::Refused(format!("{:.2000}", error.desc)),
            ExecuteError::Io(error) => Self::Closed(error),
        }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = T>) -> Result<T, CallError> {
    timeout(limit, call).await.map_err(|_| CallError::Silent(limit))
}
