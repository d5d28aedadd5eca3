//! Names out of an archive become relative paths in normal form, or an error.
//!
//! Normal form: components joined by single `/`, none of them empty, `.`, `..` or longer than 255 bytes,
//! no NUL; the root itself is the empty path. A leading `/` is stripped, as Docker does: an absolute name
//! means the same file below the image's root. `..` is refused rather than resolved: no tool that makes
//! layers emits it, and what it means depends on symbolic links.

use crate::limits::{LimitExceeded, MAX_NAME, MAX_PATH};
use thiserror::Error;

/// Why a name cannot be a path inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PathError {
    /// A component is `..`.
    #[error("a path component is `..`")]
    ParentComponent,
    /// A NUL byte, which no file name can hold.
    #[error("a path holds a NUL byte")]
    Nul,
    /// A component or the whole path is too long, or there are too many components.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

/// Brings `raw` to normal form.
pub(crate) fn normalise(raw: &[u8], max_depth: usize) -> Result<Vec<u8>, PathError> {
    if raw.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut path = Vec::with_capacity(raw.len().min(MAX_PATH));
    let mut depth = 0;
    for component in components(raw) {
        match component {
            b"." => continue,
            b".." => return Err(PathError::ParentComponent),
            _ => {}
        }
        LimitExceeded::check("bytes in a path component", component.len() as u64, MAX_NAME as u64)?;
        depth += 1;
        LimitExceeded::check("path components", depth, max_depth as u64)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        LimitExceeded::check("bytes in a path", path.len() as u64, MAX_PATH as u64)?;
    }
    Ok(path)
}

/// The non-empty components of a path.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
}

/// Splits a path in normal form into its parent and its last component; `None` for the root.
pub(crate) fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None => Some((b"", path)),
    }
}

/// For messages: the path as text, bytes that are not UTF-8 replaced.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = String::from("/");
    text.push_str(&String::from_utf8_lossy(path));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_form() {
        for (raw, normal) in [
            ("./", ""),
            ("/", ""),
            ("", ""),
            ("./usr//bin/./env", "usr/bin/env"),
            ("/etc/passwd", "etc/passwd"),
            ("///a/", "a"),
            ("...", "..."),
        ] {
            assert_eq!(normalise(raw.as_bytes(), 10).unwrap(), normal.as_bytes(), "{raw}");
        }
    }

    #[test]
    fn refusals() {
        assert_eq!(normalise(b"a/../b", 10), Err(PathError::ParentComponent));
        assert_eq!(normalise(b"..", 10), Err(PathError::ParentComponent));
        assert_eq!(normalise(b"a\0b", 10), Err(PathError::Nul));
        assert!(matches!(normalise(b"a/b/c", 2), Err(PathError::Limit(_))));
        assert!(normalise(&[b'x'; 255], 2).is_ok());
        assert!(matches!(normalise(&[b'x'; 256], 2), Err(PathError::Limit(_))));
        assert!(normalise("x/".repeat(2047).as_bytes(), 5000).is_ok());
        assert!(matches!(normalise("xx/".repeat(1400).as_bytes(), 5000), Err(PathError::Limit(_))));
    }

    #[test]
    fn split() {
        assert_eq!(split_last(b""), None);
        assert_eq!(split_last(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split_last(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
    }
}
