//! A tar reader.
use thiserror::Error;
/// Why.
#[derive(Debug, Error)]
pub enum TarError {}
