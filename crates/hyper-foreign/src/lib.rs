//! The supervisor of a container that another runtime runs: `runc`, `crun`, `runsc`, Kata, …
//!
//! ```text
//!  hyperd ──Task API, hyper.pod.v1──► Service ──Task API──► containerd-shim-… ──► the runtime
//!                                       │  ▲ FIFOs
//!                                       │  └── streams of its processes: log, attached clients
//!                                       └── root (EROFS + overlay), resolver, exit record
//! ```
//! To hyperd it is a supervisor like any other, so everything that hyperd does with pods it does
//! with these: logs and exits outlive it, clients attach, files are reached. It takes a process of
//! its own because a shim's FIFOs need somebody to read them while there is no hyperd; containerd's
//! `binary://` loggers take output only, so attaching would still need that somebody.
//!
//! Invariants: knows no hypervisor; whatever it acquired is released by `Delete`, by its failure to
//! create, or, after a SIGKILL, by [`clean`].
#![forbid(unsafe_code)]

mod container;
mod error;
mod files;
mod host;
mod names;
mod options;
mod place;
mod probe;
mod root;
mod serve;
mod spec;
mod stdio;
mod task;
mod volumes;

pub use container::{Container, Settings};
pub use error::ForeignError;
pub use options::options;
pub use place::clean;
pub use probe::{Report, probe};
pub use task::Service;
