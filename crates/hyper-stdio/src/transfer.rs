//! A container's files between a client of the pod socket and who reads or writes them.
//!
//! ```text
//!  read:   source ──► frames of stream 1 ──► client      then the end, or a fault as stream 2;
//!                                                        before the end perhaps a note as stream 3
//!  write:  client ──► frames ──► sink                    the same
//! ```
//! Each side waits for the other. Nothing of the bytes is looked at.

use std::io;
use std::time::Duration;

use hyper_task::pod::FileFault;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::attach::{FrameReader, FrameWriter};

const BLOCK: usize = 64 << 10;
/// Characters of a fault's message: there are names of files in it, and a frame is bounded.
const MESSAGE: usize = 4096;
/// Stream of a line for people about a transfer that went well.
pub const NOTE: u8 = 3;
/// For sides that may take as long as they want.
pub const FOREVER: Duration = Duration::MAX;

/// How far a transfer went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pumped {
    /// All there was.
    All,
    /// The sink takes no more, and says by itself why.
    Refused,
    /// The other side did nothing for as long as it may.
    Stalled,
}

/// Sends what `source` has until its end, well or not; it may be silent for `idle`.
///
/// # Errors
/// The client is gone.
pub async fn pump_out(
    mut source: impl AsyncRead + Unpin,
    writer: &mut FrameWriter<OwnedWriteHalf>,
    mut client: OwnedReadHalf,
    idle: Duration,
) -> io::Result<Pumped> {
    let mut buffer = vec![0; BLOCK];
    let mut said = [0];
    loop {
        let read = tokio::select! {
            read = timeout(idle, source.read(&mut buffer)) => read,
            // It has nothing to say: this is its end.
            _ = client.read(&mut said) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        match read {
            Err(_) => return Ok(Pumped::Stalled),
            // Why a source failed is told beside it.
            Ok(Ok(0) | Err(_)) => return Ok(Pumped::All),
            Ok(Ok(read)) => {
                writer.send(1, &buffer[..read]).await?;
                writer.flush().await?;
            }
        }
    }
}

/// Gives `sink` what the client sends, until it has sent all; a write may take `idle`. The sink's
/// end is the caller's to tell.
///
/// # Errors
/// The client is gone before it has sent all.
pub async fn pump_in(
    client: OwnedReadHalf,
    sink: &mut (impl AsyncWrite + Unpin),
    idle: Duration,
) -> io::Result<Pumped> {
    let mut reader = FrameReader::new(client);
    loop {
        let frame = reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if frame.data.is_empty() {
            return Ok(Pumped::All);
        }
        match timeout(idle, sink.write_all(&frame.data)).await {
            Err(_) => return Ok(Pumped::Stalled),
            Ok(Err(_)) => return Ok(Pumped::Refused),
            Ok(Ok(())) => {}
        }
    }
}

/// Tells the client how it went, with a line for people if there is one, which is the last it hears.
///
/// # Errors
/// It is gone.
pub async fn finish(
    writer: &mut FrameWriter<OwnedWriteHalf>,
    outcome: Result<Option<String>, FileFault>,
) -> io::Result<()> {
    match outcome {
        Ok(note) => {
            if let Some(note) = note {
                let note: String = note.chars().take(MESSAGE).collect();
                writer.send(NOTE, note.as_bytes()).await?;
            }
            writer.end(1).await?;
        }
        Err(mut fault) => {
            fault.message = fault.message.chars().take(MESSAGE).collect();
            writer.send(2, &serde_json::to_vec(&fault)?).await?;
        }
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use hyper_task::pod::FaultKind;
    use tokio::net::UnixStream;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_source_is_sent_to_its_end_and_a_long_fault_is_cut() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (client, to_client) = ours.into_split();
        let mut writer = FrameWriter::new(to_client);
        let bytes = vec![7; 100_000];
        let pumped = async {
            let pumped = pump_out(&bytes[..], &mut writer, client, FOREVER).await.unwrap();
            assert_eq!(pumped, Pumped::All);
            let message = "é".repeat(10_000);
            finish(&mut writer, Err(FileFault { kind: FaultKind::Other, message })).await.unwrap();
        };
        let heard = async {
            let mut reader = FrameReader::new(theirs);
            let (mut count, mut said) = (0, Vec::new());
            while let Some(frame) = reader.next().await.unwrap() {
                match frame.stream {
                    1 => count += frame.data.len(),
                    _ => said.extend_from_slice(&frame.data),
                }
            }
            let fault: FileFault = serde_json::from_slice(&said).unwrap();
            (count, fault.message.chars().count())
        };
        assert_eq!(tokio::join!(pumped, heard).1, (100_000, MESSAGE));
    }

    #[tokio::test]
    async fn silence_and_clients_that_leave_end_a_transfer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (client, to_client) = ours.into_split();
        let mut writer = FrameWriter::new(to_client);
        let (source, _silent) = tokio::io::duplex(10);
        let pumped = pump_out(source, &mut writer, client, SOON).await.unwrap();
        assert_eq!(pumped, Pumped::Stalled);

        let (ours, gone) = UnixStream::pair().unwrap();
        let (source, _silent) = tokio::io::duplex(10);
        drop((theirs, gone));
        let (client, _) = ours.into_split();
        let error = pump_out(source, &mut writer, client, FOREVER).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_sink_may_stall_and_refuse_and_half_an_archive_is_an_error() {
        for (room, wanted) in [(10, Pumped::Stalled), (1000, Pumped::All)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (mut sink, _other) = tokio::io::duplex(room);
            let mut writer = FrameWriter::new(theirs);
            writer.send(0, &[1; 100]).await.unwrap();
            writer.end(0).await.unwrap();
            writer.flush().await.unwrap();
            let (client, _write) = ours.into_split();
            assert_eq!(pump_in(client, &mut sink, SOON).await.unwrap(), wanted);
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut sink, other) = tokio::io::duplex(10);
        drop(other);
        let mut writer = FrameWriter::new(theirs);
        writer.send(0, &[1; 100]).await.unwrap();
        writer.flush().await.unwrap();
        let (client, _write) = ours.into_split();
        assert_eq!(pump_in(client, &mut sink, SOON).await.unwrap(), Pumped::Refused);

        let (ours, theirs) = UnixStream::pair().unwrap();
        let (client, _write) = ours.into_split();
        drop(theirs);
        let error = pump_in(client, &mut tokio::io::sink(), SOON).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
