//! The log writer: whole lines, appended in order, rotated by size.
//!
//! ```text
//! open ──► appending ──size ≥ max──► rotating: N-1 → N, …, path → path.1, new path ──► appending
//!              │ write fails (disk full): cut back to the last whole line, count, go on
//! ```
//! Blocking: call it off the runtime. A line is in the kernel when [`LogWriter::write`] returns,
//! so it survives every process; it is not synced to the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use hyper_task::stdio::LogConfig;

use crate::journal::Journal;
use crate::stamp::Stamper;
use crate::{Entry, LogError};

/// Encoded bytes gathered for one `write`.
const BATCH: usize = 256 << 10;

/// What could not be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    pub entries: u64,
    pub bytes: u64,
    /// The first reason.
    pub why: String,
}

impl Loss {
    /// In words; `None` when nothing is lost.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let Self { entries, bytes, why } = self;
        (*entries > 0)
            .then(|| format!("{entries} log lines ({bytes} bytes) could not be written: {why}"))
    }
}

/// Writes one container's log.
#[derive(Debug)]
pub struct LogWriter {
    config: LogConfig,
    /// `None` after a rotation that could not make the new file.
    file: Option<File>,
    size: u64,
    stamper: Stamper,
    journal: Option<Journal>,
    loss: Loss,
}

impl LogWriter {
    /// Opens (or makes) the log and goes on at its end.
    ///
    /// # Errors
    /// An unknown driver, or a file that cannot be opened.
    pub fn open(config: &LogConfig) -> Result<Self, LogError> {
        if !crate::is_ours(&config.driver) {
            return Err(LogError::UnknownDriver(config.driver.clone()));
        }
        let fail = |source| LogError::Io { action: "open", path: config.path.clone(), source };
        let (file, size) = append_to(&config.path).map_err(fail)?;
        let journal = config.journal.as_ref().map(Journal::open).transpose().map_err(fail)?;
        Ok(Self {
            config: config.clone(),
            file: Some(file),
            size,
            stamper: Stamper::default(),
            journal,
            loss: Loss::default(),
        })
    }

    /// Appends `entries`. What cannot be written is counted in [`LogWriter::loss`].
    pub fn write(&mut self, entries: &[Entry]) {
        let mut batch = Vec::new();
        let mut count = 0;
        for entry in entries {
            let full =
                self.config.max_size.is_some_and(|max| self.size + batch.len() as u64 >= max);
            if full || batch.len() >= BATCH {
                self.flush(&mut batch, &mut count);
            }
            if full && self.size > 0 {
                self.rotate();
            }
            entry.encode(&mut self.stamper, &mut batch);
            count += 1;
        }
        self.flush(&mut batch, &mut count);
        self.tell_journal(entries);
    }

    fn tell_journal(&mut self, entries: &[Entry]) {
        let Some(mut journal) = self.journal.take() else { return };
        for entry in entries {
            if let Err(error) = journal.send(entry) {
                let told = format!("journal {}: {error}", journal.path().display());
                self.lose(1, entry.data.len() as u64, &io::Error::new(error.kind(), told));
            }
        }
        self.journal = Some(journal);
    }

    /// What was lost since the log was opened.
    pub fn loss(&self) -> &Loss {
        &self.loss
    }

    fn flush(&mut self, batch: &mut Vec<u8>, count: &mut u64) {
        if let Err((error, whole)) = self.append(batch) {
            let written = batch[..whole].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.lose(count.saturating_sub(written), (batch.len() - whole) as u64, &error);
        }
        batch.clear();
        *count = 0;
    }

    /// Writes `batch`; an error says how many of its bytes, in whole lines, are in the file.
    fn append(&mut self, batch: &[u8]) -> Result<(), (io::Error, usize)> {
        if batch.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            let (file, size) = append_to(&self.config.path).map_err(|error| (error, 0))?;
            (self.file, self.size) = (Some(file), size);
        }
        let Some(file) = &mut self.file else { return Err((io::ErrorKind::NotFound.into(), 0)) };
        let mut written = 0;
        while written < batch.len() {
            match file.write(&batch[written..]) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), self.cut(batch, written))),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((error, self.cut(batch, written))),
            }
        }
        self.size += batch.len() as u64;
        Ok(())
    }

    /// Takes the unfinished line off the file's end; returns the bytes of `batch` that stay.
    fn cut(&mut self, batch: &[u8], written: usize) -> usize {
        let whole = batch[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.size += whole as u64;
        // When this fails too, the next open ends the broken line with a newline of its own.
        if self.file.as_ref().is_none_or(|file| file.set_len(self.size).is_err()) {
            self.file = None;
        }
        whole
    }

    fn rotate(&mut self) {
        self.file = None;
        let path = &self.config.path;
        let result = if self.config.max_file < 2 {
            std::fs::remove_file(path)
        } else {
            for index in (1..self.config.max_file - 1).rev() {
                // A gap in the numbers is fine.
                let _ = std::fs::rename(rotated(path, index), rotated(path, index + 1));
            }
            std::fs::rename(path, rotated(path, 1))
        };
        if let Err(error) = result {
            // The log grows over its limit rather than losing lines.
            tracing::warn!(path = %path.display(), %error, "log not rotated");
        }
        match append_to(path) {
            Ok((file, size)) => (self.file, self.size) = (Some(file), size),
            Err(error) => tracing::warn!(path = %path.display(), %error, "new log not made"),
        }
    }

    fn lose(&mut self, entries: u64, bytes: u64, error: &io::Error) {
        if self.loss.entries == 0 {
            self.loss.why = error.to_string();
            tracing::error!(path = %self.config.path.display(), %error, "log entries are lost; the container goes on");
        }
        self.loss.entries += entries;
        self.loss.bytes += bytes;
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if self.loss.entries > 0 {
            let Loss { entries, bytes, why } = &self.loss;
            tracing::error!(path = %self.config.path.display(), entries, bytes, why, "log is incomplete");
        }
    }
}

/// `path.N`.
pub(crate) fn rotated(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

/// Opens for appending; a line that a crash cut short is ended first.
fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
    let mut size = file.metadata()?.len();
    if size > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::Stream;

    fn config(dir: &Path, max_size: Option<u64>, max_file: u32) -> LogConfig {
        let path = dir.join("c-json.log");
        LogConfig { driver: "json-file".into(), path, max_size, max_file, journal: None }
    }

    fn entries(range: std::ops::Range<usize>) -> Vec<Entry> {
        range
            .map(|n| Entry {
                stream: Stream::Stdout,
                unix_ns: 0,
                data: format!("{n}\n").into_bytes(),
            })
            .collect()
    }

    fn numbers(path: &Path) -> Vec<String> {
        std::fs::read(path)
            .unwrap()
            .split_inclusive(|byte| *byte == b'\n')
            .filter_map(Entry::decode)
            .map(|entry| String::from_utf8(entry.data).unwrap().trim().to_owned())
            .collect()
    }

    #[test]
    fn rotates_and_keeps_max_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), Some(200), 3);
        let mut log = LogWriter::open(&config).unwrap();
        log.write(&entries(0..20));
        let kept: Vec<String> =
            [rotated(&config.path, 2), rotated(&config.path, 1), config.path.clone()]
                .iter()
                .flat_map(|path| numbers(path))
                .collect();
        let last: Vec<String> = (20 - kept.len()..20).map(|n| n.to_string()).collect();
        assert_eq!(kept, last);
        assert!(!rotated(&config.path, 3).exists());
        assert_eq!(log.loss(), &Loss::default());
    }

    #[test]
    fn a_line_cut_short_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), None, 1);
        std::fs::write(&config.path, b"{\"log\":\"cut").unwrap();
        LogWriter::open(&config).unwrap().write(&entries(0..2));
        assert_eq!(numbers(&config.path), ["0", "1"]);
    }

    #[test]
    fn a_full_disk_is_counted() {
        let config = LogConfig {
            driver: "json-file".into(),
            path: "/dev/full".into(),
            max_file: 1,
            ..LogConfig::default()
        };
        let mut log = LogWriter::open(&config).unwrap();
        log.write(&entries(0..3));
        log.write(&entries(3..4));
        assert_eq!(log.loss().entries, 4);
        assert!(log.loss().why.contains("No space left"), "{:?}", log.loss());
    }

    #[test]
    fn other_drivers_are_refused_by_name() {
        let config =
            LogConfig { driver: "syslog".into(), path: "/x".into(), ..LogConfig::default() };
        assert!(LogWriter::open(&config).unwrap_err().to_string().contains("syslog"));
    }
}
