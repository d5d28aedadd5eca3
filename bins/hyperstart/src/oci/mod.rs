//! The OCI runtime specification, as far as a guest carries it out.
//!
//! - [`spec`]: `config.json`. [`capability`]: names of capabilities.
//! - [`seccomp`]: `linux.seccomp` to a filter. [`syscalls`]: names of system calls.
//! - [`mounts`]: mount options.

pub(crate) mod capability;
pub(crate) mod mounts;
pub(crate) mod seccomp;
pub(crate) mod spec;
pub(crate) mod syscalls;
