//! The keys that leave a container without ending it: `ctrl-p,ctrl-q` unless told otherwise.
//!
//! ```text
//!   matched 0 ──key[0]──▶ 1 ──key[1]──▶ … all: detach
//!       ▲                 │ another: the held bytes and this one are input
//!       └─────────────────┘
//! ```

/// Docker's default.
const DEFAULT: [u8; 2] = [16, 17];

/// Looks for the sequence in a terminal's input.
#[derive(Debug)]
pub(crate) struct Detector {
    keys: Vec<u8>,
    matched: usize,
}

impl Detector {
    /// `a`, `ctrl-c`, `ctrl-p,ctrl-q`, …; empty: the default.
    ///
    /// # Errors
    /// The key that is none.
    pub fn new(keys: &str) -> Result<Self, String> {
        let keys = if keys.is_empty() {
            DEFAULT.to_vec()
        } else {
            keys.split(',').map(key).collect::<Result<_, _>>()?
        };
        Ok(Self { keys, matched: 0 })
    }

    /// What of `input` goes to the process, and whether the sequence was completed.
    pub fn feed(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        for &byte in input {
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if byte == self.keys[0] {
                self.matched = 1;
                if self.keys.len() == 1 {
                    return (passed, true);
                }
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

fn key(text: &str) -> Result<u8, String> {
    let bytes = text.as_bytes();
    if let [byte] = bytes {
        return Ok(*byte);
    }
    match text.to_ascii_lowercase().strip_prefix("ctrl-").map(str::as_bytes) {
        Some([letter @ b'a'..=b'z']) => Ok(letter - b'a' + 1),
        Some(b"@") => Ok(0),
        Some(b"[") => Ok(27),
        Some(b"\\") => Ok(28),
        Some(b"]") => Ok(29),
        Some(b"^") => Ok(30),
        Some(b"_") => Ok(31),
        _ => Err(format!("Unknown character: '{text}'")),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_default_sequence_in_one_or_two_reads() {
        let mut detector = Detector::new("").unwrap();
        assert_eq!(detector.feed(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(detector.feed(b"\x11rest"), (vec![], true));
        let mut detector = Detector::new("").unwrap();
        assert_eq!(detector.feed(b"a\x10b\x10\x10\x11"), (b"a\x10b\x10".to_vec(), true));
    }

    #[test]
    fn other_keys() {
        let mut detector = Detector::new("ctrl-a,x").unwrap();
        assert_eq!(detector.feed(b"\x01y\x01x"), (b"\x01y".to_vec(), true));
        assert!(Detector::new("q").unwrap().feed(b"q").1);
        assert!(Detector::new("ctrl-1").unwrap_err().contains("ctrl-1"));
    }
}
