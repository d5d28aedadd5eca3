//! The supervisor of one pod: a guest, the containers in it, and everything on the host that
//! belongs to them.
//!
//! ```text
//!  Pod (handle) ──Command──┐                        ┌── watch: agent's events, guest's end
//!  Pod (handle) ──Command──┼─► queue ─► Actor ◄─────┤
//!  pod.sock ───────────────┘             │          └── tasks: prepared, booted, created, …
//!                                        ├─► tasks: everything that takes time
//!                                        └─► PodEvent
//!
//!  pod:  empty ─create─► booting ─agent ready─► up ─last container deleted─► stopping ─► empty
//!                           └ error ─► empty     └ VM exit, link closed or silent ─► dead
//! ```
//! Invariants
//! - Only the actor changes state, and it never waits: what takes time is a task that reports back.
//! - A container's exit is announced once, after its output is delivered and `exit.json` is
//!   written, also when the guest died under it.
//! - A create that fails leaves neither disk nor guest behind.
//! - The guest's word is never used as a host path, and its clock never as ours.
#![forbid(unsafe_code)]

mod actor;
mod boot;
mod choose;
mod convert;
mod cpu;
mod create;
mod disks;
mod error;
mod exit;
mod exits;
mod files;
mod guest;
mod io;
mod localhost;
mod mounts;
mod names;
mod network;
mod ops;
mod pod;
mod record;
mod resize;
mod rootfs;
mod serve;
mod settings;
mod share;
mod silence;
mod sockets;
mod spec;
mod stdio;
mod template;
mod volume;
mod wishes;

pub use convert::ConvertError;
pub use error::{Kind, PodError, chain};
pub use exit::{read_exit, reserve_exit, write_exit};
pub use files::fault_kind;
pub use names::resolve as resolve_name;
pub use network::counters as network_counters;
pub use pod::{CreateRequest, ExecRequest, Pod, PodEvent, ProcessReport};
pub use record::Status;
pub use rootfs::{RootfsError, RootfsMount};
pub use settings::{Flavour, Settings, Templates};
pub use stdio::Uris;
pub use template::{Shape, make_template};
