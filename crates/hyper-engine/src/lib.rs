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
mod hold;
pub mod id;
mod image;
mod layout;
mod lock;
mod logs;
mod network;
mod oci;
mod phases;
mod pod;
mod restore;
mod runtime;
pub mod signal;
mod stats;
mod store;
mod supervisor;
mod turns;
mod volume;

pub use attach::{Attached, Attaching};
pub use commit::{CommitOptions, Committed};
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
pub use hold::ImageHold;
pub use layout::Layout;
pub use logs::LogQuery;
pub use network::sockets::{HostSockets, OwnSockets};
pub use network::spec as networks;

/// A MAC address as it is written: `02:42:ac:11:00:02`.
///
/// # Errors
/// It is none, or a group's.
pub fn mac(text: &str) -> std::io::Result<String> {
    hyper_network::link::parse_mac(text).map(hyper_network::link::mac_text)
}

/// `80`, `80/udp`, `8000-8010/tcp`: protocol, first, last.
#[must_use]
pub fn exposed_port(text: &str) -> Option<(networks::Protocol, u16, u16)> {
    network::parse_exposed(text)
}

/// The networks that a container is to be in, by name as given, the one of its way out first.
#[must_use]
pub fn wanted_networks(spec: &spec::Spec) -> Vec<(String, networks::Wish)> {
    network::wanted(&spec.host)
}
pub use oci::{ExecSpec, MASKED, READ_ONLY, hostname};
pub use phases::Record as PhaseRecord;
pub use pod::PodView;
pub use pod::services::ServiceChange;
pub use pod::spec::{CreatePod, PodChange, PodSpec, PodState, PodStatus};
pub use runtime::{Runtimes, find_program, shim_name, wall_of};
pub use stats::Stats;
pub use supervisor::PodStreams;
pub use volume::{Driver as VolumeDriver, Volume, VolumeRequest, VolumeView, bytes};
