//! Moves bytes between the user's stdio and a hijacked connection.
//!
//! End of the user's stdin half-closes the connection; output goes on until the server closes it.
//! Frames are Docker's stdcopy: `[stream][0 0 0][length, big endian]`.

use std::io::{Read, Write};

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::client::Hijacked;

const CHUNK: usize = 64 << 10;
/// Longest frame accepted from hyperd.
const MAX_FRAME: usize = 16 << 20;

/// Which of the user's streams take part.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Runs until the server closes the connection: then all output has been written.
pub async fn copy(hijacked: Hijacked, wanted: Wanted) -> anyhow::Result<()> {
    let (reader, writer) = hijacked.stream.into_split();
    let input = tokio::spawn(send_input(writer, wanted.stdin));
    let result = receive_output(reader, hijacked.early, hijacked.framed, wanted).await;
    input.abort();
    result
}

async fn send_input(mut writer: OwnedWriteHalf, wanted: bool) {
    if !wanted {
        // Kept open: closing it would look like a client that left.
        std::future::pending::<()>().await;
    }
    let (sender, mut chunks) = mpsc::channel::<Bytes>(4);
    // A thread, because reading a terminal cannot be cancelled; it ends with the process.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        while let Ok(length) = stdin.read(&mut buffer) {
            if length == 0
                || sender.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err()
            {
                return;
            }
        }
    });
    while let Some(chunk) = chunks.recv().await {
        if writer.write_all(&chunk).await.is_err() {
            return;
        }
    }
    // The process may have gone before its stdin ended.
    let _ = writer.shutdown().await;
    std::future::pending::<()>().await;
}

async fn receive_output(
    mut reader: OwnedReadHalf,
    early: Bytes,
    framed: bool,
    wanted: Wanted,
) -> anyhow::Result<()> {
    let mut buffer = BytesMut::from(&early[..]);
    loop {
        if framed {
            take_frames(&mut buffer, wanted)?;
        } else if !buffer.is_empty() {
            if wanted.stdout {
                write_to(1, &buffer)?;
            }
            buffer.clear();
        }
        buffer.reserve(CHUNK);
        if reader.read_buf(&mut buffer).await.context("read the container's output")? == 0 {
            break;
        }
    }
    if framed && !buffer.is_empty() {
        bail!("the container's output was cut short inside a frame");
    }
    Ok(())
}

/// Writes all whole frames at the head of `buffer`.
pub fn take_frames(buffer: &mut BytesMut, wanted: Wanted) -> anyhow::Result<()> {
    while let Some((stream, payload)) = next_frame(buffer)? {
        match stream {
            2 if wanted.stderr => write_to(2, &payload)?,
            0 | 1 if wanted.stdout => write_to(1, &payload)?,
            _ => {}
        }
    }
    Ok(())
}

/// Takes one whole frame off the head of `buffer`: its stream and bytes. hyperd's own error, which
/// comes as a stream, is an error.
pub fn next_frame(buffer: &mut BytesMut) -> anyhow::Result<Option<(u8, BytesMut)>> {
    if buffer.len() < 8 {
        return Ok(None);
    }
    let stream = buffer[0];
    let length = u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
    let length = usize::try_from(length).context("frame length")?;
    if length > MAX_FRAME || stream > 3 {
        bail!("hyperd sent a malformed frame (stream {stream}, {length} bytes)");
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    let payload = buffer.split_to(length);
    if stream == 3 {
        bail!("{}", String::from_utf8_lossy(&payload));
    }
    Ok(Some((stream, payload)))
}

fn write_to(descriptor: u8, bytes: &[u8]) -> anyhow::Result<()> {
    if descriptor == 2 {
        std::io::stderr().lock().write_all(bytes).context("write to standard error")
    } else {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).context("write to standard output")
    }
}
