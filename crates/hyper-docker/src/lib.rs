//! The Docker Engine API over the engine.
#![forbid(unsafe_code)]
