//! OCI images: registry, archives, content store, root file systems.
#![forbid(unsafe_code)]
