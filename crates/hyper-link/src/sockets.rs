//! Who connects to a socket of the host in a container, on a stream of the socket's own: the agent
//! says that somebody has, the supervisor on which new stream the bytes are to be carried.
//!
//! ```text
//! agent ──► supervisor   number: u32 BE                      (somebody connected)
//! agent ◄── supervisor   number: u32 BE │ stream: u32 BE     (0: nobody answers there)
//! ```
//! The supervisor reads no more than it serves at a time, so a guest that floods stops at its credit.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{StreamReader, StreamWriter};

/// Bytes carried at a time, in each direction.
const BLOCK: usize = 32 << 10;

/// The number of the next connection; `None` at the end of the stream.
///
/// # Errors
/// The stream's; it ends within a number.
pub async fn read_connected(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<u32>> {
    let mut number = [0; 4];
    let first = stream.read(&mut number).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut number[first..]).await?;
    Ok(Some(u32::from_be_bytes(number)))
}

/// Says that connection `number` is there.
///
/// # Errors
/// The stream's.
pub async fn write_connected(
    stream: &mut (impl AsyncWrite + Unpin),
    number: u32,
) -> io::Result<()> {
    stream.write_all(&number.to_be_bytes()).await
}

/// What became of a connection: its number, and the stream that carries it.
///
/// # Errors
/// The stream's, or its end.
pub async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u32, Option<u32>)> {
    let number = stream.read_u32().await?;
    let id = stream.read_u32().await?;
    Ok((number, (id != 0).then_some(id)))
}

/// Says what became of connection `number`.
///
/// # Errors
/// The stream's.
pub async fn write_answer(
    stream: &mut (impl AsyncWrite + Unpin),
    number: u32,
    id: Option<u32>,
) -> io::Result<()> {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes[4..].copy_from_slice(&id.unwrap_or(0).to_be_bytes());
    stream.write_all(&bytes).await
}

/// Carries a connection's bytes over its stream until both sides have said all, or one has gone: then the
/// other is told that it was not all.
pub async fn carry(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    reader: StreamReader,
    writer: StreamWriter,
) {
    let mut stream = tokio::io::join(reader, writer);
    let carried =
        tokio::io::copy_bidirectional_with_sizes(&mut socket, &mut stream, BLOCK, BLOCK).await;
    if carried.is_err() {
        let (_, writer) = stream.into_inner();
        writer.reset();
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn connections_and_answers_arrive_whole_and_a_cut_one_is_an_error() {
        let mut bytes = Vec::new();
        write_connected(&mut bytes, 7).await.unwrap();
        let mut stream = &bytes[..];
        assert_eq!(read_connected(&mut stream).await.unwrap(), Some(7));
        assert_eq!(read_connected(&mut stream).await.unwrap(), None);
        assert!(read_connected(&mut &bytes[..3]).await.is_err());
        let mut bytes = Vec::new();
        write_answer(&mut bytes, 7, Some(9)).await.unwrap();
        write_answer(&mut bytes, 8, None).await.unwrap();
        let mut stream = &bytes[..];
        assert_eq!(read_answer(&mut stream).await.unwrap(), (7, Some(9)));
        assert_eq!(read_answer(&mut stream).await.unwrap(), (8, None));
        assert!(read_answer(&mut stream).await.is_err());
    }
}
