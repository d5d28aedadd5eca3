//! The supervisor program: one process for each pod, started by containerd or hyperd.
//!
//! ```text
//! containerd ─ `… start` ─► start: bind the socket, spawn the supervisor, print the address (ms)
//!                              └─► serve: Task API (v2 and v3) + BUNDLE/pod.sock ─► hyper_pod::Pod
//! containerd ─ Task API ─────────────┘        └─► events
//! containerd ─ `… delete` ─► delete: what is left of a supervisor that was killed
//! ```
//! The protocol is containerd's runtime v2 (core/runtime/v2/README.md in containerd). It is spoken
//! with `containerd-shim-protos` and not through the `containerd-shim` crate, whose 0.12 answers
//! `start` in the form of containerd 2 only and serves `containerd.task.v3.Task` only: containerd
//! 1.6, Debian's, reads a bare address and calls `containerd.task.v2.Task`. The messages of both
//! versions are the same, and later containerds accept a bare address, so one server suits all.
//!
//! This is the only place where hypervisors are known by name.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod config;
mod delete;
mod events;
mod hypervisors;
mod log;
mod place;
mod probe;
mod remembered;
mod serve;
mod start;
mod task;
mod template;
mod wire;

use std::process::ExitCode;

use anyhow::Context as _;
use args::{Action, Args};

fn main() -> ExitCode {
    let started_ns = hyper_stdio::now_ns();
    let result = Args::parse(std::env::args_os().skip(1)).and_then(|args| match args.action {
        Action::Version => {
            println!("containerd-shim-hyper-v2 {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Info => start::info(),
        Action::Probe => probe::probe(),
        Action::Bench => bench::run(&args),
        Action::Walls => probe::walls(),
        Action::Template => template::make(),
        Action::Start => start::start(&args),
        Action::Serve => serve::serve(&args, started_ns),
        Action::Delete => delete::delete(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-hyper-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// For what is done and then over: no threads but those of blocking work.
fn one_thread() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")
}
