//! What an archive cannot hold, so that nothing is left out without a word.

use rustix::fs::{FileType, Stat};

/// Names that are told; the rest is counted.
const NAMES: usize = 10;
/// Longest name that is told, in bytes.
const NAME: usize = 200;

/// Files that were left out of an archive.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Omitted {
    count: u64,
    first: Vec<String>,
}

impl Omitted {
    /// A tar has no entries for sockets.
    pub(crate) fn is_such(stat: &Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == FileType::Socket
    }

    pub(crate) fn add(&mut self, path: &[u8]) {
        self.count += 1;
        if self.first.len() < NAMES {
            let path = String::from_utf8_lossy(&path[..path.len().min(NAME)]);
            self.first.push(path.chars().filter(|c| !c.is_control()).collect());
        }
    }

    /// A line for people, if there is anything to tell; some kilobytes at most.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let rest = self.count - self.first.len() as u64;
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        let names = self.first.join(", ");
        (self.count > 0)
            .then(|| format!("left out, because archives hold no sockets: {names}{more}"))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn few_are_named_and_many_are_counted() {
        let mut omitted = Omitted::default();
        assert_eq!(omitted.note(), None);
        omitted.add(b"run/a\nb.sock");
        assert!(omitted.note().unwrap().ends_with(": run/ab.sock"));
        omitted.add(&[b'x'; 5000]);
        for _ in 0..100 {
            omitted.add(b"c");
        }
        let note = omitted.note().unwrap();
        assert!(note.ends_with("c and 92 more") && note.len() < 1000, "{note}");
    }
}
