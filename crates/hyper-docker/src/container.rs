//! Containers.
//!
//! - [`create`], [`refuse`]: from Docker's words to the engine's, and what has none.
//! - [`mounts`]: directories, files and volumes, both ways.
//! - [`policy`]: restart policies and health checks, both ways.
//! - [`inspect`], [`list`]: back again.
//! - [`lifecycle`]: start, stop, wait, remove and the like.
//! - [`files`], [`top`]: what is in it.
//! - [`attach`], [`logs`], [`stats`]: streams.

pub(crate) mod attach;
pub(crate) mod create;
pub(crate) mod files;
pub(crate) mod given;
pub(crate) mod inspect;
pub(crate) mod lifecycle;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod policy;
pub(crate) mod refuse;
pub(crate) mod stats;
pub(crate) mod top;
