//! Layers: received, decompressed, hashed and converted in one pass.

mod convert;
mod decompress;
mod receive;

pub(crate) use convert::{Compare, Conversion, read_index};
pub(crate) use decompress::{Compression, Decompress};
pub(crate) use receive::{Partial, Reception};
