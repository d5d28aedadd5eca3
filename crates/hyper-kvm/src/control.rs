//! The session with a monitor: one request at a time, each with a deadline.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hyper_hypervisor::VmError;
use hyper_vmm::config::{Config, MAX_EXTENTS};
use hyper_vmm::wire::{Answer, End, MAX_LINE, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::NAME;

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for the guest to be made, on a host that may thrash.
const START: Duration = Duration::from_secs(30);

/// How long a monitor's last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longest wait for a guest to be written to disk.
const SAVE: Duration = Duration::from_secs(300);

/// One monitor.
#[derive(Debug)]
pub struct Control {
    socket: Arc<UnixStreamWriter>,
    answers: Mutex<mpsc::Receiver<Answer>>,
    end: watch::Receiver<Option<End>>,
    reader: JoinHandle<()>,
}

type UnixStreamWriter = tokio::net::unix::OwnedWriteHalf;

/// A request that failed.
#[derive(Debug)]
pub enum CallError {
    Silent(Duration),
    /// The monitor's own words.
    Refused(String),
    /// The monitor is gone, or about to be.
    Closed,
}

impl Control {
    /// Sends the configuration and waits until the guest runs.
    pub async fn open(socket: UnixStream, config: &Config) -> Result<Self, CallError> {
        let (reader, writer) = socket.into_split();
        let (told, answers) = mpsc::channel(4);
        let (ended, end) = watch::channel(None);
        let reader = tokio::spawn(async move { listen(reader, &told, &ended).await });
        let control = Self { socket: Arc::new(writer), answers: Mutex::new(answers), end, reader };
        let line = serde_json::to_vec(config).map_err(|_| CallError::Closed)?;
        match control.ask(line, Vec::new(), START).await? {
            Answer::Ready => Ok(control),
            other => Err(CallError::Refused(format!("it said {other:?}"))),
        }
    }

    /// Sends a request, with descriptors beside it, and waits until it has been done.
    pub async fn call(&self, request: &Request, files: Vec<OwnedFd>) -> Result<Answer, CallError> {
        let line = serde_json::to_vec(request).map_err(|_| CallError::Closed)?;
        self.ask(line, files, DEADLINE).await
    }

    /// Has the guest written to the two files, which may take long: its memory goes to a disk.
    pub async fn save(&self, files: Vec<OwnedFd>) -> Result<(), CallError> {
        let line = serde_json::to_vec(&Request::Save).map_err(|_| CallError::Closed)?;
        self.ask(line, files, SAVE).await.map(drop)
    }

    /// How the guest ended, when the monitor has told it. For a monitor that is gone: its last words
    /// may still be on their way.
    pub async fn end(&self) -> Option<End> {
        let mut end = self.end.clone();
        let told = timeout(LAST_WORDS, end.wait_for(Option::is_some)).await;
        told.ok()?.ok().and_then(|end| end.clone())
    }

    async fn ask(
        &self,
        mut line: Vec<u8>,
        files: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<Answer, CallError> {
        line.push(b'\n');
        // Held until the answer is there: answers have no numbers. A caller that goes away in
        // between leaves one behind, which is not the next one's.
        let mut answers = self.answers.lock().await;
        while answers.try_recv().is_ok() {}
        let asked = async {
            send(&self.socket, &line, files).await.map_err(|_| CallError::Closed)?;
            answers.recv().await.ok_or(CallError::Closed)
        };
        match timeout(limit, asked).await {
            Ok(Ok(Answer::Refused { why })) => Err(CallError::Refused(why)),
            Ok(answer) => answer,
            Err(_) => Err(CallError::Silent(limit)),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl CallError {
    pub fn while_doing(self, doing: &'static str) -> VmError {
        match self {
            Self::Silent(limit) => {
                VmError::Silent { hypervisor: NAME, what: doing, seconds: limit.as_secs() }
            }
            Self::Refused(why) => VmError::Io { what: doing, source: io::Error::other(why) },
            Self::Closed => {
                VmError::Io { what: doing, source: io::Error::other("its monitor is gone") }
            }
        }
    }
}

/// Writes a line; descriptors go with its first byte.
async fn send(socket: &UnixStreamWriter, line: &[u8], files: Vec<OwnedFd>) -> io::Result<()> {
    let stream: &UnixStream = socket.as_ref();
    let mut sent = 0;
    let mut files = Some(files).filter(|files| !files.is_empty());
    while sent < line.len() {
        stream.writable().await?;
        let now = stream.try_io(Interest::WRITABLE, || {
            let borrowed: Vec<_> = files.iter().flatten().map(|file| file.as_fd()).collect();
            let mut space =
                vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_EXTENTS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(io::Error::other("too many descriptors"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(stream, &[IoSlice::new(&line[sent..])], &mut control, flags)?)
        });
        match now {
            Ok(bytes) => {
                sent += bytes;
                files = None;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads answers until the monitor is gone, or says something that is no answer.
async fn listen(
    mut reader: OwnedReadHalf,
    answers: &mpsc::Sender<Answer>,
    end: &watch::Sender<Option<End>>,
) {
    let mut line = Vec::new();
    let mut chunk = vec![0; 4096];
    while let Ok(count @ 1..) = reader.read(&mut chunk).await {
        for byte in &chunk[..count] {
            if *byte != b'\n' {
                line.push(*byte);
                if line.len() > MAX_LINE {
                    return;
                }
                continue;
            }
            match serde_json::from_slice(&std::mem::take(&mut line)) {
                Ok(Answer::Ended { how }) => {
                    end.send_replace(Some(how));
                }
                // Nobody asked for more than a few: a monitor that talks on its own is not heard.
                Ok(answer) => drop(answers.try_send(answer)),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn refusals_floods_and_ends_are_told_apart() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let said = b"{\"said\":\"refused\",\"why\":\"no kernel\"}\n";
        theirs.write_all(said).await.unwrap();
        // What comes before the question is not its answer.
        let opening = tokio::spawn(async move { Control::open(ours, &Config::default()).await });
        let mut line = [0; 1024];
        let _ = theirs.read(&mut line).await.unwrap();
        theirs.write_all(said).await.unwrap();
        let error = opening.await.unwrap().err().unwrap();
        assert!(matches!(error, CallError::Refused(why) if why == "no kernel"));

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let opening = tokio::spawn(async move { Control::open(ours, &Config::default()).await });
        let _ = theirs.read(&mut line).await.unwrap();
        theirs.write_all(&vec![b'x'; MAX_LINE + 2]).await.unwrap();
        assert!(matches!(opening.await.unwrap(), Err(CallError::Closed)));

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let opening = tokio::spawn(async move { Control::open(ours, &Config::default()).await });
        let _ = theirs.read(&mut line).await.unwrap();
        theirs.write_all(b"{\"said\":\"ready\"}\n").await.unwrap();
        let control = opening.await.unwrap().unwrap();
        theirs.write_all(b"{\"said\":\"ended\",\"how\":{\"how\":\"reset\"}}\n").await.unwrap();
        drop(theirs);
        let gone = control.call(&Request::Pause, Vec::new()).await;
        assert!(matches!(gone, Err(CallError::Closed)));
        assert_eq!(control.end().await, Some(End::Reset));
    }
}
