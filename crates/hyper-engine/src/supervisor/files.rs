//! A container's files through its supervisor: `hyper.pod.v1` on the pod socket.

use bytes::Bytes;
use hyper_stdio::attach::{CallError, FrameReader, FrameWriter};
use hyper_stdio::transfer::NOTE;
use hyper_task::pod::{Answer, Call, FaultKind, FileFault, PathStat, ProcessInfo, ReadFiles};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Pod, chain, failure};
use crate::{Error, Result};

/// Bytes read from an archive at a time.
const CHUNK: usize = 64 << 10;
/// Longest line about a transfer, in characters.
const MAX_NOTE: usize = 4096;

/// Files on their way out of a container. Dropped, the transfer ends.
#[derive(Debug)]
pub(crate) struct Download {
    id: String,
    frames: FrameReader<OwnedReadHalf>,
    /// Open for as long as the bytes are wanted.
    _wanted: FrameWriter<OwnedWriteHalf>,
    /// The next piece, read before it was asked for.
    first: Option<Bytes>,
    ended: bool,
    note: Option<String>,
}

impl Download {
    /// The next bytes; `None` when that was all.
    ///
    /// # Errors
    /// Why it is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        // The last piece waits for what is said at the end: a client may be gone as soon as it has an archive's end.
        let following = if self.ended { None } else { self.read().await? };
        Ok(std::mem::replace(&mut self.first, following))
    }

    async fn read(&mut self) -> Result<Option<Bytes>> {
        let read = "read its files";
        let mut frame = self.frames.next().await.map_err(|e| failure(&self.id, read, chain(&e)))?;
        if let Some(told) = frame.take_if(|frame| frame.stream == NOTE) {
            // Words of a guest, perhaps: one line, and not longer than told.
            let text = String::from_utf8_lossy(&told.data);
            let line: String = text.chars().filter(|c| !c.is_control()).take(MAX_NOTE).collect();
            tracing::warn!(container = self.id, "of the files of a container was {line}");
            self.note = Some(line);
            let next = self.frames.next().await;
            frame = next.map_err(|e| failure(&self.id, read, chain(&e)))?;
        }
        match frame {
            Some(frame) if frame.stream == 1 && frame.data.is_empty() => {
                self.ended = true;
                Ok(None)
            }
            Some(frame) if frame.stream == 1 => Ok(Some(frame.data)),
            Some(frame) => Err(told(&self.id, "read its files", &frame.data)),
            None => Err(broke_off(&self.id, "read its files")),
        }
    }

    /// What is to be told about it, once it is at its end.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

impl Pod {
    /// What is at a path.
    pub async fn stat_path(&self, path: &str) -> Result<PathStat> {
        let socket = self.bundle.join(hyper_task::pod::SOCKET);
        let call = Call::Stat { path: path.to_owned() };
        match hyper_stdio::attach::call(&socket, &call).await {
            Ok(Answer::Path(stat)) => Ok(stat),
            Ok(_) => Err(failure(&self.id, "look at a path", "another answer came".to_owned())),
            Err(error) => Err(refused(&self.id, "look at a path", error)),
        }
    }

    /// Begins to read files; what cannot be read at all is an error here.
    pub async fn read_files(&self, what: ReadFiles) -> Result<Download> {
        let socket = self.bundle.join(hyper_task::pod::SOCKET);
        let begun = hyper_stdio::attach::transfer(&socket, &Call::Read { what }).await;
        let (frames, wanted) = begun.map_err(|e| refused(&self.id, "read its files", e))?;
        let id = self.id.clone();
        let mut download =
            Download { id, frames, _wanted: wanted, first: None, ended: false, note: None };
        download.first = download.read().await?;
        Ok(download)
    }

    /// Unpacks an archive in a directory.
    pub async fn write_files(
        &self,
        path: String,
        keep_directories: bool,
        owner: Option<String>,
        mut archive: impl AsyncRead + Unpin,
    ) -> Result<()> {
        const WHAT: &str = "write its files";
        let socket = self.bundle.join(hyper_task::pod::SOCKET);
        let call = Call::Write { path, keep_directories, owner };
        let begun = hyper_stdio::attach::transfer(&socket, &call).await;
        let (mut frames, mut writer) = begun.map_err(|e| refused(&self.id, WHAT, e))?;
        let sending = async {
            let mut buffer = vec![0; CHUNK];
            loop {
                let read = archive.read(&mut buffer).await;
                let read = read.map_err(|e| Error::Invalid(format!("read the archive: {e}")))?;
                // A supervisor that is gone, or has had enough, says so itself.
                let sent = match read {
                    0 => writer.end(0).await,
                    read => writer.send(0, &buffer[..read]).await,
                };
                if read == 0 || sent.is_err() {
                    return Ok(());
                }
            }
        };
        let answer = async {
            let frame = frames.next().await;
            match frame.map_err(|e| failure(&self.id, WHAT, chain(&e)))? {
                Some(frame) if frame.stream == 1 => Ok(()),
                Some(frame) => Err(told(&self.id, WHAT, &frame.data)),
                None => Err(broke_off(&self.id, WHAT)),
            }
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            sent = sending => match sent {
                Ok(()) => answer.await,
                Err(error) => Err(error),
            },
        }
    }

    /// Its processes, with their ids in the guest.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        match self.call(&Call::Processes).await? {
            Answer::Processes { processes } => Ok(processes),
            _ => Err(failure(&self.id, "list its processes", "another answer came".to_owned())),
        }
    }
}

fn refused(id: &str, what: &'static str, error: CallError) -> Error {
    match error {
        CallError::Fault(fault) => sorted(id, what, fault),
        other => failure(id, what, chain(&other)),
    }
}

fn told(id: &str, what: &'static str, bytes: &[u8]) -> Error {
    match serde_json::from_slice(bytes) {
        Ok(fault) => sorted(id, what, fault),
        Err(_) => failure(id, what, String::from_utf8_lossy(bytes).into_owned()),
    }
}

fn sorted(id: &str, what: &'static str, fault: FileFault) -> Error {
    let message = fault.message;
    match fault.kind {
        FaultKind::NotFound => Error::NoSuchPath(message),
        FaultKind::Invalid => Error::Invalid(message),
        FaultKind::Conflict => Error::Conflict(message),
        FaultKind::ReadOnly => Error::ReadOnly(message),
        FaultKind::NoSpace => Error::ContainerFull(message),
        FaultKind::Other => failure(id, what, message),
    }
}

fn broke_off(id: &str, what: &'static str) -> Error {
    failure(id, what, "the transfer broke off: the pod has ended".to_owned())
}
