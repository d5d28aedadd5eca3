//! The supervisor of one pod.
#![forbid(unsafe_code)]
