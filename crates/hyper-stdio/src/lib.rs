//! A container's output: durable logs and attached clients.
//!
//! ```text
//!  process ──stdout──► Hub::pump ─┬─► Splitter ─► LogWriter ─► ID-json.log, ID-json.log.1 …
//!          ──stderr──► Hub::pump ─┤                                  │
//!                                 ├─► Attachment ─► attach::serve    └─► LogReader (hyperd)
//!                                 └─► Attachment …       │
//!          ◄──stdin─── Hub::feed_stdin ◄─────────────────┘ frames of hyper.pod.v1
//! ```
//! Invariants
//! - Nothing is lost: a chunk is in the log and queued for every attached client before the next
//!   one is read, so a slow reader slows its container and nothing else.
//! - Memory is bounded: 64 KiB for each stream, [`CLIENT_QUEUE`] chunks for each client.
//! - Log lines are whole, in order, and in the kernel before [`Hub::pump`] returns.
//! - A log that cannot be written never stops the container; what is lost is counted.
#![forbid(unsafe_code)]

pub mod attach;
pub mod clients;
mod entry;
pub mod fifo;
mod hub;
mod journal;
mod reader;
pub mod socket;
mod splitter;
mod stamp;
pub mod transfer;
mod writer;

pub use entry::{Entry, Stream};
pub use hub::{Attachment, CLIENT_QUEUE, Hub, Wanted};
pub use reader::{LogReader, ReadOptions};
pub use splitter::{MAX_ENTRY, Splitter};
pub use stamp::{now_ns, parse_rfc3339, rfc3339_fixed, rfc3339_nano};
pub use writer::{LogWriter, Loss};

use std::path::PathBuf;

/// The drivers that are written here: all as lines of JSON in files.
fn is_ours(driver: &str) -> bool {
    matches!(driver, "json-file" | "local" | "journald")
}

/// Why a log cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Only these are written by the supervisor.
    #[error("log driver `{0}` is not json-file, local or journald")]
    UnknownDriver(String),
    #[error("{action} log `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}
