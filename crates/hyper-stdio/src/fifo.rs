//! FIFOs and files as stdio: what containerd gives in place of a hub.
//!
//! ```text
//! open (both ends, never blocks) ──copy──► source ended ──drained──► dropped
//!                                              └─ task deleted ───────► dropped
//! ```
//! Both ends of an output FIFO are held until the reader has taken everything: a reader that comes
//! late, or comes back, finds all bytes, and none that is missing hangs or kills us.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::io::ioctl_fionread;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

const CHUNK: usize = 64 << 10;

/// An output's destination, open.
#[derive(Debug)]
pub enum Outlet {
    Fifo(pipe::Sender),
    File(tokio::fs::File),
}

impl Outlet {
    /// Opens a FIFO, or appends to a file (made when missing).
    ///
    /// # Errors
    /// The system's.
    pub async fn open(path: &Path) -> io::Result<Self> {
        let fifo = match tokio::fs::metadata(path).await {
            Ok(found) => found.file_type().is_fifo(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if fifo {
            return Ok(Self::Fifo(pipe::OpenOptions::new().read_write(true).open_sender(path)?));
        }
        let mut options = tokio::fs::OpenOptions::new();
        options.append(true).create(true).mode(0o640);
        Ok(Self::File(options.open(path).await?))
    }

    /// Carries `source` here until it ends; returns its bytes.
    ///
    /// # Errors
    /// The source's or the destination's.
    pub async fn copy(&mut self, mut source: impl AsyncRead + Unpin) -> io::Result<u64> {
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        loop {
            let read = source.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            total += read as u64;
            match self {
                Self::Fifo(fifo) => fifo.write_all(&buffer[..read]).await?,
                Self::File(file) => file.write_all(&buffer[..read]).await?,
            }
        }
        if let Self::File(file) = self {
            file.flush().await?;
        }
        Ok(total)
    }

    /// Waits until a FIFO's reader has taken all; drop the outlet afterwards, or to stop waiting.
    ///
    /// # Errors
    /// The system's.
    pub async fn drained(&self) -> io::Result<()> {
        let Self::Fifo(fifo) = self else { return Ok(()) };
        let mut pause = Duration::from_millis(1);
        while ioctl_fionread(fifo)? > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// Opens an input FIFO and a writing end of it.
///
/// The reader sees end-of-file once the returned writing end is dropped and all other writers are
/// gone: a client that goes away without closing the input does not end it.
///
/// # Errors
/// The system's.
pub fn open_input(path: &Path) -> io::Result<(pipe::Receiver, pipe::Sender)> {
    let receiver = pipe::OpenOptions::new().open_receiver(path)?;
    let sender = pipe::OpenOptions::new().open_sender(path)?;
    Ok((receiver, sender))
}

#[cfg(test)]
mod test {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    fn fifo(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    #[tokio::test]
    async fn a_late_reader_gets_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let text: Vec<u8> = (0..500_000).map(|n: u32| n.to_le_bytes()[0]).collect();
        let source = text.clone();
        let mut outlet = Outlet::open(&path).await.unwrap();
        let carry = tokio::spawn(async move {
            let copied = outlet.copy(&source[..]).await;
            outlet.drained().await.and(copied)
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await.unwrap();
        assert!(read.unwrap() == text);
        assert_eq!(carry.await.unwrap().unwrap(), text.len() as u64);
    }

    #[tokio::test]
    async fn input_ends_when_it_is_closed_and_no_sooner() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let (mut input, closer) = open_input(&path).unwrap();
        let mut text = Vec::new();
        tokio::task::spawn_blocking(move || std::fs::write(path, b"typed")).await.unwrap().unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), input.read_to_end(&mut text));
        assert!(early.await.is_err(), "a client that leaves is not the end");
        drop(closer);
        input.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"typed");
    }
}
