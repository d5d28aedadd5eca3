//! The crate from outside: archives in, file systems out.
#![expect(clippy::unwrap_used, reason = "also in what the tests share, a failure is a failed test")]

mod archive;
mod hostile;
mod image;
mod kernel;
mod listing;
mod real;
mod semantics;
