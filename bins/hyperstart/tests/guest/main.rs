//! The agent in real guests. Skipped, loudly, where a kernel is not built.
//!
//! - [`machine`]: a kernel with the agent in it, on a socket pair.
//! - [`uml`]: all that the agent does. [`qemu`]: that it does so on a virtio port as well.
//! - [`measure`]: what a guest costs; by request only.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod machine;
mod measure;
mod qemu;
mod uml;
