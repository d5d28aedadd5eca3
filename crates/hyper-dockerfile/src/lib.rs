//! Dockerfiles: from text to typed instructions, and what their words mean. Nothing is carried out here.
//!
//! ```text
//!  text ─► source: logical lines, heredocs ─► instruction: flags, forms ─► stages
//!                                                     expand: ${variables}, when a step is carried out
//!  .dockerignore, wildcards ─► pattern
//! ```
//! Source: Docker's "Dockerfile reference" and what BuildKit's frontend accepts. What only BuildKit carries out
//! (`RUN --mount=type=cache` …) is an error that names it, not something to be left out silently.
//!
//! Invariants: any bytes give a value or an error that says what is wrong and where; time and memory are linear in
//! the text, which is at most [`MAX_TEXT`] long. A crate of its own, because client and builder must agree on what is
//! ignored.
#![forbid(unsafe_code)]

mod error;
pub mod expand;
mod instruction;
mod pattern;
mod run;
mod source;
mod stages;
mod words;

pub use error::DockerfileError;
pub use instruction::{
    Command, Healthcheck, Heredoc, Instruction, Run, Source, Transfer, TransferKind,
};
pub use pattern::{Anchor, Ignore, ShellPattern, Wildcard, has_wildcards};
pub use run::Tmpfs;
pub use stages::{Dockerfile, Stage, Step};

/// Longest Dockerfile, in bytes: some thousand times the usual.
pub const MAX_TEXT: usize = 4 << 20;
