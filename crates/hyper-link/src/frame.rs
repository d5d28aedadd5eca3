//! Wire form of a frame: eight bytes of header, then the payload.
//!
//! ```text
//!  0        4      5          8
//!  | stream | kind | length   | payload …     all little-endian; length is 24 bits
//! ```
//!
//! Parsing is a pure function over borrowed bytes: no allocation, no panic, whatever the bytes.

/// Length of the header in bytes.
pub const HEADER: usize = 8;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The last (or only) piece of a control message. Stream 0 only.
    Message = 1,
    /// A piece of a control message, more follow. Stream 0 only.
    Part = 2,
    /// The supervisor announces a stream. Ids only rise.
    Open = 3,
    /// Bytes of a stream, within the receiver's window.
    Data = 4,
    /// The sender sends no more on this stream; what it sent is complete.
    Eof = 5,
    /// The sender sends no more on this stream; what it sent is not complete.
    Reset = 6,
    /// The sender reads no more from this stream; answered by `Reset` unless already ended.
    Stop = 7,
    /// The peer may send so many more bytes (u32) on this stream.
    Credit = 8,
}

impl Kind {
    /// Name for error texts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Part => "part",
            Self::Open => "open",
            Self::Data => "data",
            Self::Eof => "eof",
            Self::Reset => "reset",
            Self::Stop => "stop",
            Self::Credit => "credit",
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Message,
            2 => Self::Part,
            3 => Self::Open,
            4 => Self::Data,
            5 => Self::Eof,
            6 => Self::Reset,
            7 => Self::Stop,
            8 => Self::Credit,
            _ => return None,
        })
    }

    /// Payload lengths this kind may have.
    const fn allows(self, len: usize) -> bool {
        match self {
            Self::Message => len <= MAX_PAYLOAD,
            Self::Part | Self::Data => len > 0 && len <= MAX_PAYLOAD,
            Self::Open | Self::Eof | Self::Reset | Self::Stop => len == 0,
            Self::Credit => len == 4,
        }
    }
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame kind {kind} for stream {stream} is unknown")]
    Kind { kind: u8, stream: u32 },
    #[error("{kind} frame for stream {stream} has a forbidden length of {len} bytes")]
    Length { kind: &'static str, stream: u32, len: usize },
    #[error("{kind} frame is for stream {stream}: control is stream 0, and only control")]
    Stream { kind: &'static str, stream: u32 },
}

/// One frame, borrowing its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub stream: u32,
    pub kind: Kind,
    pub payload: &'a [u8],
}

/// Reads the frame at the head of `bytes`, and the number of bytes it takes.
///
/// `None` when more bytes are needed; a bad header is an error as soon as it is complete.
///
/// # Errors
/// Unknown kind, a length the kind forbids, or a stream the kind forbids.
pub fn parse_frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [s0, s1, s2, s3, kind, l0, l1, l2] = *header;
    let stream = u32::from_le_bytes([s0, s1, s2, s3]);
    let len = u32::from_le_bytes([l0, l1, l2, 0]) as usize;
    let kind = Kind::from_byte(kind).ok_or(FrameError::Kind { kind, stream })?;
    if matches!(kind, Kind::Message | Kind::Part) != (stream == 0) {
        return Err(FrameError::Stream { kind: kind.name(), stream });
    }
    if !kind.allows(len) {
        return Err(FrameError::Length { kind: kind.name(), stream, len });
    }
    Ok(rest.get(..len).map(|payload| (Frame { stream, kind, payload }, HEADER + len)))
}

/// Appends a header to `out`. `len` must be at most [`MAX_PAYLOAD`].
pub(crate) fn put_header(out: &mut Vec<u8>, stream: u32, kind: Kind, len: usize) {
    debug_assert!(kind.allows(len), "{kind:?} of {len} bytes");
    let [l0, l1, l2, _] = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let [s0, s1, s2, s3] = stream.to_le_bytes();
    out.extend_from_slice(&[s0, s1, s2, s3, kind as u8, l0, l1, l2]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for (kind, stream, payload) in [
            (Kind::Message, 0, &b"{}"[..]),
            (Kind::Part, 0, b"x"),
            (Kind::Open, 7, b""),
            (Kind::Data, 7, b"abc"),
            (Kind::Eof, 7, b""),
            (Kind::Reset, u32::MAX, b""),
            (Kind::Stop, 1, b""),
            (Kind::Credit, 1, &[1, 2, 3, 4]),
        ] {
            let mut wire = Vec::new();
            put_header(&mut wire, stream, kind, payload.len());
            wire.extend_from_slice(payload);
            for cut in 0..wire.len() {
                assert_eq!(parse_frame(&wire[..cut]), Ok(None));
            }
            wire.push(0xee);
            let (frame, used) = parse_frame(&wire).unwrap().unwrap();
            assert_eq!(frame, Frame { stream, kind, payload });
            assert_eq!(used, wire.len() - 1);
        }
    }

    #[test]
    fn bad_headers_are_refused_before_their_payload_arrives() {
        assert_eq!(
            parse_frame(&[1, 0, 0, 0, 9, 0, 0, 0]),
            Err(FrameError::Kind { kind: 9, stream: 1 })
        );
        assert_eq!(
            parse_frame(&[1, 0, 0, 0, 4, 1, 0, 1]),
            Err(FrameError::Length { kind: "data", stream: 1, len: 65537 })
        );
        assert_eq!(
            parse_frame(&[0, 0, 0, 0, 4, 1, 0, 0]),
            Err(FrameError::Stream { kind: "data", stream: 0 })
        );
        assert_eq!(
            parse_frame(&[2, 0, 0, 0, 1, 1, 0, 0]),
            Err(FrameError::Stream { kind: "message", stream: 2 })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_to_something_inside_them(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((frame, used))) = parse_frame(&bytes) {
                prop_assert!(used <= bytes.len());
                prop_assert_eq!(frame.payload.len() + HEADER, used);
            }
        }
    }
}
