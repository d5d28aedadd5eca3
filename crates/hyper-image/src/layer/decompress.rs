//! A layer's compression, read from its first bytes: media types are often wrong about it, and `docker load` ignores
//! them too.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Largest window a zstd frame may ask for: 2^27 = 128 MiB, what `zstd` itself accepts without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// From the first bytes.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A skippable frame may come first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// What a media type of an OCI layer ends with.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }
}

/// A stream whose first bytes were looked at.
type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// A decompressed stream.
pub(crate) enum Decompress<R: BufRead> {
    None(Peeked<R>),
    Gzip(Box<MultiGzDecoder<Peeked<R>>>),
    Zstd(Box<zstd::Decoder<'static, Peeked<R>>>),
}

impl<R: BufRead> Decompress<R> {
    /// Detects the compression of `reader`.
    pub(crate) fn new(mut reader: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(4);
        reader.by_ref().take(4).read_to_end(&mut start)?;
        let compression = Compression::of(&start);
        let reader = io::Cursor::new(start).chain(reader);
        Ok(match compression {
            Compression::None => Self::None(reader),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(reader))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(reader)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }
}

impl<R: BufRead> Read for Decompress<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn decompress(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompress::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn all_kinds() {
        let text = b"some text, some text, some text".repeat(1000);
        assert_eq!(decompress(&text).unwrap(), text);
        assert_eq!(decompress(&gzip(&text)).unwrap(), text);
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        assert_eq!(decompress(&zstd).unwrap(), text);
        // Several members or frames are one stream.
        assert_eq!(decompress(&[gzip(b"a"), gzip(b"b")].concat()).unwrap(), b"ab");
        let frames =
            [zstd::encode_all(&b"a"[..], 1).unwrap(), zstd::encode_all(&b"b"[..], 1).unwrap()];
        assert_eq!(decompress(&frames.concat()).unwrap(), b"ab");
        assert_eq!(decompress(b"").unwrap(), b"");
    }

    #[test]
    fn truncation_is_an_error() {
        let text = b"some text, some text, some text".repeat(1000);
        for whole in [gzip(&text), zstd::encode_all(&text[..], 3).unwrap()] {
            assert!(decompress(&whole[..whole.len() - 5]).is_err());
        }
    }
}
