//! Bytes between a process and its streams, with back-pressure from end to end: a pump reads no
//! more than it can pass on, so a supervisor that does not read stops the process, not the link.
//!
//! When the process has ended, its output ends at the end of the pipe. A descendant that outlives
//! it and holds the pipe open does not delay that for long: what was in the pipe is passed on, and
//! after [`QUIET`] without a byte more the stream ends; from then on the pipe is emptied and thrown
//! away, so that the descendant is not killed by writing.

use std::{io, os::fd::OwnedFd, time::Duration};

use hyper_link::{AgentLink, StreamReader, StreamWriter, message::Streams};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    sync::{oneshot, watch},
    task::JoinHandle,
};

use crate::{
    carrier::Descriptor,
    container::no_streams,
    failure::{Doing as _, Outcome, invalid},
};

/// Bytes taken at a time.
const BLOCK: usize = 64 << 10;
/// How long a pipe may be silent after the process has ended.
const QUIET: Duration = Duration::from_millis(200);
/// Most bytes that can have been in a pipe when the process ended (`/proc/sys/fs/pipe-max-size`).
const IN_PIPE: usize = 1 << 20;

/// Standard streams of a process that does not exist yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// For the process.
    pub(crate) ends: [OwnedFd; 3],
    input: Option<(Option<OwnedFd>, StreamReader)>,
    outputs: Vec<(Option<OwnedFd>, StreamWriter)>,
}

impl Prepared {
    /// Takes the streams a request names and makes pipes for them.
    pub(crate) fn new(link: &AgentLink, streams: Streams, terminal: bool) -> Outcome<Self> {
        let open = |id: Option<u32>| {
            let ends = id.map(|id| link.open(id)).transpose();
            ends.map_err(|error| invalid(error.to_string()))
        };
        // All are taken first: what fails later ends them.
        let (stdin, stdout, stderr) =
            (open(streams.stdin)?, open(streams.stdout)?, open(streams.stderr)?);
        let mut prepared = Self { ends: no_streams()?, input: None, outputs: Vec::new() };
        let pipe = || pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned());
        if let Some((reader, _writer)) = stdin {
            let mut ours = None;
            if !terminal {
                let (theirs, end) = pipe()?;
                prepared.ends[0] = theirs;
                ours = Some(end);
            }
            prepared.input = Some((ours, reader));
        }
        for (number, stream) in [(1, stdout), (2, stderr)] {
            let Some((_reader, writer)) = stream else { continue };
            let mut ours = None;
            if !terminal {
                let (end, theirs) = pipe()?;
                prepared.ends[number] = theirs;
                ours = Some(end);
            } else if number == 2 {
                // All output of a terminal is on stdout: dropping this half-closes the stream.
                continue;
            }
            prepared.outputs.push((ours, writer));
        }
        Ok(prepared)
    }

    /// Starts the pumps. `terminal` is the master of the process's terminal, if it has one.
    pub(crate) fn connect(self, terminal: Option<&OwnedFd>) -> Outcome<Pumps> {
        let (exited, _) = watch::channel(false);
        let end = |pipe: Option<OwnedFd>, interest: Interest| -> io::Result<Descriptor> {
            match (pipe, terminal) {
                (Some(pipe), _) => Descriptor::watching(pipe, interest),
                (None, Some(master)) => Descriptor::new(master.try_clone()?),
                (None, None) => Err(io::Error::other("neither pipe nor terminal")),
            }
        };
        let mut outputs = Vec::new();
        for (pipe, writer) in self.outputs {
            let pipe = end(pipe, Interest::READABLE).doing(|| "watch an output".to_owned())?;
            let (done, receiver) = oneshot::channel();
            tokio::task::spawn_local(pump_out(pipe, writer, exited.subscribe(), done));
            outputs.push(receiver);
        }
        let input = match self.input {
            Some((pipe, reader)) => {
                let pipe = end(pipe, Interest::WRITABLE).doing(|| "watch an input".to_owned())?;
                Some(tokio::task::spawn_local(pump_in(reader, pipe)))
            }
            None => None,
        };
        Ok(Pumps { exited, input, outputs })
    }
}

/// The pumps of one process.
#[derive(Debug)]
pub(crate) struct Pumps {
    exited: watch::Sender<bool>,
    input: Option<JoinHandle<()>>,
    outputs: Vec<oneshot::Receiver<()>>,
}

impl Pumps {
    /// The process has ended: resolves when all its output is on its streams.
    pub(crate) async fn finish(self) {
        self.exited.send_replace(true);
        if let Some(input) = &self.input {
            // Tells the supervisor that nobody reads any more.
            input.abort();
        }
        for output in self.outputs {
            // A pump that is gone has nothing left to say.
            let _gone = output.await;
        }
    }
}

async fn pump_in(mut stream: StreamReader, mut pipe: Descriptor) {
    let mut buffer = vec![0; BLOCK];
    // Ends at the stream's end, which closes the pipe, or when nobody reads the pipe any more,
    // which stops the stream.
    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
        if pipe.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

async fn pump_out(
    mut pipe: Descriptor,
    stream: StreamWriter,
    mut exited: watch::Receiver<bool>,
    done: oneshot::Sender<()>,
) {
    let mut buffer = vec![0; BLOCK];
    let mut open = Some((stream, done));
    let mut left = IN_PIPE;
    loop {
        let ending = *exited.borrow_and_update();
        let read = tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => Some(read),
            _ = exited.changed(), if !ending => continue,
            () = tokio::time::sleep(QUIET), if ending && open.is_some() => None,
        };
        match (read, &mut open) {
            // A terminal whose other end was closed fails with EIO.
            (Some(Ok(0) | Err(_)), _) => break,
            (Some(Ok(len)), Some((stream, _))) => {
                // A supervisor that reads no more does not stop the process.
                let stopped = stream.write_all(&buffer[..len]).await.is_err();
                left = left.saturating_sub(if ending { len } else { 0 });
                if stopped || left == 0 {
                    finish(&mut open).await;
                }
            }
            (Some(Ok(_)), None) => {}
            (None, _) => finish(&mut open).await,
        }
    }
    finish(&mut open).await;
}

async fn finish(open: &mut Option<(StreamWriter, oneshot::Sender<()>)>) {
    if let Some((mut stream, done)) = open.take() {
        // On a link that has ended nobody waits for it.
        let _ended = stream.shutdown().await;
        let _ended = done.send(());
    }
}
