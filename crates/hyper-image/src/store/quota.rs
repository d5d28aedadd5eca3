//! The store's own limit: how many bytes it may hold.
//!
//! What is written is added to a count before it is written; what is removed is not taken off. So the count is never
//! too small, and when it comes to the limit the store is counted anew, once, before anything is refused.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::layout;
use crate::error::Error;

/// See the module.
#[derive(Debug)]
pub(crate) struct Quota {
    root: PathBuf,
    limit: Option<u64>,
    /// `None` until it is counted.
    used: Mutex<Option<u64>>,
}

impl Quota {
    /// `limit` in bytes; `None`: as much as the disk has.
    pub(crate) fn new(root: &Path, limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { root: root.to_owned(), limit, used: Mutex::default() })
    }

    /// Counts `need` more bytes. Blocking.
    fn add(&self, need: u64) -> Result<(), Error> {
        let Some(limit) = self.limit else { return Ok(()) };
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |used: u64| used.saturating_add(need) <= limit;
        let now = match *used {
            Some(now) if fits(now) => now,
            _ => count(&self.root)?,
        };
        if !fits(now) {
            *used = Some(now);
            return Err(Error::Quota { path: self.root.clone(), limit, used: now, need });
        }
        *used = Some(now + need);
        Ok(())
    }
}

/// What one file or stream has taken so far.
#[derive(Debug, Clone)]
pub(crate) struct Charge {
    quota: Arc<Quota>,
    charged: u64,
}

impl Charge {
    pub(crate) fn new(quota: &Arc<Quota>) -> Self {
        Self { quota: Arc::clone(quota), charged: 0 }
    }

    /// One whose first bytes are on the disk already.
    pub(crate) fn after(mut self, bytes: u64) -> Self {
        self.charged = bytes;
        self
    }

    /// The file is to have `bytes`. Blocking.
    ///
    /// # Errors
    /// [`Error::Quota`]
    pub(crate) fn reach(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes > self.charged {
            self.quota.add(bytes - self.charged)?;
            self.charged = bytes;
        }
        Ok(())
    }
}

/// Bytes of all files below a directory, each once however many names it has.
fn count(root: &Path) -> Result<u64, Error> {
    let mut seen = BTreeSet::new();
    let mut bytes: u64 = 0;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for path in layout::list(&directory)? {
            // What is renamed away while we look no longer counts.
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            if found.is_dir() {
                directories.push(path);
            } else if found.nlink() < 2 || seen.insert(found.ino()) {
                bytes = bytes.saturating_add(found.len());
            }
        }
    }
    Ok(bytes)
}

/// Bytes as people read them: `1.5 GB`.
pub(crate) fn shown(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn removed_bytes_are_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        fs::write(&file, [0; 600]).unwrap();
        fs::hard_link(&file, directory.path().join("b")).unwrap();
        let quota = Quota::new(directory.path(), Some(1000));
        let mut charge = Charge::new(&quota);
        charge.reach(400).unwrap();
        charge.reach(300).unwrap();
        fs::write(directory.path().join("c"), [0; 400]).unwrap();
        let error = charge.reach(401).unwrap_err();
        assert!(matches!(error, Error::Quota { limit: 1000, need: 1, .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("may hold 1.0 kB") && text.contains("prune"), "{text}");
        fs::remove_file(&file).unwrap();
        fs::remove_file(directory.path().join("b")).unwrap();
        charge.reach(1000).unwrap();
        Charge::new(&quota).after(5000).reach(5000).unwrap();
    }

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1500, "1.5 kB"),
            (2_000_000_000, "2.0 GB"),
            (7_900_000_000_000_000, "7900.0 TB"),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }
}
