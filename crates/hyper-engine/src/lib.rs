//! Containers, their state, and the supervisors that run them.
#![forbid(unsafe_code)]
