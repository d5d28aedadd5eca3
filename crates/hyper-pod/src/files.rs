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

use hyper_link::StreamWriter;
use hyper_link::message::{
    FailureKind, ProcessInfo, ReadFiles as Wanted, Reply, Request, WriteFiles,
};
use hyper_stdio::attach::{FrameWriter, write_answer};
use hyper_stdio::transfer::{Pumped, finish, pump_in, pump_out};
use hyper_task::pod::{self as wire, Answer, FaultKind, FileFault, ReadFiles};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use crate::guest::Guest;
use crate::{Pod, PodError, chain};

/// What a paused guest is told not to do.
const ACTION: &str = "reach its files";
/// To look at one path.
const QUICK: Duration = Duration::from_secs(30);
/// How long the agent may neither send nor take a byte: disks may be slow, hosts overloaded.
const IDLE: Duration = Duration::from_secs(180);
/// A whole transfer; what really bounds it is [`IDLE`].
const TRANSFER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Answers [`wire::Call::Stat`].
pub(crate) async fn stat(pod: &Pod, container: String, path: String) -> Answer {
    let asked = async {
        let guest = pod.guest(&container, ACTION).await?;
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

/// Carries out [`wire::Call::Hosts`].
pub(crate) async fn change_hosts(
    pod: &Pod,
    container: String,
    gone: Vec<String>,
    new: Vec<String>,
) -> Result<(), PodError> {
    let guest = pod.guest(&container, ACTION).await?;
    let request = Request::ChangeHosts { container: container.clone(), gone, new };
    guest.call(&container, request, QUICK).await.map(drop)
}

/// Carries out [`wire::Call::Read`].
pub(crate) async fn read(
    pod: &Pod,
    container: String,
    what: ReadFiles,
    mut stream: UnixStream,
) -> io::Result<()> {
    let guest = match pod.guest(&container, ACTION).await {
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
        let mut pumped = std::pin::pin!(pump_out(source, &mut writer, from_client, IDLE));
        tokio::select! {
            reply = &mut asked => match reply {
                // What it has sent is still in the stream.
                Ok(note) => pumped.await.map(|end| if end == Pumped::Stalled { Err(stalled()) } else { Ok(note) }),
                Err(fault) => Ok(Err(fault)),
            },
            pumped = &mut pumped => match pumped {
                Ok(Pumped::Stalled) => Ok(Err(stalled())),
                // Of a stream that was reset the reply says why.
                Ok(_) => Ok(settle(asked).await),
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
    let guest = match pod.guest(&container, ACTION).await {
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
        pumped = give(from_client, sink) => match pumped? {
            Pumped::Stalled => Err(stalled()),
            // One that reads no more says why.
            _ => settle(asked).await,
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

async fn ask(guest: &Arc<Guest>, container: &str, request: Request) -> Told {
    match guest.call(container, request, TRANSFER).await {
        Ok(Reply::Noted { note }) => Ok(Some(note)),
        Ok(_) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

/// What the agent says at the end: a line for people, if it has one.
type Told = Result<Option<String>, FileFault>;

/// The stream has ended: the reply is on its way.
async fn settle(asked: impl Future<Output = Told>) -> Told {
    tokio::time::timeout(IDLE, asked).await.unwrap_or_else(|_| Err(stalled()))
}

/// The agent is told how the client's bytes ended.
async fn give(client: OwnedReadHalf, mut sink: StreamWriter) -> io::Result<Pumped> {
    let pumped = pump_in(client, &mut sink, IDLE).await;
    match pumped {
        // On a link that has ended the reply fails too.
        Ok(Pumped::All) => drop(sink.shutdown().await),
        Ok(Pumped::Refused) => {}
        Ok(Pumped::Stalled) | Err(_) => sink.reset(),
    }
    pumped
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
        PodError::Refused { kind, message, .. } => (fault_kind(*kind), message.clone()),
        PodError::State { .. } | PodError::NotFound { .. } => (FaultKind::Conflict, chain(error)),
        _ => (FaultKind::Other, chain(error)),
    };
    FileFault { kind, message }
}

/// What the agent refuses, and whoever else does its work with files, as clients are told.
pub fn fault_kind(kind: FailureKind) -> FaultKind {
    match kind {
        FailureKind::NotFound => FaultKind::NotFound,
        FailureKind::InvalidArgument | FailureKind::UnknownUser => FaultKind::Invalid,
        FailureKind::Conflict => FaultKind::Conflict,
        FailureKind::ReadOnly => FaultKind::ReadOnly,
        FailureKind::NoSpace => FaultKind::NoSpace,
        _ => FaultKind::Other,
    }
}
