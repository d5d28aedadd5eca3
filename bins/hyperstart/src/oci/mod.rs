//! The OCI runtime specification, as far as a guest carries it out.
//!
//! - [`spec`]: `config.json`. [`capability`]: names of capabilities.
//! - [`seccomp`]: `linux.seccomp` to a filter. [`syscalls`]: names of system calls.
//! - [`user`]: user and group names of the image. [`mounts`]: mount options.

pub(crate) mod capability;
pub(crate) mod mounts;
pub(crate) mod seccomp;
pub(crate) mod spec;
pub(crate) mod syscalls;
pub(crate) mod user;
