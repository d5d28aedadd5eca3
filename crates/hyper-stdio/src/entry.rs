//! One line of a json-file log, in Docker's encoding.
//!
//! `{"log":"text\n","stream":"stdout","time":"2026-11-21T22:04:05.123456789Z"}` and a newline.
//! Source: moby `daemon/logger/jsonfilelog` (behaviour, not code): control characters, quotes,
//! `<>&` and U+2028/2029 are escaped, a byte that is not UTF-8 becomes U+FFFD.

use std::borrow::Cow;

use serde::Deserialize;

use crate::stamp::{Stamper, parse_rfc3339};

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    Stderr,
}

impl Stream {
    /// As in the log file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// Number in stdcopy frames.
    pub fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// One entry: a line, or at most 16 KiB of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub stream: Stream,
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// Ends with a newline, unless the line goes on in this stream's next entry or the stream
    /// ended without one.
    pub data: Vec<u8>,
}

impl Entry {
    /// Appends the entry's line to `out`.
    pub(crate) fn encode(&self, stamper: &mut Stamper, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"log\":\"");
        escape(&self.data, out);
        out.extend_from_slice(b"\",\"stream\":\"");
        out.extend_from_slice(self.stream.name().as_bytes());
        out.extend_from_slice(b"\",\"time\":\"");
        stamper.push(out, self.unix_ns);
        out.extend_from_slice(b"\"}\n");
    }

    /// From one line of a log; `None` for anything else (a line cut short by a crash).
    pub(crate) fn decode(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            log: Cow<'a, str>,
            #[serde(borrow)]
            stream: Cow<'a, str>,
            #[serde(borrow)]
            time: Cow<'a, str>,
        }
        let line: Line<'_> = serde_json::from_slice(line).ok()?;
        Some(Self {
            stream: if line.stream == "stderr" { Stream::Stderr } else { Stream::Stdout },
            unix_ns: parse_rfc3339(&line.time)?,
            data: line.log.into_owned().into_bytes(),
        })
    }
}

fn escape(data: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for chunk in data.utf8_chunks() {
        let mut plain = 0;
        let text = chunk.valid();
        for (at, character) in text.char_indices() {
            let escaped: &[u8] = match character {
                '"' => b"\\\"",
                '\\' => b"\\\\",
                '\n' => b"\\n",
                '\r' => b"\\r",
                '\u{2028}' => b"\\u2028",
                '\u{2029}' => b"\\u2029",
                '<' | '>' | '&' | '\0'..='\x1f' => {
                    let code = character as usize;
                    &[b'\\', b'u', b'0', b'0', HEX[code >> 4], HEX[code & 15]]
                }
                _ => continue,
            };
            out.extend_from_slice(&text.as_bytes()[plain..at]);
            out.extend_from_slice(escaped);
            plain = at + character.len_utf8();
        }
        out.extend_from_slice(&text.as_bytes()[plain..]);
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn line(data: &[u8]) -> String {
        let entry =
            Entry { stream: Stream::Stderr, unix_ns: 1_700_000_000_000_000_500, data: data.into() };
        let mut out = Vec::new();
        entry.encode(&mut Stamper::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_dockers() {
        assert_eq!(
            line(b"a\t\"<\xff\xc3\xa9\x1b[0m\r\n"),
            "{\"log\":\"a\\u0009\\\"\\u003c\\ufffd\u{e9}\\u001b[0m\\r\\n\",\
             \"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:20.0000005Z\"}\n"
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let entry = Entry::decode(line("x\u{2028}\\ é\n".as_bytes()).as_bytes()).unwrap();
        assert_eq!(entry.data, "x\u{2028}\\ é\n".as_bytes());
        assert_eq!(entry.stream, Stream::Stderr);
        assert_eq!(entry.unix_ns, 1_700_000_000_000_000_500);
        assert_eq!(Entry::decode(b"{\"log\":\"cut"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives(text in "\\PC*") {
            let entry = Entry::decode(line(text.as_bytes()).as_bytes()).unwrap();
            proptest::prop_assert_eq!(entry.data, text.as_bytes());
        }
    }
}
