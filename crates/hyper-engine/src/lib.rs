//! Containers, their state, and the supervisors that run them.
//!
//! ```text
//!   dialects (Docker's HTTP, …) ──▶ Engine ──▶ one actor per container ──▶ supervisor (one per pod)
//!                                     │              │                        ttrpc, pod.sock
//!                                     ▼              ▼
//!                               image store     state.db (SQLite)
//! ```
//! Invariants
//! - The engine knows no HTTP, and no hypervisor by name: runtimes are words that it is given.
//! - It keeps no pod alive: starting and ending an [`Engine`] never touches a running pod. What it
//!   needs to find one again is in the bundle; the supervisor keeps logs and exit codes.
//! - State is stored before it is published, published before a request is answered.
//! - A request that fails leaves the state as it was; one that is dropped is carried out.
//!
//! Entry points: [`Engine::open`], then its methods.
#![forbid(unsafe_code)]

mod attach;
mod commit;
mod container;
mod core;
mod engine;
mod error;
mod event;
mod exec;
mod files;
pub mod id;
mod image;
mod layout;
mod lock;
mod logs;
mod oci;
mod phases;
mod restore;
pub mod signal;
mod stats;
mod store;
mod supervisor;
mod volume;

pub use attach::{Attached, Attaching};
pub use commit::CommitOptions;
pub use container::View;
pub use container::actor::Change as ContainerChange;
pub use container::create::Created;
pub use container::health::{Health, HealthStatus, Probe};
pub use container::spec;
pub use container::state::{State, Status};
pub use core::Config;
pub use engine::{Counts, Engine, WaitCondition, WaitOutcome};
pub use error::{Error, Kind, ProgramFault, Result};
pub use event::{Event, Kind as EventKind};
pub use exec::{Exec, ExecState};
pub use files::{Archive, Change, ChangeKind, CopyOptions, PathStat, ProcessInfo};
pub use layout::Layout;
pub use logs::LogQuery;
pub use oci::{ExecSpec, MASKED, READ_ONLY, hostname};
pub use phases::Record as PhaseRecord;
pub use stats::Stats;
pub use supervisor::PodStreams;
pub use volume::{Driver as VolumeDriver, Volume, VolumeRequest, VolumeView};
