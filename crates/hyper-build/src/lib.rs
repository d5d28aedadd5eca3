//! Images from Dockerfiles, step by step: Docker's classic builder on this engine.
//!
//! ```text
//!  request's tar ─► Context (a layer in a temporary file)
//!  Dockerfile ─► stages ─► for each step: expand ─► cached? ─┬─ yes: that image
//!                                                            └─ no ─┬─ metadata ───────────────┐
//!                                                                   ├─ COPY, ADD: archive here ─┼─► image
//!                                                                   └─ RUN: a pod of its own ───┘
//! ```
//! Every step makes an image whose parent is the image before; that chain is the cache. `COPY` and `ADD` need no
//! guest: the archive of their layer is written from the indexes and blobs of context, stages and images.
//!
//! Invariants
//! - No name out of a Dockerfile, a context, an archive or an image is ever a path of the host.
//! - Every `RUN` is a container in a pod of its own, gone when the step is over, however it ends; one that a killed
//!   hyperd left is removed by [`sweep`].
//! - A build that fails or is cancelled names nothing; the images of its finished steps stay as its cache.
//! - It knows no HTTP; what only BuildKit can do is refused by name.
#![forbid(unsafe_code)]

mod arguments;
mod builder;
mod change;
mod context;
mod error;
mod fetch;
mod metadata;
mod owner;
mod request;
mod run;
mod transfer;
mod tree;

pub use builder::build;
pub use change::{ChangeError, change};
pub use context::{Context, Scratch};
pub use error::BuildError;
pub use fetch::chain;
pub use hyper_dockerfile::{Dockerfile, DockerfileError};
pub use request::{Event, Request};
pub use run::sweep;
