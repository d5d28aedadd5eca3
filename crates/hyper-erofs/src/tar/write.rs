//! The other direction: an entry's head as PAX writes it.
//!
//! Plain ustar where that holds everything, an extended header before it where it does not: long names, sizes from
//! 8 GiB on, large ids, sub-second times, xattrs, sparse files (GNU's format 1.0, which Go's `archive/tar` reads too).
//! Whatever is written here reads back the same with [`Reader`](super::Reader).

use std::fmt::Write as _;

use super::header::BLOCK;
use super::{Header, HeaderKind, padding};

/// Largest number of an 8-byte octal field, and of a 12-byte one.
const OCTAL_7: u64 = 0o777_7777;
const OCTAL_11: u64 = 0o777_7777_7777;
/// Longest name of the plain header.
const NAME: usize = 100;

/// The end of an archive: two blocks of zeros.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Zeros that follow `size` bytes of content, up to the next header.
#[must_use]
pub fn padding_of(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    // Below `BLOCK` by definition.
    &ZEROS[..usize::try_from(padding(size)).unwrap_or(0)]
}

/// A part of a sparse file that has content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

/// The bytes before an entry's content. The content of a file follows, then [`padding_of`] its size.
#[must_use]
pub fn encode(header: &Header) -> Vec<u8> {
    let size = match header.kind {
        HeaderKind::File { size } => size,
        _ => 0,
    };
    head(header, &Pax::of(header), &header.path, size)
}

/// As [`encode`], for a file of which only `extents` (in order, apart, within the file) follow, back to back, and then
/// [`padding_of`] the sum of their lengths.
#[must_use]
pub fn encode_sparse(header: &Header, extents: &[Extent]) -> Vec<u8> {
    let HeaderKind::File { size: real } = header.kind else { return encode(header) };
    let mut map = format!("{}\n", extents.len());
    for extent in extents {
        // Writing to a string cannot fail.
        let _ = write!(map, "{}\n{}\n", extent.offset, extent.len);
    }
    let mut map = map.into_bytes();
    map.extend_from_slice(padding_of(map.len() as u64));
    let mut pax = Pax::of(header);
    for (key, value) in [("major", 1), ("minor", 0), ("realsize", real)] {
        pax.add(format!("GNU.sparse.{key}").as_bytes(), value.to_string().as_bytes());
    }
    pax.add(b"GNU.sparse.name", &header.path);
    let stored = extents.iter().fold(map.len() as u64, |sum, extent| sum + extent.len);
    if stored > OCTAL_11 {
        pax.add(b"size", stored.to_string().as_bytes());
    }
    let name = [b"GNUSparseFile.0/", last_part(&header.path)].concat();
    let mut bytes = head(header, &pax, &name, stored);
    bytes.extend(map);
    bytes
}

/// `PATH` without its directories.
fn last_part(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn head(header: &Header, pax: &Pax, name: &[u8], size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !pax.0.is_empty() {
        let mut extended = Raw::new(&[b"PaxHeaders/", last_part(&header.path)].concat(), b'x');
        extended.number(100..108, 0o644);
        extended.number(124..136, pax.0.len() as u64);
        bytes.extend(extended.sealed());
        bytes.extend(&pax.0);
        bytes.extend_from_slice(padding_of(pax.0.len() as u64));
    }
    let (flag, target, device) = match &header.kind {
        HeaderKind::File { .. } => (b'0', None, None),
        HeaderKind::HardLink { target } => (b'1', Some(target), None),
        HeaderKind::Symlink { target } => (b'2', Some(target), None),
        HeaderKind::CharDevice { major, minor } => (b'3', None, Some((*major, *minor))),
        HeaderKind::BlockDevice { major, minor } => (b'4', None, Some((*major, *minor))),
        HeaderKind::Directory => (b'5', None, None),
        HeaderKind::Fifo => (b'6', None, None),
    };
    let mut raw = Raw::new(name, flag);
    raw.number(100..108, u64::from(header.mode & 0o7777));
    raw.number(108..116, u64::from(header.uid));
    raw.number(116..124, u64::from(header.gid));
    raw.number(124..136, size);
    raw.number(136..148, u64::try_from(header.mtime.seconds).unwrap_or(0));
    if let Some(target) = target {
        raw.text(157..257, target);
    }
    if let Some((major, minor)) = device {
        raw.number(329..337, u64::from(major));
        raw.number(337..345, u64::from(minor));
    }
    bytes.extend(raw.sealed());
    bytes
}

/// Records of an extended header.
struct Pax(Vec<u8>);

impl Pax {
    /// What the plain header cannot say.
    fn of(header: &Header) -> Self {
        let mut pax = Self(Vec::new());
        if header.path.len() > NAME {
            pax.add(b"path", &header.path);
        }
        match &header.kind {
            HeaderKind::HardLink { target } | HeaderKind::Symlink { target }
                if target.len() > NAME =>
            {
                pax.add(b"linkpath", target);
            }
            HeaderKind::File { size } if *size > OCTAL_11 => {
                pax.add(b"size", size.to_string().as_bytes());
            }
            _ => {}
        }
        for (key, id) in [("uid", header.uid), ("gid", header.gid)] {
            if u64::from(id) > OCTAL_7 {
                pax.add(key.as_bytes(), id.to_string().as_bytes());
            }
        }
        let (seconds, nanoseconds) = (header.mtime.seconds, header.mtime.nanoseconds);
        let plain = u64::try_from(seconds).is_ok_and(|seconds| seconds <= OCTAL_11);
        if !plain || nanoseconds != 0 {
            pax.add(b"mtime", time(seconds, nanoseconds).as_bytes());
        }
        for xattr in &header.xattrs {
            pax.add(&[b"SCHILY.xattr.", &xattr.name[..]].concat(), &xattr.value);
        }
        pax
    }

    /// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        self.0.extend(len.to_string().bytes());
        self.0.push(b' ');
        self.0.extend(key);
        self.0.push(b'=');
        self.0.extend(value);
        self.0.push(b'\n');
    }
}

/// A time as a decimal number; before 1970 the fraction counts towards the past.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let text = match (seconds < 0, nanoseconds) {
        (true, 1..) => {
            format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
        }
        _ => format!("{seconds}.{nanoseconds:09}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A header block being written.
struct Raw([u8; BLOCK]);

impl Raw {
    fn new(name: &[u8], flag: u8) -> Self {
        let mut raw = Self([0; BLOCK]);
        raw.text(0..NAME, name);
        raw.0[156] = flag;
        raw.0[257..265].copy_from_slice(b"ustar\x0000");
        raw
    }

    /// As much as there is room for: an extended header has all of it.
    fn text(&mut self, field: std::ops::Range<usize>, text: &[u8]) {
        let len = text.len().min(field.len());
        self.0[field.start..field.start + len].copy_from_slice(&text[..len]);
    }

    /// Octal digits and a NUL; 0 where an extended header has the number.
    fn number(&mut self, field: std::ops::Range<usize>, number: u64) {
        let digits = field.len() - 1;
        let limit = if digits == 7 { OCTAL_7 } else { OCTAL_11 };
        let number = if number > limit { 0 } else { number };
        let text = format!("{number:0digits$o}");
        self.text(field, text.as_bytes());
    }

    fn sealed(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        let text = format!("{sum:06o}\0 ");
        self.0[148..156].copy_from_slice(text.as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tar::Reader;
    use crate::{Limits, Timestamp, Xattr};

    fn read(bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
        let mut reader = Reader::new(bytes, &Limits::default());
        let mut entries = Vec::new();
        while let Some(header) = reader.next_entry().unwrap() {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
            entries.push((header, content));
        }
        entries
    }

    fn plain(path: &[u8], kind: HeaderKind) -> Header {
        let mtime = Timestamp { seconds: 1, nanoseconds: 0 };
        Header { path: path.to_vec(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: vec![] }
    }

    /// Name bytes: anything but NUL.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1..=255u8, 1..300)
    }

    fn kind() -> impl Strategy<Value = HeaderKind> {
        prop_oneof![
            Just(HeaderKind::Directory),
            Just(HeaderKind::Fifo),
            name().prop_map(|target| HeaderKind::Symlink { target }),
            name().prop_map(|target| HeaderKind::HardLink { target }),
            (0..0xfffu32, 0..0xf_ffffu32)
                .prop_map(|(major, minor)| HeaderKind::CharDevice { major, minor }),
            (0..0xfffu32, 0..0xf_ffffu32)
                .prop_map(|(major, minor)| HeaderKind::BlockDevice { major, minor }),
            (0..2000u64).prop_map(|size| HeaderKind::File { size }),
        ]
    }

    fn xattr() -> impl Strategy<Value = Xattr> {
        ("[a-z.]{1,30}", proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(name, value)| Xattr { name: name.into_bytes(), value })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(
            path in name(), kind in kind(), mode in 0..0o10000u16, uid: u32, gid: u32,
            seconds in -1_000_000_000_000_000i64..1_000_000_000_000_000, nanoseconds in 0..1_000_000_000u32,
            xattrs in proptest::collection::vec(xattr(), 0..4),
        ) {
            let mtime = Timestamp { seconds, nanoseconds };
            let mut header = Header { path, kind, mode, uid, gid, mtime, xattrs };
            if header.kind == (HeaderKind::File { size: 0 }) || matches!(header.kind, HeaderKind::File { .. }) {
                // A name with a slash at its end is a directory to old readers, never a file's.
                header.path.push(b'x');
            }
            let mut bytes = encode(&header);
            let mut content = Vec::new();
            if let HeaderKind::File { size } = header.kind {
                content = (0..size).map(|at| (at % 251) as u8).collect();
                bytes.extend(&content);
                bytes.extend_from_slice(padding_of(size));
            }
            prop_assert_eq!(bytes.len() % BLOCK, 0);
            let other = plain(b"next", HeaderKind::Directory);
            bytes.extend(encode(&other));
            bytes.extend_from_slice(&END);
            prop_assert_eq!(read(&bytes), vec![(header, content), (other, vec![])]);
        }
    }

    #[test]
    fn sparse_files_read_back_with_their_holes() {
        let extents = [Extent { offset: 4096, len: 3 }, Extent { offset: 9000, len: 1000 }];
        let header = plain(b"a/sparse", HeaderKind::File { size: 20_000 });
        let mut bytes = encode_sparse(&header, &extents);
        bytes.extend(b"abc");
        bytes.extend([b'x'; 1000]);
        bytes.extend_from_slice(padding_of(1003));
        bytes.extend_from_slice(&END);
        let mut wanted = vec![0; 20_000];
        wanted[4096..4099].copy_from_slice(b"abc");
        wanted[9000..10_000].fill(b'x');
        assert_eq!(read(&bytes), vec![(header, wanted)]);
    }

    #[test]
    fn sizes_beyond_eight_gibibytes() {
        for size in [OCTAL_11, OCTAL_11 + 1, 1 << 40] {
            let header = plain(b"big", HeaderKind::File { size });
            let limits = Limits { max_stream_bytes: u64::MAX, ..Limits::default() };
            let bytes = encode(&header);
            let mut reader = Reader::new(&bytes[..], &limits);
            assert_eq!(reader.next_entry().unwrap(), Some(header));
        }
    }

    #[test]
    fn gnu_tar_agrees() {
        let mut bytes = Vec::new();
        let long = [b'n'; 180];
        for (path, kind) in [
            (&b"d/"[..], HeaderKind::Directory),
            (&long[..], HeaderKind::File { size: 0 }),
            (b"d/link", HeaderKind::Symlink { target: [b't'; 150].to_vec() }),
        ] {
            bytes.extend(encode(&plain(path, kind)));
        }
        bytes.extend_from_slice(&END);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.tar");
        std::fs::write(&file, &bytes).unwrap();
        let listed = std::process::Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        assert!(text.contains(&"n".repeat(180)) && text.contains(&"t".repeat(150)), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
