//! `hyper.pod.v1` on the wire: JSON lines, then attach frames; both sides, everything bounded.
//!
//! ```text
//! client: call() ───────────────► one Answer
//!         attach() ─► Attached ─► FrameReader + FrameWriter
//! supervisor: read_call() ─► write_answer() ─► serve()
//! ```
//! A client keeps its sending side open for as long as it wants output: the end of it means that
//! the client is gone.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper_task::pod::{Answer, Call, FileFault, MAX_FRAME, MAX_LINE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::transfer::NOTE;
use crate::{Attachment, Wanted, socket};

/// How long an answer may take.
pub const DEADLINE: Duration = Duration::from_secs(10);
const HEADER: usize = 8;

/// Why a call to a supervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("supervisor at `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("supervisor at `{}` did not answer within {} s", path.display(), DEADLINE.as_secs())]
    Silent { path: PathBuf },
    /// The supervisor's words.
    #[error("{0}")]
    Refused(String),
    /// Files could not be read or written.
    #[error("{}", .0.message)]
    Fault(FileFault),
    #[error("supervisor at `{}` gave another answer than asked for", path.display())]
    Unexpected { path: PathBuf },
}

/// Asks the supervisor at `path` (`BUNDLE/pod.sock`) for anything but an attach.
///
/// # Errors
/// [`CallError`]; [`Answer::Error`] becomes [`CallError::Refused`].
pub async fn call(path: &Path, call: &Call) -> Result<Answer, CallError> {
    Ok(ask(path, call).await?.1)
}

/// Joins a process's streams.
///
/// # Errors
/// [`CallError`].
pub async fn attach(
    path: &Path,
    exec: Option<String>,
    wanted: Wanted,
) -> Result<(FrameReader<OwnedReadHalf>, FrameWriter<OwnedWriteHalf>), CallError> {
    let Wanted { stdin, stdout, stderr } = wanted;
    match ask(path, &Call::Attach { exec, stdin, stdout, stderr }).await? {
        (stream, Answer::Attached) => {
            let (read, write) = stream.into_split();
            Ok((FrameReader::new(read), FrameWriter::new(write)))
        }
        _ => Err(CallError::Unexpected { path: path.to_owned() }),
    }
}

/// Begins a transfer of files: [`Call::Read`] or [`Call::Write`].
///
/// # Errors
/// [`CallError`].
pub async fn transfer(
    path: &Path,
    call: &Call,
) -> Result<(FrameReader<OwnedReadHalf>, FrameWriter<OwnedWriteHalf>), CallError> {
    match ask(path, call).await? {
        (stream, Answer::Transferring) => {
            let (read, write) = stream.into_split();
            Ok((FrameReader::new(read), FrameWriter::new(write)))
        }
        _ => Err(CallError::Unexpected { path: path.to_owned() }),
    }
}

async fn ask(path: &Path, call: &Call) -> Result<(UnixStream, Answer), CallError> {
    let asked = async {
        let mut stream = socket::connect(path).await?;
        write_line(&mut stream, call).await?;
        let answer = read_line(&mut stream).await?;
        Ok((stream, answer))
    };
    match tokio::time::timeout(DEADLINE, asked).await {
        Err(_) => Err(CallError::Silent { path: path.to_owned() }),
        Ok(Err(source)) => Err(CallError::Io { path: path.to_owned(), source }),
        Ok(Ok((_, Answer::Error { message }))) => Err(CallError::Refused(message)),
        Ok(Ok((_, Answer::Fault(fault)))) => Err(CallError::Fault(fault)),
        Ok(Ok(answered)) => Ok(answered),
    }
}

/// Supervisor side: the client's one call.
///
/// # Errors
/// The stream's, or `InvalidData` for what is not a [`Call`].
pub async fn read_call(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Call> {
    read_line(stream).await
}

/// Supervisor side: the answer.
///
/// # Errors
/// The stream's.
pub async fn write_answer(
    stream: &mut (impl AsyncWrite + Unpin),
    answer: &Answer,
) -> io::Result<()> {
    write_line(stream, answer).await
}

/// Supervisor side, after [`Answer::Attached`]: carries frames until the output has ended and is
/// sent, or the client is gone.
///
/// # Errors
/// The stream's; a client that just disconnects is no error.
pub async fn serve(
    mut attachment: Attachment,
    read: impl AsyncRead + Unpin,
    write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut writer = FrameWriter::new(write);
    let mut reader = FrameReader::new(read);
    let stdin = attachment.stdin.take();
    let output = async {
        while let Some((stream, data)) = attachment.output.recv().await {
            writer.send(stream.number(), &data).await?;
            if attachment.output.is_empty() {
                writer.flush().await?;
            }
        }
        writer.shutdown().await
    };
    let input = async {
        while let Some(frame) = reader.next().await? {
            match &stdin {
                Some(stdin) if frame.data.is_empty() => stdin.close().await,
                // Closed stdin swallows: the process no longer reads.
                Some(stdin) => _ = stdin.write(frame.data).await,
                None => {}
            }
        }
        Ok(())
    };
    let result = tokio::select! { result = output => result, result = input => result };
    match result {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// One frame: stream 0 stdin (empty: its end), 1 stdout, 2 stderr; of a transfer also [`NOTE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub stream: u8,
    pub data: Bytes,
}

/// Reads frames of at most [`MAX_FRAME`] bytes.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: BytesMut::new() }
    }

    /// The next frame; `None` at the end. Safe to cancel.
    ///
    /// # Errors
    /// The stream's; `InvalidData` for a frame that is too long or of another stream;
    /// `UnexpectedEof` inside a frame.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<HEADER>() {
                let [stream, _, _, _, length @ ..] = *header;
                let length = u32::from_be_bytes(length) as usize;
                if stream > NOTE || length > MAX_FRAME {
                    let what = format!("frame of stream {stream} with {length} bytes");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                if self.buffer.len() >= HEADER + length {
                    let data = self.buffer.split_to(HEADER + length).freeze().slice(HEADER..);
                    return Ok(Some(Frame { stream, data }));
                }
            }
            self.buffer.reserve(HEADER + MAX_FRAME);
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }
}

/// Writes frames; longer data is cut into several.
#[derive(Debug)]
pub struct FrameWriter<W: AsyncWrite> {
    inner: BufWriter<W>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub fn new(inner: W) -> Self {
        Self { inner: BufWriter::with_capacity(MAX_FRAME, inner) }
    }

    /// Sends `data` on `stream`. Nothing is sent for empty data: see [`FrameWriter::end_stdin`].
    ///
    /// # Errors
    /// The stream's.
    pub async fn send(&mut self, stream: u8, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(MAX_FRAME) {
            self.frame(stream, part).await?;
        }
        Ok(())
    }

    /// Client side: bytes for the process's stdin, sent at once.
    ///
    /// # Errors
    /// The stream's.
    pub async fn stdin(&mut self, data: &[u8]) -> io::Result<()> {
        self.send(0, data).await?;
        self.flush().await
    }

    /// Client side: the process reads end-of-file.
    ///
    /// # Errors
    /// The stream's.
    pub async fn end_stdin(&mut self) -> io::Result<()> {
        self.end(0).await
    }

    /// Sends the empty frame that ends `stream`.
    ///
    /// # Errors
    /// The stream's.
    pub async fn end(&mut self, stream: u8) -> io::Result<()> {
        self.frame(stream, &[]).await?;
        self.flush().await
    }

    /// # Errors
    /// The stream's.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.inner.flush().await
    }

    /// Flushes and ends the sending side.
    ///
    /// # Errors
    /// The stream's.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.inner.shutdown().await
    }

    async fn frame(&mut self, stream: u8, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut header = [stream, 0, 0, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&length.to_be_bytes());
        self.inner.write_all(&header).await?;
        self.inner.write_all(data).await
    }
}

async fn write_line(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

/// Byte by byte: what follows the line belongs to the frames.
async fn read_line<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return Ok(serde_json::from_slice(&line)?);
        }
        if line.len() == MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "line over 1 MiB"));
        }
        line.push(byte);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Hub, Stream};

    const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true };

    async fn accept(listener: tokio::net::UnixListener, hub: &Hub) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let Call::Attach { stdin, stdout, stderr, .. } = read_call(&mut stream).await.unwrap()
        else {
            panic!("not an attach")
        };
        let attachment = hub.attach(Wanted { stdin, stdout, stderr });
        write_answer(&mut stream, &Answer::Attached).await.unwrap();
        let (read, write) = stream.into_split();
        serve(attachment, read, write).await.unwrap();
    }

    #[tokio::test]
    async fn an_attached_client_sees_all_and_feeds_stdin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(120)).join("pod.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let listener = socket::bind(&path).unwrap();
        let hub = Hub::new(None).unwrap();
        let text = vec![b'y'; 300_000];
        let client = async {
            let (mut output, mut input) = attach(&path, None, ALL).await.unwrap();
            input.stdin(b"hello").await.unwrap();
            input.end_stdin().await.unwrap();
            let mut stdin = Vec::new();
            hub.feed_stdin(&mut stdin).await.unwrap();
            assert_eq!(stdin, b"hello");
            let pump = async {
                hub.pump(Stream::Stdout, &text[..]).await.unwrap();
                hub.pump(Stream::Stderr, &b"e"[..]).await.unwrap();
                hub.finish().await;
            };
            let read = async {
                let mut streams = [vec![], vec![], vec![]];
                while let Some(frame) = output.next().await.unwrap() {
                    streams[usize::from(frame.stream)].extend_from_slice(&frame.data);
                }
                streams
            };
            let ((), streams) = tokio::join!(pump, read);
            assert!(streams[1] == text && streams[2] == b"e");
        };
        tokio::join!(accept(listener, &hub), client);
    }

    #[tokio::test]
    async fn bad_frames_are_refused() {
        let too_long = [1, 0, 0, 0, 0, 1, 0, 1];
        let error = FrameReader::new(&too_long[..]).next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let other_stream = [4, 0, 0, 0, 0, 0, 0, 0];
        assert!(FrameReader::new(&other_stream[..]).next().await.is_err());
        let cut = [1, 0, 0, 0, 0, 0, 0, 9, b'x'];
        let error = FrameReader::new(&cut[..]).next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(FrameReader::new(&[][..]).next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_refusal_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.sock");
        let listener = socket::bind(&path).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_call(&mut stream).await.unwrap();
            write_answer(&mut stream, &Answer::Error { message: "no exec `x`".into() })
                .await
                .unwrap();
        };
        let ((), answer) = tokio::join!(server, call(&path, &Call::Phases));
        assert!(matches!(answer, Err(CallError::Refused(why)) if why == "no exec `x`"));
    }
}
