//! PAX extended headers: `LENGTH KEY=VALUE\n`, binary safe because only LENGTH says where a record ends.

use super::sparse::Segment;
use crate::index::{Timestamp, Xattr};
use crate::limits::{MAX_XATTR_NAME, MAX_XATTR_VALUE};

/// What one extended header says about the entry after it. A key given twice: the last one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: PaxSparse,
}

/// GNU's three ways to say in PAX records that a file is sparse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Formats 0.0 (records in pairs) and 0.1 (one list); 1.0 has the map before the content.
    pub(super) map: Option<Vec<Segment>>,
    pending_offset: Option<u64>,
}

const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Adds the records of a header to what is known so far.
    ///
    /// # Errors
    /// What is wrong with the first bad record.
    pub(super) fn parse(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        // Some writers pad the last record with NULs.
        while records.first().is_some_and(|byte| *byte != 0) {
            let (record, rest) = split_record(records)?;
            let equals =
                record.iter().position(|byte| *byte == b'=').ok_or("a record without `=`")?;
            self.record(&record[..equals], &record[equals + 1..])?;
            records = rest;
        }
        if self.sparse.pending_offset.is_some() {
            return Err("a sparse offset without its length");
        }
        Ok(())
    }

    /// A global header sets defaults for all entries; what describes one entry alone has no place in it.
    /// Xattrs in it are dropped: no writer of layers puts any there, and they would be multiplied by every entry.
    pub(super) fn check_global(&mut self) -> Result<(), &'static str> {
        self.xattrs.clear();
        let is_plain = self.path.is_none()
            && self.link_path.is_none()
            && self.size.is_none()
            && self.sparse == PaxSparse::default();
        if is_plain {
            Ok(())
        } else {
            Err("a global header with the name, size or sparse map of one entry")
        }
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes back what an earlier header set.
        let given = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = given.map(name).transpose()?,
            b"linkpath" => self.link_path = given.map(name).transpose()?,
            b"size" => self.size = given.map(decimal).transpose()?,
            b"uid" => self.uid = given.map(id).transpose()?,
            b"gid" => self.gid = given.map(id).transpose()?,
            b"mtime" => self.mtime = given.map(timestamp).transpose()?,
            b"GNU.sparse.major" => self.sparse.major = given.map(decimal).transpose()?,
            b"GNU.sparse.minor" => self.sparse.minor = given.map(decimal).transpose()?,
            b"GNU.sparse.name" => self.sparse.name = given.map(name).transpose()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = given.map(decimal).transpose()?;
            }
            b"GNU.sparse.map" => self.sparse.map = Some(segment_list(value)?),
            b"GNU.sparse.offset" => {
                let offset = decimal(value)?;
                if self.sparse.pending_offset.replace(offset).is_some() {
                    return Err("a sparse offset without its length");
                }
            }
            b"GNU.sparse.numbytes" => {
                let offset = self
                    .sparse
                    .pending_offset
                    .take()
                    .ok_or("a sparse length without its offset")?;
                let len = decimal(value)?;
                self.sparse.map.get_or_insert_default().push(Segment { offset, len });
            }
            _ => {
                if let Some(xattr) = key.strip_prefix(XATTR_KEY) {
                    self.xattr(xattr, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
            return Err("an xattr with an empty, too long or otherwise impossible name");
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err("an xattr value of more than 65535 bytes");
        }
        self.xattrs.push(Xattr { name: name.to_vec(), value: value.to_vec() });
        Ok(())
    }
}

/// Splits off the first record, without its length and its newline.
fn split_record(records: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    const BAD: &str = "a record with a wrong length";
    // 20 digits hold any length; a longer search would be quadratic over a hostile header.
    let digits = records.iter().take(20).position(|byte| *byte == b' ').ok_or(BAD)?;
    let len = usize::try_from(decimal(&records[..digits])?).map_err(|_| BAD)?;
    if len <= digits + 1 || len > records.len() || records[len - 1] != b'\n' {
        return Err(BAD);
    }
    Ok((&records[digits + 1..len - 1], &records[len..]))
}

fn name(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) { Err("a name with a NUL byte") } else { Ok(value.to_vec()) }
}

/// An unsigned decimal number, digits only.
pub(super) fn decimal(value: &[u8]) -> Result<u64, &'static str> {
    const BAD: &str = "a number that is not one";
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    value.iter().try_fold(0u64, |number, digit| {
        number
            .checked_mul(10)
            .and_then(|number| number.checked_add(u64::from(digit - b'0')))
            .ok_or(BAD)
    })
}

fn id(value: &[u8]) -> Result<u32, &'static str> {
    u32::try_from(decimal(value)?).map_err(|_| "a user or group id over 32 bits")
}

/// `[-]SECONDS[.FRACTION]`; the fraction is cut to nanoseconds, towards the past.
fn timestamp(value: &[u8]) -> Result<Timestamp, &'static str> {
    const BAD: &str = "a time that is not one";
    let (negative, digits) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = decimal(parts.next().unwrap_or_default()).map_err(|_| BAD)?;
    let whole = i64::try_from(whole).map_err(|_| BAD)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let nanoseconds = fraction
        .iter()
        .chain(std::iter::repeat(&b'0'))
        .take(9)
        .fold(0u32, |number, digit| number * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds: whole, nanoseconds },
        (true, 0) => Timestamp { seconds: -whole, nanoseconds: 0 },
        (true, _) => Timestamp { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// `OFFSET,LENGTH,OFFSET,LENGTH…`
fn segment_list(value: &[u8]) -> Result<Vec<Segment>, &'static str> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let mut numbers = value.split(|byte| *byte == b',').map(decimal);
    let mut segments = Vec::new();
    while let Some(offset) = numbers.next() {
        let len = numbers.next().ok_or("a sparse offset without its length")??;
        segments.push(Segment { offset: offset?, len });
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len += 1;
        }
        [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    fn parse(records: &[u8]) -> Result<Pax, &'static str> {
        let mut pax = Pax::default();
        pax.parse(records).map(|()| pax)
    }

    #[test]
    fn a_newline_inside_a_value_does_not_end_it() {
        let value = b"\x01\x00\x00\x02\n\n7 a=b\n=\x00\xff";
        let records =
            [record("SCHILY.xattr.security.capability", value), record("path", b"x\ny")].concat();
        let pax = parse(&records).unwrap();
        assert_eq!(pax.xattrs[0].name, b"security.capability");
        assert_eq!(pax.xattrs[0].value, value);
        assert_eq!(pax.path.unwrap(), b"x\ny");
    }

    #[test]
    fn times() {
        let time =
            |text: &str| timestamp(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
        assert_eq!(time("1350244992.023960108"), Ok((1_350_244_992, 23_960_108)));
        assert_eq!(time("5"), Ok((5, 0)));
        assert_eq!(time("5.1234567899"), Ok((5, 123_456_789)));
        assert_eq!(time("-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time("-3"), Ok((-3, 0)));
        for bad in ["", "-", ".5", "1.x", "1e9", "99999999999999999999"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"7 a=b\n"[..],    // one too long for its bytes
            b"5 a=b\n",         // does not end in a newline
            b"999999 path=x\n", // longer than the header
            b"0 \n",
            b"x path=x\n",
            b"7 path\n", // no equals sign
            b"99999999999999999999999 a=b\n",
            b"-9 path=x\n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        assert!(parse(&record("path", b"a\0b")).is_err());
        assert!(parse(&record("uid", b"4294967296")).is_err());
        assert!(parse(&record("SCHILY.xattr.user.x", &[0; 65536])).is_err());
        assert!(parse(&record("SCHILY.xattr.", b"x")).is_err());
    }

    #[test]
    fn sparse_maps() {
        let pax = parse(&record("GNU.sparse.map", b"0,512,4096,10")).unwrap();
        let expected = vec![Segment { offset: 0, len: 512 }, Segment { offset: 4096, len: 10 }];
        assert_eq!(pax.sparse.map.as_ref(), Some(&expected));
        let records: Vec<u8> =
            [("offset", "0"), ("numbytes", "512"), ("offset", "4096"), ("numbytes", "10")]
                .iter()
                .flat_map(|(key, value)| record(&format!("GNU.sparse.{key}"), value.as_bytes()))
                .collect();
        assert_eq!(parse(&records).unwrap().sparse.map, Some(expected));
        assert!(parse(&record("GNU.sparse.offset", b"0")).is_err());
        assert!(parse(&record("GNU.sparse.map", b"0,512,4096")).is_err());
    }
}
