//! The fixed 512-byte header block: fields, numbers, checksum.
//!
//! Formats: v7, POSIX ustar (`prefix` field), star's variant of it, GNU (base-256 numbers, sparse map).
//! Layout after POSIX pax(1), "ustar Interchange Format", and GNU tar's manual, "Basic Tar Format".

use super::sparse::Segment;
use crate::index::Timestamp;

/// Size of a header and the unit to which contents are padded.
pub(super) const BLOCK: usize = 512;

/// One header block, not yet interpreted.
pub(super) struct RawHeader(pub(super) [u8; BLOCK]);

/// A number that does not fit its field's meaning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadNumber;

impl RawHeader {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// The sum of all bytes with the checksum field as spaces; some old programs summed signed bytes.
    pub(super) fn checksum_holds(&self) -> bool {
        let Ok(stored) = self.number(148..156) else { return false };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (position, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&position) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        stored == unsigned || stored == signed
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the `prefix` field where the format has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[0..100]);
        let is_ustar = &self.0[257..263] == b"ustar\0";
        let is_star = is_ustar && &self.0[508..512] == b"tar\0";
        let prefix = match (is_ustar, is_star) {
            (true, true) => until_nul(&self.0[345..476]),
            (true, false) => until_nul(&self.0[345..500]),
            (false, _) => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, BadNumber> {
        // The file type bits some writers add above the permissions are in the type flag already.
        let bits = self.number(100..108)? & 0o7777;
        u16::try_from(bits).map_err(|_| BadNumber)
    }

    pub(super) fn uid(&self) -> Result<u32, BadNumber> {
        u32::try_from(self.number(108..116)?).map_err(|_| BadNumber)
    }

    pub(super) fn gid(&self) -> Result<u32, BadNumber> {
        u32::try_from(self.number(116..124)?).map_err(|_| BadNumber)
    }

    pub(super) fn size(&self) -> Result<u64, BadNumber> {
        u64::try_from(self.number(124..136)?).map_err(|_| BadNumber)
    }

    pub(super) fn mtime(&self) -> Result<Timestamp, BadNumber> {
        Ok(Timestamp { seconds: self.number(136..148)?, nanoseconds: 0 })
    }

    /// Major and minor device number.
    pub(super) fn device(&self) -> Result<(u32, u32), BadNumber> {
        let major = u32::try_from(self.number(329..337)?).map_err(|_| BadNumber)?;
        let minor = u32::try_from(self.number(337..345)?).map_err(|_| BadNumber)?;
        Ok((major, minor))
    }

    /// Old GNU sparse: the real size, the first four segments, and whether a block with more follows.
    pub(super) fn gnu_sparse(&self) -> Result<(u64, Vec<Segment>, bool), BadNumber> {
        let real = u64::try_from(self.number(483..495)?).map_err(|_| BadNumber)?;
        Ok((real, self.segments(386, 4)?, self.0[482] != 0))
    }

    /// Old GNU sparse: 21 more segments, and whether another such block follows.
    pub(super) fn gnu_sparse_more(&self) -> Result<(Vec<Segment>, bool), BadNumber> {
        Ok((self.segments(0, 21)?, self.0[504] != 0))
    }

    fn segments(&self, start: usize, count: usize) -> Result<Vec<Segment>, BadNumber> {
        let mut segments = Vec::new();
        for at in (0..count).map(|index| start + index * 24) {
            if self.0[at] == 0 {
                break;
            }
            let offset = u64::try_from(self.number(at..at + 12)?).map_err(|_| BadNumber)?;
            let len = u64::try_from(self.number(at + 12..at + 24)?).map_err(|_| BadNumber)?;
            segments.push(Segment { offset, len });
        }
        Ok(segments)
    }

    /// A number in octal digits, or in base 256 (two's complement) if the first bit of the field is set.
    fn number(&self, field: std::ops::Range<usize>) -> Result<i64, BadNumber> {
        let bytes = &self.0[field];
        if bytes[0] & 0x80 == 0 {
            return octal(bytes);
        }
        let negative = bytes[0] & 0x40 != 0;
        let mut value = if negative { -1i64 } else { 0 };
        for (position, byte) in bytes.iter().enumerate() {
            let byte = if position == 0 && !negative { byte & 0x7f } else { *byte };
            value = value.checked_mul(256).ok_or(BadNumber)? | i64::from(byte);
        }
        Ok(value)
    }
}

fn octal(bytes: &[u8]) -> Result<i64, BadNumber> {
    let is_padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(first) = bytes.iter().position(|byte| !is_padding(byte)) else { return Ok(0) };
    let mut value = 0i64;
    for byte in bytes[first..].iter().take_while(|byte| !is_padding(byte)) {
        if !(b'0'..=b'7').contains(byte) {
            return Err(BadNumber);
        }
        value = value.checked_mul(8).ok_or(BadNumber)? + i64::from(byte - b'0');
    }
    Ok(value)
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(at: usize, bytes: &[u8]) -> RawHeader {
        let mut header = RawHeader([0; BLOCK]);
        header.0[at..at + bytes.len()].copy_from_slice(bytes);
        header
    }

    #[test]
    fn numbers() {
        assert_eq!(with(124, b"00000000644\0").size(), Ok(0o644));
        assert_eq!(with(124, b"   644 \0").size(), Ok(0o644));
        assert_eq!(with(124, b"").size(), Ok(0));
        assert_eq!(with(124, b"0000000069\0").size(), Err(BadNumber));
        assert_eq!(with(124, &[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]).size(), Ok((2 << 32) + 1));
        assert_eq!(with(124, &[0x80, 0xff, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]).size(), Err(BadNumber));
        assert_eq!(with(124, &[0xff; 12]).size(), Err(BadNumber), "negative size");
        assert_eq!(with(136, &[0xff; 12]).mtime().unwrap().seconds, -1);
        assert_eq!(
            with(108, &[0x80, 0, 0, 1, 0, 0, 0, 0]).uid(),
            Err(BadNumber),
            "uid over 32 bits"
        );
    }

    #[test]
    fn names() {
        let mut header = with(345, b"pre/fix");
        header.0[..4].copy_from_slice(b"name");
        assert_eq!(header.name(), b"name", "v7 has no prefix");
        header.0[257..263].copy_from_slice(b"ustar\0");
        assert_eq!(header.name(), b"pre/fix/name");
        header.0[257..265].copy_from_slice(b"ustar  \0");
        assert_eq!(header.name(), b"name", "GNU keeps times there");
    }
}
