//! The log reader: a finished log, its tail, or a log that is being written and rotated.
//!
//! ```text
//! open ─► position (oldest file, or N lines from the end) ─► line ─► line … ─► end of file
//!            ▲ next newer file ◄── this file was rotated ◄─────────────┤
//!            └── more bytes ◄── wait (inotify, poll) ◄── follow ───────┤
//!                                                      else, or finished ─► end
//! ```
//! A file is known by its inode, so a rotation while reading is seen and nothing is read twice or
//! skipped (unless rotation deleted it). A last line without newline is still being written: it is
//! left for later, and dropped at the end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::Stream as AsyncStream;
use hyper_task::stdio::LogConfig;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::watch;

use crate::writer::rotated;
use crate::{Entry, LogError, Stream};

const CHUNK: usize = 64 << 10;
/// Longer lines are not ours: 16 KiB of text, every byte escaped, stay far below.
const MAX_LINE: usize = 1 << 20;
/// How often a follower looks without being told.
const POLL: Duration = Duration::from_millis(250);

/// What of a log is wanted.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Only entries at or after, nanoseconds since the Unix epoch.
    pub since: Option<i64>,
    /// Only entries at or before; the first later one ends the reading.
    pub until: Option<i64>,
    /// Only the last so many entries of both streams (before the other filters, as in Docker).
    pub tail: Option<u64>,
    pub stdout: bool,
    pub stderr: bool,
    /// Go on until the value is true (the container has ended) or its sender is gone, and then to
    /// the end of the log.
    pub follow: Option<watch::Receiver<bool>>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { since: None, until: None, tail: None, stdout: true, stderr: true, follow: None }
    }
}

/// Reads one container's log; see the module.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    files: u32,
    options: ReadOptions,
    current: Option<File>,
    buffer: BytesMut,
    /// The rest of an over-long line is being thrown away.
    skipping: bool,
    watch: Option<AsyncFd<OwnedFd>>,
    done: bool,
}

impl LogReader {
    /// Finds where to begin. A log that does not exist is empty.
    ///
    /// # Errors
    /// An unknown driver, or the system's.
    pub async fn open(log: &LogConfig, options: ReadOptions) -> Result<Self, LogError> {
        if !crate::is_ours(&log.driver) {
            return Err(LogError::UnknownDriver(log.driver.clone()));
        }
        let mut reader = Self {
            path: log.path.clone(),
            files: log.max_file.max(1),
            watch: options.follow.as_ref().and_then(|_| watch_dir(&log.path)),
            options,
            current: None,
            buffer: BytesMut::new(),
            skipping: false,
            done: false,
        };
        reader.current = match reader.options.tail {
            None => reader.oldest().await,
            Some(lines) => reader.tail(lines).await,
        }
        .map_err(|source| reader.error(source))?;
        Ok(reader)
    }

    /// The next entry that passes the filters; `None` at the end. Not to be cancelled while
    /// following, unless the reader is dropped.
    ///
    /// # Errors
    /// The system's.
    pub async fn next(&mut self) -> Result<Option<Entry>, LogError> {
        while !self.done {
            while let Some(entry) = self.line() {
                if self.options.until.is_some_and(|until| entry.unix_ns > until) {
                    self.done = true;
                    return Ok(None);
                }
                let wanted = match entry.stream {
                    Stream::Stdout => self.options.stdout,
                    Stream::Stderr => self.options.stderr,
                };
                if wanted && self.options.since.is_none_or(|since| entry.unix_ns >= since) {
                    return Ok(Some(entry));
                }
            }
            self.fill().await.map_err(|source| self.error(source))?;
        }
        Ok(None)
    }

    /// The entries as a stream; an error ends it.
    pub fn into_stream(self) -> impl AsyncStream<Item = Result<Entry, LogError>> + Send {
        futures_util::stream::try_unfold(self, async |mut reader| {
            Ok(reader.next().await?.map(|entry| (entry, reader)))
        })
    }

    /// Takes whole lines off the buffer until one is an entry.
    fn line(&mut self) -> Option<Entry> {
        while let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(at + 1);
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if let Some(entry) = Entry::decode(&line) {
                return Some(entry);
            }
        }
        if self.buffer.len() > MAX_LINE {
            self.buffer.clear();
            self.skipping = true;
        }
        None
    }

    /// Reads more, changes to the next file, waits, or ends.
    async fn fill(&mut self) -> io::Result<()> {
        // Looked at before reading: what is written before the end is announced is then seen.
        let finished = self
            .options
            .follow
            .as_ref()
            .is_none_or(|follow| *follow.borrow() || follow.has_changed().is_err());
        if self.read().await? > 0 {
            return Ok(());
        }
        if let Some(next) = self.next_file().await? {
            // Written between our last read and the rotation.
            while self.read().await? > 0 {}
            let unread = self.buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.buffer.truncate(unread);
            self.skipping = false;
            self.current = Some(next);
        } else if finished {
            self.done = true;
        } else {
            self.wait().await;
        }
        Ok(())
    }

    async fn read(&mut self) -> io::Result<usize> {
        self.buffer.reserve(CHUNK);
        match &mut self.current {
            Some(file) => file.read_buf(&mut self.buffer).await,
            None => Ok(0),
        }
    }

    /// The file after the current one; `None` while the current one is the newest.
    async fn next_file(&self) -> io::Result<Option<File>> {
        let Some(current) = &self.current else { return self.oldest().await };
        let inode = current.metadata().await?.ino();
        for _ in 0..100 {
            match self.place(inode).await {
                Some(0) => return Ok(None),
                Some(index) => {
                    let next = open(self.name(index - 1)).await?;
                    // Still there: no rotation came between, so this is the next one.
                    if next.is_some() && self.place(inode).await == Some(index) {
                        return Ok(next);
                    }
                }
                // Deleted by rotation: go on with the oldest there is.
                None => {
                    if let Some(oldest) = self.oldest().await? {
                        return Ok(Some(oldest));
                    }
                }
            }
            // In the middle of a rotation, which takes microseconds.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(None)
    }

    /// Number of the file with this inode.
    async fn place(&self, inode: u64) -> Option<u32> {
        for index in 0..self.files {
            if tokio::fs::metadata(self.name(index)).await.is_ok_and(|found| found.ino() == inode) {
                return Some(index);
            }
        }
        None
    }

    async fn oldest(&self) -> io::Result<Option<File>> {
        let mut newest = 0;
        for _ in 0..100 {
            let mut found = None;
            for index in (newest..self.files).rev() {
                if let Some(file) = open(self.name(index)).await? {
                    found = Some((index, file));
                    break;
                }
            }
            let Some((index, file)) = found else { break };
            // A rotation moves files up while we look downwards: one may have slipped past.
            if tokio::fs::metadata(self.name(index + 1)).await.is_err() || index + 1 == self.files {
                return Ok(Some(file));
            }
            newest = index;
        }
        Ok(None)
    }

    /// The file and offset `lines` before the end.
    async fn tail(&self, lines: u64) -> io::Result<Option<File>> {
        let mut missing = lines;
        let mut oldest = None;
        let mut seen = None;
        for index in 0..self.files {
            let Some(mut file) = open(self.name(index)).await? else { break };
            // A rotation meanwhile moved the last one here.
            let inode = file.metadata().await?.ino();
            if seen.replace(inode) == Some(inode) {
                continue;
            }
            match tail_of(&mut file, missing).await? {
                Ok(()) => return Ok(Some(file)),
                Err(found) => missing -= found,
            }
            oldest = Some(file);
        }
        if let Some(file) = &mut oldest {
            file.rewind().await?;
        }
        Ok(oldest)
    }

    async fn wait(&mut self) {
        let changed = async {
            match &self.watch {
                Some(watch) => {
                    if let Ok(mut ready) = watch.readable().await {
                        let mut events = [0; 4096];
                        while rustix::io::read(watch, &mut events[..]).is_ok_and(|read| read > 0) {}
                        ready.clear_ready();
                    }
                }
                None => std::future::pending().await,
            }
        };
        let finished = async {
            match &mut self.options.follow {
                Some(follow) => _ = follow.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = finished => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }

    fn name(&self, index: u32) -> PathBuf {
        if index == 0 { self.path.clone() } else { rotated(&self.path, index) }
    }

    fn error(&self, source: io::Error) -> LogError {
        LogError::Io { action: "read", path: self.path.clone(), source }
    }
}

async fn open(path: PathBuf) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Seeks to `lines` lines before the end; `Err` with their number when there are fewer.
async fn tail_of(file: &mut File, lines: u64) -> io::Result<Result<(), u64>> {
    let mut end = file.metadata().await?.len();
    let mut found = 0;
    let mut chunk = vec![0; CHUNK];
    // The newline that ends the last line begins no other; an unfinished line is not counted.
    let mut ends = 0;
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let length = usize::try_from(end - start).map_err(io::Error::other)?;
        file.seek(io::SeekFrom::Start(start)).await?;
        file.read_exact(&mut chunk[..length]).await?;
        for at in (0..length).rev() {
            if chunk[at] == b'\n' {
                if ends > 0 {
                    found += 1;
                }
                ends += 1;
                if found == lines || (lines == 0 && ends == 1) {
                    file.seek(io::SeekFrom::Start(start + at as u64 + 1)).await?;
                    return Ok(Ok(()));
                }
            }
        }
        end = start;
    }
    if ends > 0 {
        found += 1;
    }
    file.rewind().await?;
    Ok(if found >= lines { Ok(()) } else { Err(found) })
}

fn watch_dir(path: &std::path::Path) -> Option<AsyncFd<OwnedFd>> {
    let watch = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
    add_watch(&watch, path.parent()?, what).ok()?;
    #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd stays open and is itself")]
    AsyncFd::new(watch).ok()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::LogWriter;

    fn config(dir: &tempfile::TempDir, max_size: Option<u64>, max_file: u32) -> LogConfig {
        let path = dir.path().join("c-json.log");
        LogConfig { driver: "json-file".into(), path, max_size, max_file, journal: None }
    }

    fn entry(n: i64) -> Entry {
        let stream = if n % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
        Entry { stream, unix_ns: n, data: format!("{n}\n").into_bytes() }
    }

    async fn times(log: &LogConfig, options: ReadOptions) -> Vec<i64> {
        let mut reader = LogReader::open(log, options).await.unwrap();
        let mut times = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            assert_eq!(entry.data, format!("{}\n", entry.unix_ns).into_bytes());
            times.push(entry.unix_ns);
        }
        times
    }

    #[tokio::test]
    async fn filters() {
        let dir = tempfile::tempdir().unwrap();
        let log = config(&dir, Some(300), 100);
        assert_eq!(times(&log, ReadOptions::default()).await, Vec::<i64>::new());
        let mut writer = LogWriter::open(&log).unwrap();
        writer.write(&(0..100).map(entry).collect::<Vec<_>>());
        // A line in the making.
        let mut raw = std::fs::OpenOptions::new().append(true).open(&log.path).unwrap();
        io::Write::write_all(&mut raw, b"{\"log\":\"half").unwrap();
        let all: Vec<i64> = (0..100).collect();
        assert_eq!(times(&log, ReadOptions::default()).await, all);
        for tail in [0, 1, 3, 4, 50, 99, 100, 1000] {
            let options = ReadOptions { tail: Some(tail), ..ReadOptions::default() };
            let from = all.len().saturating_sub(tail.try_into().unwrap());
            assert_eq!(times(&log, options).await, all[from..], "tail {tail}");
        }
        let options =
            ReadOptions { since: Some(10), until: Some(20), stderr: false, ..Default::default() };
        assert_eq!(times(&log, options).await, [10, 12, 14, 16, 18, 20]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn follows_across_rotations_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // Enough files that rotation deletes none: everything must arrive.
        let log = config(&dir, Some(2000), 400);
        let (finished, follow) = watch::channel(false);
        let reader = tokio::spawn({
            let log = log.clone();
            async move { times(&log, ReadOptions { follow: Some(follow), ..Default::default() }).await }
        });
        tokio::task::spawn_blocking(move || {
            let mut writer = LogWriter::open(&log).unwrap();
            for n in 0..5000 {
                writer.write(&[entry(n)]);
                if n % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })
        .await
        .unwrap();
        finished.send(true).unwrap();
        assert_eq!(reader.await.unwrap(), (0..5000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn follow_ends_with_its_sender() {
        let dir = tempfile::tempdir().unwrap();
        let log = config(&dir, None, 1);
        LogWriter::open(&log).unwrap().write(&[entry(7)]);
        let (finished, follow) = watch::channel(false);
        drop(finished);
        assert_eq!(
            times(&log, ReadOptions { follow: Some(follow), ..Default::default() }).await,
            [7]
        );
    }
}
