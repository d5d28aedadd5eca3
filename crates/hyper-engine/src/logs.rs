//! A container's log: of the past, and as it is written.

use hyper_stdio::{LogReader, ReadOptions};
use tokio::sync::watch;

use crate::container::spec::Log;
use crate::container::start::log_config;
use crate::container::state::Status;
use crate::core::{Core, Handle};
use crate::{Error, Result};

/// What of a log is wanted.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Nanoseconds since the Unix epoch.
    pub since: Option<i64>,
    pub until: Option<i64>,
    /// Lines from the end.
    pub tail: Option<u64>,
    pub stdout: bool,
    pub stderr: bool,
    /// Until the container has ended.
    pub follow: bool,
}

pub(crate) async fn read(core: &Core, handle: &Handle, query: LogQuery) -> Result<LogReader> {
    let spec = handle.view.borrow().spec.clone();
    let log = log_config(core, &spec).ok_or_else(|| {
        Error::Unsupported(format!(
            "configured logging driver does not support reading: `{}` of container {}",
            Log::NONE,
            spec.id
        ))
    })?;
    let follow = query.follow.then(|| ended(core, handle.view.clone()));
    let options = ReadOptions {
        since: query.since,
        until: query.until,
        tail: query.tail,
        stdout: query.stdout,
        stderr: query.stderr,
        follow,
    };
    LogReader::open(&log, options).await.map_err(|error| Error::Supervisor {
        id: spec.id.clone(),
        what: "read the log",
        why: error.to_string(),
    })
}

/// True once the container is neither up nor about to be. It ends with the reader.
fn ended(core: &Core, mut view: watch::Receiver<crate::View>) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(!goes_on(&view.borrow()));
    core.tasks.spawn(async move {
        let over = async {
            let _ = view.wait_for(|view| !goes_on(view)).await;
        };
        tokio::select! {
            () = over => drop(sender.send(true)),
            () = sender.closed() => {}
        }
    });
    receiver
}

/// A restart policy's container goes on writing.
fn goes_on(view: &crate::View) -> bool {
    let status = view.state.status;
    let again =
        status == Status::Restarting || (status == Status::Starting && view.state.restarts > 0);
    !view.removed && (status.is_up() || again)
}
