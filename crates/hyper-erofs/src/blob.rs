//! Writes a blob.
