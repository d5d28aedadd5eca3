//! The client's side of containerd's shim v2, as containerd itself does it.
//!
//! ```text
//! Program::start ──▶ Address ──▶ TaskClient::connect ──▶ call … ──▶ closed
//!        └ delete: what a dead shim left behind
//! ```
//! hyperd drives supervisors with it, and a supervisor drives the shims of other runtimes. Knows
//! neither: only programs, addresses and messages. Every wait but `Wait`'s has a deadline.
#![forbid(unsafe_code)]

mod client;
mod program;

pub use client::{Refusal, TaskClient, TaskError};
pub use program::{Address, Program};
