//! From a stream's chunks to log entries: lines, long ones in pieces of 16 KiB, as Docker does.

use crate::{Entry, Stream};

/// Most bytes of a line in one entry, the newline not counted.
pub const MAX_ENTRY: usize = 16 << 10;

/// Holds one stream's unfinished line.
#[derive(Debug)]
pub struct Splitter {
    stream: Stream,
    pending: Vec<u8>,
    /// Time of the first piece of a long line: all its pieces carry it.
    line_ns: Option<i64>,
}

impl Splitter {
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new(), line_ns: None }
    }

    /// Appends the entries that `chunk`, read at `now_ns`, completes.
    pub fn push(&mut self, chunk: &[u8], now_ns: i64, entries: &mut Vec<Entry>) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let room = MAX_ENTRY - self.pending.len();
            let window = &rest[..rest.len().min(room + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    self.pending.extend_from_slice(&rest[..=at]);
                    rest = &rest[at + 1..];
                    entries.push(self.entry(now_ns));
                    self.line_ns = None;
                }
                None if rest.len() > room => {
                    self.pending.extend_from_slice(&rest[..room]);
                    rest = &rest[room..];
                    self.line_ns.get_or_insert(now_ns);
                    entries.push(self.entry(now_ns));
                }
                None => {
                    self.pending.extend_from_slice(rest);
                    rest = &[];
                }
            }
        }
    }

    /// The last line, when it has no newline.
    pub fn finish(&mut self, now_ns: i64, entries: &mut Vec<Entry>) {
        if !self.pending.is_empty() {
            entries.push(self.entry(now_ns));
        }
        self.line_ns = None;
    }

    fn entry(&mut self, now_ns: i64) -> Entry {
        Entry {
            stream: self.stream,
            unix_ns: self.line_ns.unwrap_or(now_ns),
            data: std::mem::take(&mut self.pending),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut entries = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, 1, &mut entries);
        }
        splitter.finish(1, &mut entries);
        entries.into_iter().map(|entry| entry.data).collect()
    }

    #[test]
    fn lines_are_joined_across_chunks() {
        assert_eq!(split(&[b"a", b"b\n\nc", b"\nlast"]), [&b"ab\n"[..], b"\n", b"c\n", b"last"]);
        assert_eq!(split(&[b"", b"\n"]), [b"\n"]);
    }

    #[test]
    fn long_lines_are_cut_at_16_kib() {
        let exact = [vec![b'x'; MAX_ENTRY], b"\n".to_vec()].concat();
        assert_eq!(split(&[&exact]), std::slice::from_ref(&exact));
        let long = [vec![b'x'; 2 * MAX_ENTRY + 1], b"\ny\n".to_vec()].concat();
        let lengths: Vec<usize> = split(&[&long]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [MAX_ENTRY, MAX_ENTRY, 2, 2]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost(chunks: Vec<Vec<u8>>) {
            let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            proptest::prop_assert_eq!(split(&slices).concat(), chunks.concat());
        }
    }
}
