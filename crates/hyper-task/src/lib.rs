//! What hyperd and the supervisor agree on beside containerd's Task API.
//!
//! - [`annotation`]: keys in a container's `config.json` that steer the pod.
//! - [`environment`]: where a supervisor's things are, if not where root's are.
//! - [`foreign`]: runtimes of others, which a supervisor drives in place of a hypervisor.
//! - [`mount`]: mounts in a `config.json` that are ours.
//! - [`names`]: the files that a pod's resolver reads.
//! - [`rootfs`]: how a root file system of our image store is named in a Task `Create` request.
//! - [`stdio`]: the URIs that say where a process's output goes.
//! - [`pod`]: `hyper.pod.v1`, the small service beside the Task API.
//!
//! Plain data: no I/O. Both sides depend on this crate, so neither depends on the other.
#![forbid(unsafe_code)]

pub mod annotation;
pub mod cpus;
pub mod environment;
pub mod foreign;
pub mod mount;
pub mod names;
pub mod pod;
pub mod rootfs;
pub mod stdio;
