//! Layers: received, and converted in the same pass.

mod convert;
mod receive;

pub(crate) use convert::{Conversion, MAX_INDEX, read_index};
pub(crate) use receive::{Partial, Reception};
