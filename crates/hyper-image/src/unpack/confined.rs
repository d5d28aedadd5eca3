//! Our side of a process that takes a stream apart.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use hyper_erofs::{LayerIndex, Limits};

use super::order::{MAX_LINE, Order, Report, Task};
use super::{BUFFER, UnpackError, Unpacked, Watch};

/// Bytes a pipe is asked to hold; what it gets is what the host allows.
const PIPE: usize = 1 << 20;
/// Largest index that is taken, in bytes.
const MAX_INDEX: u64 = crate::layer::MAX_INDEX;
/// What an entry may cost the process beside its names, in bytes: more than it does.
const ENTRY_BYTES: u64 = 512;
/// What the process needs before it has read anything, decoders' windows included.
const BASE_BYTES: u64 = 1 << 30;

/// Starts processes that have nothing but the descriptors they are given. Each must do nothing but call
/// [`serve`](super::serve) with the order.
pub trait Confine: fmt::Debug + Send + Sync {
    /// Starts one. Blocking.
    ///
    /// # Errors
    /// It cannot be started; the descriptors are closed.
    fn start(&self, work: Work) -> io::Result<Box<dyn Confined>>;
}

/// A started process. Dropping it ends it and frees what it had.
pub trait Confined: fmt::Debug + Send {
    /// Waits for its end, and says how it ended if that was not by itself with success. Blocking.
    fn wait(&mut self) -> Option<String>;
}

/// What a process is started with.
#[derive(Debug)]
pub struct Work {
    /// Its argument.
    pub order: String,
    /// Its descriptors 0, 1 and 2.
    pub descriptors: [OwnedFd; 3],
    /// Bytes of the largest file it may write.
    pub file_bytes: u64,
    /// Bytes of address space it may use.
    pub memory_bytes: u64,
}

/// What a process did.
pub(super) struct Done {
    pub unpacked: Unpacked,
    pub same: bool,
}

struct Started {
    child: Box<dyn Confined>,
    input: File,
    report: File,
}

fn start(
    confine: &dyn Confine,
    task: Task,
    limits: &Limits,
    output: OwnedFd,
) -> Result<Started, UnpackError> {
    let started = || -> io::Result<Started> {
        let order = serde_json::to_string(&Order::new(task, limits))?;
        let (theirs_in, input) = pipe()?;
        let (report, theirs_report) = pipe()?;
        let child = confine.start(Work {
            order,
            descriptors: [theirs_in, output, theirs_report],
            // The last block is padded.
            file_bytes: limits.max_data_bytes.saturating_mul(2).saturating_add(1 << 20),
            memory_bytes: limits
                .max_entries
                .saturating_mul(ENTRY_BYTES)
                .saturating_add(limits.max_index_bytes.saturating_mul(3))
                .saturating_add(BASE_BYTES),
        })?;
        Ok(Started { child, input: input.into(), report: report.into() })
    };
    started().map_err(UnpackError::Start)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Smaller is slower, not wrong.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

/// Has a process convert or compare.
pub(super) fn run(
    confine: &dyn Confine,
    task: Task,
    limits: &Limits,
    mut input: impl BufRead,
    blob: &File,
    watch: Watch<'_>,
) -> Result<Done, UnpackError> {
    let output = blob.as_fd().try_clone_to_owned().map_err(UnpackError::Start)?;
    let mut started = start(confine, task, limits, output)?;
    loop {
        let piece = input.fill_buf().map_err(UnpackError::Input)?;
        let length = piece.len();
        if length == 0 {
            break;
        }
        match started.input.write_all(piece) {
            Ok(()) => {}
            // It wants no more: its report says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(UnpackError::Input(error)),
        }
        input.consume(length);
        if task == Task::Convert {
            let written = blob.metadata().map_err(UnpackError::Output)?.len();
            watch(written).map_err(|error| UnpackError::Stopped(Box::new(error)))?;
        }
    }
    let Started { mut child, input: theirs, report } = started;
    drop(theirs);
    let Some((report, mut rest)) = read_report(report) else { return Err(died(&mut *child)) };
    let (digest, bytes, length, same) = accept(report)?;
    let mut index = Vec::new();
    let taken = rest.by_ref().take(length.min(MAX_INDEX)).read_to_end(&mut index);
    if taken.is_err() || index.len() as u64 != length {
        return Err(died(&mut *child));
    }
    let index = LayerIndex::decode(&index, limits)
        .map_err(|error| UnpackError::Died { how: format!("made no index: {error}") })?;
    if task == Task::Convert {
        let written = blob.metadata().map_err(UnpackError::Output)?.len();
        watch(written).map_err(|error| UnpackError::Stopped(Box::new(error)))?;
    }
    Ok(Done { unpacked: Unpacked { index, digest, bytes }, same })
}

/// The line, and what follows it; `None` if there is no line.
fn read_report(report: File) -> Option<(Report, BufReader<File>)> {
    let mut report = BufReader::with_capacity(BUFFER, report);
    let mut line = Vec::new();
    report.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).ok()?;
    Some((serde_json::from_slice(&line).ok()?, report))
}

fn accept(report: Report) -> Result<(crate::Digest, u64, u64, bool), UnpackError> {
    match report {
        Report::Done { digest, bytes, index, same } => Ok((digest, bytes, index, same)),
        Report::Output { errno: Some(errno), .. } => {
            Err(UnpackError::Output(io::Error::from_raw_os_error(errno)))
        }
        Report::Output { errno: None, text } => Err(UnpackError::Output(io::Error::other(text))),
        Report::Stream { text } => Err(UnpackError::Stream(text.into())),
    }
}

fn died(child: &mut dyn Confined) -> UnpackError {
    let how = child.wait().unwrap_or_else(|| "ended without a word".to_owned());
    UnpackError::Died { how }
}

/// Has a process decompress, and gives `work` what it says.
pub(super) fn plain<T>(
    confine: &dyn Confine,
    limits: &Limits,
    mut input: impl BufRead + Send,
    work: impl FnOnce(&mut dyn Read) -> T,
) -> Result<T, UnpackError> {
    let (output, theirs_out) = pipe().map_err(UnpackError::Start)?;
    let Started { child, input: mut theirs, report } =
        start(confine, Task::Decompress, limits, theirs_out)?;
    Ok(thread::scope(|scope| {
        let pump = scope.spawn(move || -> io::Result<()> {
            loop {
                let piece = input.fill_buf()?;
                let length = piece.len();
                // A process or a reader that wants no more says so itself.
                if length == 0 || theirs.write_all(piece).is_err() {
                    return Ok(());
                }
                input.consume(length);
            }
        });
        let mut stream =
            Plain { output: File::from(output), report: Some(report), child, pump: Some(pump) };
        work(&mut stream)
        // Dropped here: the process sees its end closed, and the pump sees the process's.
    }))
}

/// What a process decompresses. Its end is one only if the process says that it was one.
struct Plain<'s> {
    output: File,
    report: Option<File>,
    child: Box<dyn Confined>,
    pump: Option<thread::ScopedJoinHandle<'s, io::Result<()>>>,
}

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.output.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        // If the stream broke, the process only saw its end.
        if let Some(pump) = self.pump.take() {
            pump.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let Some(report) = self.report.take() else { return Ok(0) };
        match read_report(report) {
            Some((report, _)) => accept(report).map(|_| 0).map_err(|error| match error {
                UnpackError::Stream(text) => io::Error::new(io::ErrorKind::InvalidData, text),
                error => io::Error::other(error),
            }),
            None => Err(io::Error::other(died(&mut *self.child))),
        }
    }
}
