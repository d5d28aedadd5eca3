//! OCI images: references, registries, archives, the content store, root file systems.
//!
//! ```text
//!  registry ──pull──┐                                       ┌─ list, resolve ─► Image
//!                   ├─► ingest ─► blobs/ + layers/ ─► Store ─┤
//!  archive ──load───┘    (one streaming pass per layer)      ├─ rootfs ───────► meta.erofs + layer blobs
//!                                                            └─ push, save ───► registry, archive
//! ```
//! A layer is fetched, hashed, decompressed, hashed again and converted to a block-aligned data blob and an index in
//! one pass; it is never whole in memory. An image is assembled from its layers' indexes in milliseconds.
//!
//! Invariants
//! - What is under `blobs/`, `layers/` and `rootfs/` is content-addressed and immutable; it gets its name by one
//!   rename after it was checked and synced. Names change by one rename of `index.json`. `kill -9` at any moment
//!   leaves a store that verifies.
//! - Nothing is reachable from a name before all of it is there.
//! - Registry and archive bytes are hostile: bounded before memory is taken, checked against their digest, and never
//!   used as host paths.
//! - The crate knows no Docker API and no hypervisor.
#![forbid(unsafe_code)]

mod archive;
mod config;
mod credentials;
mod digest;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod layer;
mod platform;
mod progress;
mod pull;
mod push;
mod reference;
mod registry;
mod spec;
mod store;
mod trust;
mod unpack;

pub use config::{ContainerConfig, Empty, Healthcheck, History, ImageConfig, RootFs};
pub use credentials::Credentials;
pub use digest::{Digest, DigestError};
pub use error::{Error, ErrorKind};
pub use image::{Image, ImageUser, Loaded, Pushed, Removed, Rootfs};
pub use platform::{Platform, PlatformError};
pub use progress::{Event, LayerState, Progress};
pub use reference::{DEFAULT_REGISTRY, DEFAULT_TAG, Reference, ReferenceError};
pub use registry::{RegistryOptions, Retry};
pub use store::{
    Derivation, ImageFiles, LayerFile, LayerWriter, NewLayer, Options, Referrer, Store, Usage,
    VerifyReport,
};
pub use trust::Policy;
pub use unpack::{
    Confine, Confined, UnpackError, Unpacked, Unpacker, Watch, Work, serve as serve_unpacking,
};
