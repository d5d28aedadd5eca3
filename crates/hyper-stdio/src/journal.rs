//! Log entries to journald, in its native protocol: one datagram for each.
//!
//! Source: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>. The fields that tell the container are
//! Docker's. An entry has at most 16 KiB, so that a datagram holds it. Blocking, with a deadline:
//! a journal that takes nothing holds the container up for so long, and then a while not at all.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper_task::stdio::JournalConfig;

use crate::{Entry, Stream, rfc3339_nano};

/// How long one entry may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// After a failure: how long the next is not tried.
const PAUSE: Duration = Duration::from_secs(1);

/// `LOG_INFO` and `LOG_ERR`, as Docker has them.
const INFO: &str = "6";
const ERROR: &str = "3";

/// One container's way to the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// The container's fields, encoded.
    fields: Vec<u8>,
    failed: Option<Instant>,
}

impl Journal {
    /// Needs no journald yet: it may be restarted at any time.
    ///
    /// # Errors
    /// The system's.
    pub fn open(config: &JournalConfig) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(DEADLINE))?;
        let mut fields = Vec::new();
        for (name, value) in &config.fields {
            field(&mut fields, name, value.as_bytes());
        }
        Ok(Self { socket, path: config.socket.clone(), fields, failed: None })
    }

    /// Sends one entry.
    ///
    /// # Errors
    /// The system's; right after a failure without trying again.
    pub fn send(&mut self, entry: &Entry) -> io::Result<()> {
        if self.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let datagram = self.encode(entry);
        let sent = loop {
            match self.socket.send_to(&datagram, &self.path) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => break sent,
            }
        };
        self.failed = sent.is_err().then(Instant::now);
        sent.map(drop)
    }

    /// What is sent to.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    fn encode(&self, entry: &Entry) -> Vec<u8> {
        let line = entry.data.strip_suffix(b"\n");
        let mut datagram = self.fields.clone();
        let priority = match entry.stream {
            Stream::Stdout => INFO,
            Stream::Stderr => ERROR,
        };
        field(&mut datagram, "PRIORITY", priority.as_bytes());
        field(&mut datagram, "SYSLOG_TIMESTAMP", rfc3339_nano(entry.unix_ns).as_bytes());
        if line.is_none() {
            field(&mut datagram, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        field(&mut datagram, "MESSAGE", line.unwrap_or(&entry.data));
        datagram
    }
}

/// `NAME=value`, or for values with newlines the form with a length.
fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod test {
    use super::*;

    fn entry(stream: Stream, data: &[u8]) -> Entry {
        Entry { stream, unix_ns: 1_700_000_000_000_000_500, data: data.into() }
    }

    #[test]
    fn entries_are_datagrams_of_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let fields = [("CONTAINER_NAME".to_owned(), "a\nb".to_owned())].into();
        let mut journal = Journal::open(&JournalConfig { socket: path.clone(), fields }).unwrap();
        assert!(journal.send(&entry(Stream::Stdout, b"x\n")).is_err(), "nobody listens");
        journal.failed = None;
        let journald = UnixDatagram::bind(&path).unwrap();
        let mut told = |entry: &Entry| {
            journal.send(entry).unwrap();
            let mut bytes = [0; 1000];
            let length = journald.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        let name = "CONTAINER_NAME\n\u{3}\0\0\0\0\0\0\0a\nb\n";
        let time = "SYSLOG_TIMESTAMP=2023-11-14T22:13:20.0000005Z\n";
        let line = told(&entry(Stream::Stdout, b"hello\n"));
        assert_eq!(line, format!("{name}PRIORITY=6\n{time}MESSAGE=hello\n"));
        let part = told(&entry(Stream::Stderr, b"no end"));
        let partial = "CONTAINER_PARTIAL_MESSAGE=true\n";
        assert_eq!(part, format!("{name}PRIORITY=3\n{time}{partial}MESSAGE=no end\n"));
    }

    #[test]
    fn a_journal_that_takes_nothing_is_given_up_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nobody");
        let config = JournalConfig { socket, fields: Default::default() };
        let mut journal = Journal::open(&config).unwrap();
        let first = journal.send(&entry(Stream::Stdout, b"x\n")).unwrap_err();
        assert_eq!(first.kind(), io::ErrorKind::NotFound);
        let second = journal.send(&entry(Stream::Stdout, b"x\n")).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::TimedOut);
    }
}
