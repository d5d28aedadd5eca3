//! `COPY` and `ADD`: which files, what they hash to, and the layer they make.
//!
//! ```text
//!  sources ─► select: files by pattern ─┬─► digest: names, modes, contents  (the cache's key)
//!                                       └─► place: names in the image ─► layer archive
//! ```
//! The layer is written against the merged tree of the image: symbolic links of the destination are followed inside
//! it, parents keep their attributes, and a directory over a directory is merged. The same files on the same image
//! give the same bytes.

mod layer;
mod select;

pub(crate) use layer::{LayerFiles, directory};
pub(crate) use select::{Selected, Selection, select};

use sha2::{Digest as _, Sha256};

use crate::BuildError;
use crate::owner::Owner;

/// Where files go and what becomes of their attributes.
#[derive(Debug, Clone)]
pub(crate) struct Placing {
    /// `COPY` or `ADD`, for messages.
    pub name: &'static str,
    /// Absolute, as written otherwise: its last slash counts.
    pub destination: String,
    /// Of everything; `None`: of the archive, or root.
    pub owner: Option<Owner>,
    /// Of everything but links.
    pub mode: Option<u16>,
    /// The layer is made as if the image was empty.
    pub link: bool,
}

/// The digest of what was selected, in Docker's words: `file:HEX`, `dir:HEX`, `multi:HEX`.
pub(crate) fn digest(selections: &[Selection]) -> Result<String, BuildError> {
    let mut all = Vec::new();
    for selection in selections {
        for selected in &selection.selected {
            all.push(select::digest(selection, selected)?);
        }
    }
    if let [one] = all.as_slice() {
        return Ok(one.clone());
    }
    let mut hasher = Sha256::new();
    for one in &all {
        hasher.update(one);
        hasher.update(b"\n");
    }
    Ok(format!("multi:{}", hex(&hasher.finalize())))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
