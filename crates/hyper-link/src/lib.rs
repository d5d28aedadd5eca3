//! The link: the one byte stream between supervisor and agent, and what is said on it.
//!
//! A byte stream (serial line, console port, vsock) carries frames; frames carry one control
//! stream and many data streams, each with a credit window of its own.
//!
//! - [`message`]: requests, replies, events and the handshake.
pub mod message;
