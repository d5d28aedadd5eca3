//! Port adapter: user-mode Linux.
#![forbid(unsafe_code)]
