//! A container's output: durable logs and attached clients.
#![forbid(unsafe_code)]
