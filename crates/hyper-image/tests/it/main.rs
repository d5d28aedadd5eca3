//! The image store against real registries, real tools, and servers that misbehave.
//!
//! Needs Debian's `docker-registry`, `skopeo`, `umoci`, `busybox-static`, `erofs-utils`, `openssl`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod archives;
mod durability;
mod faults;
mod lab;
mod push;
mod real;
