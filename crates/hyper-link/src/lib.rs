//! The link: the one byte stream between supervisor and agent, and what is said on it.
//!
//! A byte stream (serial line, console port, vsock) carries frames; frames carry one control
//! stream and many data streams, each with a credit window of its own and in each direction.
//!
//! ```text
//!  supervisor                                                     agent
//!  connect() ── waits ◄──────── preface, AgentHello ───────────── accept()
//!            ───────────────── SupervisorHello ─────────────────►
//!  Link::call ─────────────── Request ──────────────────────────► RequestReceiver::recv
//!            ◄──────────────── Reply ──────────────────────────── Replier::send
//!  EventReceiver ◄──────────── Event ──────────────────────────── AgentLink::event
//!  Link::open ═══════════ stream: Data/Eof/Reset/Stop/Credit ════ AgentLink::open
//! ```
//!
//! - [`message`]: requests, replies, events and the handshake.
//! - `frame`: the wire form; decoding is pure and holds against any bytes.
//! - `mux`: streams over frames: credit, half-close, fairness, bounds.
//! - [`names`]: questions to the resolver, on a stream. [`sockets`]: connections to sockets of the host.
//! - [`connect`], [`Link`]: the supervisor's end. [`accept`], [`AgentLink`]: the agent's end.
#![forbid(unsafe_code)]

mod agent;
mod error;
mod frame;
mod handshake;
pub mod message;
mod mux;
pub mod names;
pub mod sockets;
mod supervisor;

pub use agent::{AgentLink, Replier, RequestReceiver, accept};
pub use error::{CallError, LinkError, OpenError};
pub use frame::{FrameError, HEADER, Kind, MAX_PAYLOAD, parse_frame};
pub use mux::{StreamReader, StreamWriter, WINDOW};
pub use supervisor::{EventReceiver, Greeting, Link, connect, connect_to, hear};
