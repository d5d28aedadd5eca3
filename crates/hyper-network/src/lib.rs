//! The host's side of a pod's network: links, addresses, namespaces, taps, packet filter.
//!
//! ```text
//!   hyperd:      bridge ◀─ veth ─▶ namespace (a file below the exec root)    rules: one nft table
//!   supervisor:  [`wire`] whatever is in the namespace to taps for the guest
//! ```
//! Invariants: knows no HTTP, hypervisor or engine; nothing but our own links, namespaces and table
//! is changed; everything here blocks for micro- to milliseconds, so callers keep it off their
//! runtime's threads.
#![deny(unsafe_code)]

pub mod egress;
mod error;
pub mod link;
pub mod namespace;
mod netlink;
pub mod rate;
pub mod redirect;
pub mod rules;
pub mod service;
pub mod subnet;
pub mod tap;
mod wiring;

pub use error::NetworkError;
pub use netlink::Netlink;
pub use wiring::{Card, Manner, Rider, Wired, Wiring, wire};
