//! Compressed streams, told by their first bytes: gzip, bzip2, xz, zstd, or plain.
//!
//! All decoders stream, and what a header may make them allocate is bounded.

use std::io::{self, BufRead, BufReader, Cursor, Read};

/// Largest window of a zstd frame: 2^27, what `zstd` accepts without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Most memory an xz stream may ask for, in KiB: `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// Buffer in front of a decoder.
const BUFFER: usize = 128 << 10;

/// Decompresses a stream, if it is compressed.
pub(crate) fn decompress<'r>(
    reader: impl Read + Send + 'r,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let mut start = Vec::new();
    reader.by_ref().take(6).read_to_end(&mut start)?;
    let kind = start.clone();
    let reader = Cursor::new(start).chain(reader);
    Ok(match kind.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => {
            Box::new(bzip2::bufread::MultiBzDecoder::new(reader))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY_KIB))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd(reader)?,
        _ => Box::new(reader),
    })
}

fn zstd<'r>(reader: impl BufRead + Send + 'r) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut decoder = zstd::Decoder::with_buffer(reader)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(Box::new(decoder))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn compressed(program: &str, bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    #[test]
    fn what_the_usual_programs_write() {
        let text = b"some text, some text".repeat(3000);
        let mut streams = vec![text.clone(), zstd::encode_all(&text[..], 3).unwrap()];
        for program in ["gzip", "bzip2", "xz"] {
            // Not on every host.
            if Command::new(program).arg("--version").output().is_ok() {
                streams.push(compressed(program, &text));
            }
        }
        assert!(streams.len() >= 3);
        for stream in streams {
            let mut out = Vec::new();
            decompress(&stream[..]).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, text);
            if stream != text {
                let cut = &stream[..stream.len() - 9];
                let read = decompress(cut).and_then(|mut stream| stream.read_to_end(&mut out));
                assert!(read.is_err(), "a cut stream is read");
            }
        }
    }
}
