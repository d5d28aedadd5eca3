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

pub mod counters;
pub mod egress;
mod error;
pub mod firewall;
pub mod link;
pub mod localhost;
pub mod named;
pub mod namespace;
mod netlink;
pub mod pins;
pub mod rate;
pub mod redirect;
pub mod rootless;
pub mod rules;
pub mod service;
pub mod subnet;
pub mod tap;
mod wiring;

pub use error::NetworkError;
pub use netlink::Netlink;
/// Why this host can have no networks.
#[must_use]
pub fn trouble() -> Option<String> {
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    };
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun: load the kernel's module `tun`".to_owned());
    }
    if !on_path("nft") {
        return Some("there is no program `nft`: install the package nftables".to_owned());
    }
    Netlink::open().err().map(|error| format!("open rtnetlink: {error}"))
}

pub use wiring::{Card, Manner, Rider, Wired, Wiring, wire};
