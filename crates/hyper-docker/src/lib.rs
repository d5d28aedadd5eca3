//! The Docker Engine API over the engine.
//!
//! ```text
//!   connection ─▶ server (version prefix, upgrades) ─▶ router ─▶ handlers ─▶ hyper_engine::Engine
//! ```
//! Invariants
//! - It announces API [`API_VERSION`] and serves every version from [`MIN_API_VERSION`] on, with or
//!   without the `/v1.NN` prefix.
//! - It knows no hypervisor. What a request asks for and the engine has no word for is refused by
//!   name ([`container::refuse`]), never ignored.
//! - Its types are those of the wire; nothing of them is stored.
//! - Every error is `{"message": …}` with the status that Docker uses for its kind.
//!
//! Source of the routes: Docker Engine API 1.24 to 1.51, and what the docker CLI does with it.
#![forbid(unsafe_code)]
// Docker's documents are long `json!` literals.
#![recursion_limit = "256"]

mod absent;
mod app;
mod build;
mod commit;
mod container;
mod detach;
mod error;
mod event;
mod exec;
mod hijack;
mod human;
mod hyper_v1;
mod image;
mod import;
mod network;
mod progress;
mod pull;
mod push;
mod request;
mod server;
mod system;
mod upload;
mod volume;

pub use app::{App, RegistryNames};
pub use server::{Listener, serve};

/// Newest version of the API that is served.
pub const API_VERSION: &str = "1.47";
/// Oldest version of the API that is served.
pub const MIN_API_VERSION: &str = "1.24";
