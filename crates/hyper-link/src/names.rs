//! Questions to the resolver, on a stream of their own: messages of DNS as they are (RFC 1035), each
//! with a number that its answer repeats.
//!
//! ```text
//! number: u32 BE (bit 31: asked over TCP) │ length: u16 BE │ message
//! ```
//! The supervisor reads no more than it resolves, so a guest that floods stops at its credit.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// In a number: the question came over TCP, so the answer may be long.
pub const OVER_TCP: u32 = 1 << 31;

/// The next message; `None` at the end of the stream.
///
/// # Errors
/// The stream's; it ends within a message.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u32, Vec<u8>)>> {
    let mut header = [0; 6];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[first..]).await?;
    let [a, b, c, d, high, low] = header;
    let mut message = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    stream.read_exact(&mut message).await?;
    Ok(Some((u32::from_be_bytes([a, b, c, d]), message)))
}

/// Writes a message of at most 65535 bytes.
///
/// # Errors
/// The stream's; the message is longer.
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    number: u32,
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(6 + message.len());
    bytes.extend(number.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_and_a_cut_one_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7 | OVER_TCP, b"question").await.unwrap();
        write(&mut bytes, 8, b"").await.unwrap();
        let mut stream = &bytes[..];
        assert_eq!(read(&mut stream).await.unwrap(), Some((7 | OVER_TCP, b"question".to_vec())));
        assert_eq!(read(&mut stream).await.unwrap(), Some((8, Vec::new())));
        assert_eq!(read(&mut stream).await.unwrap(), None);
        assert!(read(&mut &bytes[..9]).await.is_err());
        assert!(write(&mut bytes, 1, &vec![0; 1 << 16]).await.is_err());
    }
}
