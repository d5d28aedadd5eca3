//! UML's management console: one datagram asks, one or more answer
//! (`arch/um/drivers/mconsole.h` of the kernel).
//!
//! The answer comes from the guest's kernel and is not trusted: it is bounded, and all it decides
//! is whether the caller sees an error.

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::PathBuf;
use std::time::Duration;

use hyper_hypervisor::VmError;
use tokio::net::UnixDatagram;
use tokio::time::{sleep, timeout};

use crate::NAME;
use crate::cmdline::{SCRATCH, UMID};

const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;
/// Longest text in one datagram, its final zero included.
const DATA: usize = 512;
/// A guest that swaps or is stopped by its host for longer is taken for dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// Answers longer than this many datagrams are cut.
const PARTS: usize = 64;

/// The conversation with one guest.
#[derive(Debug)]
pub struct Mconsole {
    socket: UnixDatagram,
    /// The guest's socket, through the root of its jail.
    peer: PathBuf,
}

impl Mconsole {
    /// `socket` lives in the jail's network namespace, for its address to mean something there.
    pub fn new(socket: OwnedFd, pid: u32) -> std::io::Result<Self> {
        let socket = StdDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let peer = PathBuf::from(format!("/proc/{pid}/root{SCRATCH}/{UMID}/mconsole"));
        Ok(Self { socket: UnixDatagram::from_std(socket)?, peer })
    }

    /// Has the guest's kernel do `command` and returns its answer.
    ///
    /// # Errors
    /// No answer within 10 s, or the kernel refuses.
    pub async fn ask(&self, doing: &'static str, command: &str) -> Result<String, VmError> {
        let (failed, text) = self.answer(doing, command).await?;
        if failed {
            return Err(refusal(doing, command, &text));
        }
        Ok(text)
    }

    /// Has the guest's kernel remove `device`, e.g. `ubd3`.
    ///
    /// # Errors
    /// As [`Self::ask`]; [`VmError::Busy`] when something in the guest has it open.
    pub async fn remove(&self, device: &str) -> Result<(), VmError> {
        let (doing, command) = ("remove a disk", format!("remove {device}"));
        let (failed, text) = self.answer(doing, &command).await?;
        match (failed, text.as_str()) {
            (false, _) => Ok(()),
            // arch/um/drivers/mconsole_kern.c
            (true, "Device is currently open") => {
                Err(VmError::Busy { hypervisor: NAME, what: format!("remove disk `{device}`") })
            }
            (true, text) => Err(refusal(doing, &command, text)),
        }
    }

    /// Whether the kernel refuses, and its words.
    async fn answer(&self, doing: &'static str, command: &str) -> Result<(bool, String), VmError> {
        let silent = VmError::Silent { hypervisor: NAME, what: doing, seconds: PATIENCE.as_secs() };
        let io = |source| VmError::Io { what: "talk to the guest kernel's mconsole", source };
        let request = request(command).map_err(io)?;
        let answered = timeout(PATIENCE, self.exchange(&request)).await;
        answered.map_err(|_| silent)?.map_err(io)
    }

    async fn exchange(&self, request: &[u8]) -> Result<(bool, String), Error> {
        let mut answer = [0; 12 + DATA];
        // What was left over by a request that was given up.
        while self.socket.try_recv(&mut answer).is_ok() {}
        loop {
            match self.socket.send_to(request, &self.peer).await {
                Ok(_) => break,
                // The guest is still booting.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error),
            }
        }
        let mut text = String::new();
        for _ in 0..PARTS {
            let count = self.socket.recv(&mut answer).await?;
            let part = parse(&answer[..count])?;
            text.push_str(&part.text);
            if part.failed || !part.more {
                return Ok((part.failed, text));
            }
        }
        Err(Error::new(ErrorKind::InvalidData, "an endless answer"))
    }
}

fn refusal(doing: &'static str, command: &str, text: &str) -> VmError {
    let text: String = text.chars().filter(|char| !char.is_control()).take(200).collect();
    let source = Error::other(format!("the guest's kernel refuses `{command}`: {text}"));
    VmError::Io { what: doing, source }
}

/// `struct mconsole_request`.
fn request(command: &str) -> Result<Vec<u8>, Error> {
    if command.len() >= DATA || command.contains('\0') {
        return Err(Error::new(ErrorKind::InvalidInput, "the command is too long"));
    }
    let length = u32::try_from(command.len()).map_err(Error::other)?;
    let mut bytes = Vec::with_capacity(12 + DATA);
    for word in [MAGIC, VERSION, length] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(command.as_bytes());
    bytes.resize(12 + DATA, 0);
    Ok(bytes)
}

#[derive(Debug, PartialEq)]
struct Part {
    failed: bool,
    more: bool,
    text: String,
}

/// `struct mconsole_reply`: err, more, len, data.
fn parse(bytes: &[u8]) -> Result<Part, Error> {
    let cut = || Error::new(ErrorKind::InvalidData, "the answer is cut short");
    let (head, data) = bytes.split_at_checked(12).ok_or_else(cut)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = usize::try_from(word(8)).map_err(|_| cut())?;
    let data = data.get(..length).ok_or_else(cut)?;
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    Ok(Part {
        failed: word(0) != 0,
        more: word(4) != 0,
        text: String::from_utf8_lossy(&data[..end]).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_by_what_came() {
        let mut bytes = [0; 12].to_vec();
        bytes.extend_from_slice(b"OK\0rest");
        bytes[8] = 7;
        assert_eq!(parse(&bytes).unwrap().text, "OK");
        bytes[8] = 8;
        assert!(parse(&bytes).is_err(), "longer than the datagram");
        bytes[11] = 0xff;
        assert!(parse(&bytes).is_err(), "4 GB");
        assert!(parse(&bytes[..11]).is_err());
    }

    #[test]
    fn a_command_that_does_not_fit_is_refused() {
        assert!(request(&"x".repeat(DATA)).is_err());
        assert!(request("a\0b").is_err());
        assert_eq!(request("version").unwrap().len(), 524);
    }
}
