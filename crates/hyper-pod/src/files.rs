//! A container's files between a client of the pod socket and the agent.
//!
//! ```text
//!  read:   agent ══stream══► here ──frames──► client      the agent's reply comes last
//!  write:  client ──frames──► here ══stream══► agent      the same
//! ```
//! Not through the actor: a transfer may take hours, and changes nothing there. Each side waits for
//! the other; a client that is gone ends the stream, and with it the agent's work. Nothing of the
//! bytes is looked at.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_link::message::{
    FailureKind, ProcessInfo, ReadFiles as Wanted, Reply, Request, WriteFiles,
};
use hyper_link::{StreamReader, StreamWriter};
use hyper_stdio::attach::{FrameReader, FrameWriter, write_answer};
use hyper_task::pod::{self as wire, Answer, FaultKind, FileFault, ReadFiles};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::guest::Guest;
use crate::{Pod, PodError, chain};

/// To look at one path.
const QUICK: Duration = Duration::from_secs(30);
/// How long the agent may neither send nor take a byte: disks may be slow, hosts overloaded.
const IDLE: Duration = Duration::from_secs(180);
/// A whole transfer; what really bounds it is [`IDLE`].
const TRANSFER: Duration = Duration::from_secs(7 * 24 * 3600);
const BLOCK: usize = 64 << 10;

/// Answers [`wire::Call::Stat`].
pub(crate) async fn stat(pod: &Pod, container: String, path: String) -> Answer {
    let asked = async {
        let guest = pod.files(&container).await?;
        guest.call(&container.clone(), Request::StatPath { container, path }, QUICK).await
    };
    match asked.await {
        Ok(Reply::Path(found)) => Answer::Path(wire::PathStat {
            mode: found.mode,
            size: found.size,
            mtime_ns: found.mtime_ns,
            target: found.target,
        }),
        Ok(_) => Answer::Fault(odd()),
        Err(error) => Answer::Fault(fault(&error)),
    }
}

/// Carries out [`wire::Call::Read`].
pub(crate) async fn read(
    pod: &Pod,
    container: String,
    what: ReadFiles,
    mut stream: UnixStream,
) -> io::Result<()> {
    let guest = match pod.files(&container).await {
        Ok(guest) => guest,
        Err(error) => return write_answer(&mut stream, &Answer::Fault(fault(&error))).await,
    };
    write_answer(&mut stream, &Answer::Transferring).await?;
    let (from_client, to_client) = stream.into_split();
    let mut writer = FrameWriter::new(to_client);
    // The other direction of the stream is of no use.
    let (id, source, _) = guest.link.open();
    let what = match what {
        ReadFiles::Tree { path } => Wanted::Tree { path },
        ReadFiles::Root => Wanted::Root,
        ReadFiles::Changes => Wanted::Changes,
        ReadFiles::ChangeList => Wanted::ChangeList,
    };
    let request = Request::ReadFiles { container: container.clone(), what, stream: id };
    let outcome = {
        let mut asked = std::pin::pin!(ask(&guest, &container, request));
        let mut pumped = std::pin::pin!(pump_out(source, &mut writer, from_client));
        tokio::select! {
            reply = &mut asked => match reply {
                // What it has sent is still in the stream.
                Ok(()) => pumped.await.map(|end| end.ok_or_else(stalled)),
                Err(fault) => Ok(Err(fault)),
            },
            pumped = &mut pumped => match pumped {
                Ok(Some(())) => Ok(settle(asked).await),
                Ok(None) => Ok(Err(stalled())),
                Err(error) => Err(error),
            },
        }
    };
    finish(&mut writer, outcome?).await
}

/// Carries out [`wire::Call::Write`].
pub(crate) async fn write(
    pod: &Pod,
    mut request: WriteFiles,
    mut stream: UnixStream,
) -> io::Result<()> {
    let container = request.container.clone();
    let guest = match pod.files(&container).await {
        Ok(guest) => guest,
        Err(error) => return write_answer(&mut stream, &Answer::Fault(fault(&error))).await,
    };
    write_answer(&mut stream, &Answer::Transferring).await?;
    let (from_client, to_client) = stream.into_split();
    let mut writer = FrameWriter::new(to_client);
    let (id, _, sink) = guest.link.open();
    request.stream = id;
    let request = Request::WriteFiles(Box::new(request));
    let mut asked = std::pin::pin!(ask(&guest, &container, request));
    let outcome = tokio::select! {
        biased;
        reply = &mut asked => reply,
        pumped = pump_in(FrameReader::new(from_client), sink) => match pumped? {
            Some(()) => settle(asked).await,
            None => Err(stalled()),
        },
    };
    finish(&mut writer, outcome).await
}

/// A process as clients are told of it.
pub(crate) fn process(info: ProcessInfo) -> wire::ProcessInfo {
    wire::ProcessInfo {
        pid: info.pid,
        parent: info.parent,
        uid: info.uid,
        state: info.state,
        terminal: info.terminal,
        started_unix_ns: info.started_unix_ns,
        cpu_ms: info.cpu_ms,
        memory_bytes: info.memory_bytes,
        resident_bytes: info.resident_bytes,
        threads: info.threads,
        nice: info.nice,
        name: info.name,
        command: info.command,
    }
}

async fn ask(guest: &Arc<Guest>, container: &str, request: Request) -> Result<(), FileFault> {
    guest.call(container, request, TRANSFER).await.map(drop).map_err(|error| fault(&error))
}

/// The stream has ended: the reply is on its way.
async fn settle(asked: impl Future<Output = Result<(), FileFault>>) -> Result<(), FileFault> {
    tokio::time::timeout(IDLE, asked).await.unwrap_or_else(|_| Err(stalled()))
}

/// Until the agent ends its stream, well or not; `None` when it does nothing any more.
///
/// # Errors
/// The client is gone.
async fn pump_out(
    mut source: StreamReader,
    writer: &mut FrameWriter<OwnedWriteHalf>,
    mut client: OwnedReadHalf,
) -> io::Result<Option<()>> {
    let mut buffer = vec![0; BLOCK];
    let mut said = [0];
    loop {
        let read = tokio::select! {
            read = tokio::time::timeout(IDLE, source.read(&mut buffer)) => read,
            // It has nothing to say: this is its end.
            _ = client.read(&mut said) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        match read {
            Err(_) => return Ok(None),
            // A stream that was reset: the reply says why.
            Ok(Ok(0) | Err(_)) => return Ok(Some(())),
            Ok(Ok(read)) => {
                writer.send(1, &buffer[..read]).await?;
                writer.flush().await?;
            }
        }
    }
}

/// Until the client has sent all, or the agent takes no more; `None` when it does nothing.
///
/// # Errors
/// The client is gone; the agent is told so.
async fn pump_in(
    mut reader: FrameReader<OwnedReadHalf>,
    mut sink: StreamWriter,
) -> io::Result<Option<()>> {
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            gone => {
                sink.reset();
                return Err(gone.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
            }
        };
        if frame.data.is_empty() {
            // On a link that has ended the reply fails too.
            let _ended = sink.shutdown().await;
            return Ok(Some(()));
        }
        match tokio::time::timeout(IDLE, sink.write_all(&frame.data)).await {
            Err(_) => {
                sink.reset();
                return Ok(None);
            }
            // It reads no more: the reply says why.
            Ok(Err(_)) => return Ok(Some(())),
            Ok(Ok(())) => {}
        }
    }
}

async fn finish(
    writer: &mut FrameWriter<OwnedWriteHalf>,
    outcome: Result<(), FileFault>,
) -> io::Result<()> {
    match outcome {
        Ok(()) => writer.end(1).await?,
        Err(mut fault) => {
            // The guest's words: a frame is bounded.
            fault.message = fault.message.chars().take(4096).collect();
            writer.send(2, &serde_json::to_vec(&fault)?).await?;
        }
    }
    writer.shutdown().await
}

fn stalled() -> FileFault {
    let message = format!("the guest's agent did nothing for {} s", IDLE.as_secs());
    FileFault { kind: FaultKind::Other, message }
}

fn odd() -> FileFault {
    let message = "the guest's agent gave another reply than asked for".to_owned();
    FileFault { kind: FaultKind::Other, message }
}

fn fault(error: &PodError) -> FileFault {
    let (kind, message) = match error {
        PodError::Refused { kind, message, .. } => {
            let kind = match kind {
                FailureKind::NotFound => FaultKind::NotFound,
                FailureKind::InvalidArgument | FailureKind::UnknownUser => FaultKind::Invalid,
                FailureKind::Conflict => FaultKind::Conflict,
                FailureKind::ReadOnly => FaultKind::ReadOnly,
                FailureKind::NoSpace => FaultKind::NoSpace,
                _ => FaultKind::Other,
            };
            (kind, message.clone())
        }
        PodError::State { .. } | PodError::NotFound { .. } => (FaultKind::Conflict, chain(error)),
        _ => (FaultKind::Other, chain(error)),
    };
    FileFault { kind, message }
}
