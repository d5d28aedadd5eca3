//! A stream's compression, read from its first bytes: media types are often wrong about it, and `docker load` ignores
//! them too. All decoders stream, and what a header may make them allocate is bounded.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Largest window a zstd frame may ask for: 2^27 = 128 MiB, what `zstd` itself accepts without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Most memory an xz stream may ask for, in KiB: `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// First bytes that are looked at.
const START: u64 = 6;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Compression {
    /// From the first bytes.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A skippable frame may come first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }

    /// What a media type of an OCI layer ends with.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
            Self::Bzip2 => "+bzip2",
            Self::Xz => "+xz",
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
    Bzip2(Box<bzip2::bufread::MultiBzDecoder<Peeked<R>>>),
    Xz(Box<lzma_rust2::XzReader<Peeked<R>>>),
}

impl<R: BufRead> Decompress<R> {
    /// Detects the compression of `reader`.
    pub(crate) fn new(mut reader: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(START as usize);
        reader.by_ref().take(START).read_to_end(&mut start)?;
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
            Compression::Bzip2 => {
                Self::Bzip2(Box::new(bzip2::bufread::MultiBzDecoder::new(reader)))
            }
            Compression::Xz => {
                let decoder = lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY_KIB);
                Self::Xz(Box::new(decoder))
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
            Self::Bzip2(reader) => reader.read(buffer),
            Self::Xz(reader) => reader.read(buffer),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

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

    /// By the program of that name; `None` where it is not installed.
    fn compressed(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        Some(child.wait_with_output().unwrap().stdout)
    }

    #[test]
    fn what_bzip2_and_xz_write_and_that_cut_off() {
        let text = b"some text, some text".repeat(3000);
        for (program, kind) in [("bzip2", Compression::Bzip2), ("xz", Compression::Xz)] {
            let Some(stream) = compressed(program, &text) else { continue };
            assert_eq!(Compression::of(&stream), kind);
            assert_eq!(decompress(&stream).unwrap(), text);
            assert_eq!(decompress(&stream.repeat(2)).unwrap(), text.repeat(2));
            assert!(decompress(&stream[..stream.len() - 9]).is_err(), "cut {program}");
        }
    }
}
