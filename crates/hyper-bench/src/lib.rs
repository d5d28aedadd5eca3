//! The comparative study of isolations: what is measured ([`plan`]), what the tools' output means ([`tools`]), what was
//! recorded ([`results`], [`store`]), what follows from it ([`summary`], [`compare`], [`words`]), and how it is shown
//! ([`table`], [`page`]).
//!
//! ```text
//! plan ──▶ (the caller runs jobs) ──▶ store: samples.jsonl ──▶ summary ──▶ table · CSV · JSON · page
//! ```
//! Invariants
//! - No process is started and no network touched here: the caller runs what the plan says and hands the output in.
//! - Output of tools comes out of containers and is hostile: its length is bounded, every figure is finite.
//! - A run that failed is a record like any other, with its reason; nothing is measured in its stead.
//! - The types are the schema: [`results::schema`] is made from them and committed under `docs/schema`.
#![forbid(unsafe_code)]

pub mod compare;
pub mod page;
pub mod plan;
pub mod published;
pub mod results;
pub mod script;
pub mod statistics;
pub mod store;
pub mod summary;
pub mod table;
pub mod tools;
pub mod words;
