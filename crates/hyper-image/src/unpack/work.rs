//! The work itself: in this process, or as what a confined process does.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};

use hyper_erofs::{LayerError, LayerIndex, Limits, convert_layer};

use super::decompress::Decompress;
use super::order::{Order, Report, Task};
use super::{BUFFER, UnpackError, Unpacked, Watch};
use crate::digest::Hashing;

/// Converts to a blob.
pub(super) fn convert(
    input: impl BufRead,
    blob: &File,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Unpacked, UnpackError> {
    let mut out = Watched { out: blob, written: 0, watch, stopped: None };
    let result = run(input, &mut out, limits);
    match out.stopped {
        Some(error) => Err(UnpackError::Stopped(Box::new(error))),
        None => result,
    }
}

/// Converts and compares with a blob.
pub(super) fn compare(
    input: impl BufRead,
    blob: &File,
    limits: &Limits,
) -> Result<(Unpacked, bool), UnpackError> {
    let mut compare = Compare::new(BufReader::with_capacity(BUFFER, blob));
    let unpacked = run(input, &mut compare, limits)?;
    let same = compare.finish().map_err(UnpackError::Output)?;
    Ok((unpacked, same))
}

fn run(mut input: impl BufRead, out: impl Write, limits: &Limits) -> Result<Unpacked, UnpackError> {
    let mut tar = Hashing::new(Decompress::new(&mut input).map_err(UnpackError::Input)?);
    let index = convert_layer(&mut tar, out, limits).map_err(|error| match error {
        LayerError::Blob(source) => UnpackError::Output(source),
        error => UnpackError::Stream(error.into()),
    })?;
    let (_, digest, bytes) = tar.finish();
    // What a decompressor leaves unread is not part of the layer, but its sender must not be blocked by it.
    io::copy(&mut input, &mut io::sink()).map_err(UnpackError::Input)?;
    Ok(Unpacked { index, digest, bytes })
}

/// Tells how much was written.
struct Watched<'w, W> {
    out: W,
    written: u64,
    watch: Watch<'w>,
    stopped: Option<crate::Error>,
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = (self.watch)(self.written + bytes.len() as u64) {
            self.stopped = Some(error);
            return Err(io::Error::other("stopped"));
        }
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A confined process's whole life: carries out `order` on its standard descriptors. Returns the exit code.
#[must_use]
pub fn serve(order: &str) -> u8 {
    let streams = || -> io::Result<[File; 3]> {
        Ok([
            rustix::stdio::stdin().try_clone_to_owned()?.into(),
            rustix::stdio::stdout().try_clone_to_owned()?.into(),
            rustix::stdio::stderr().try_clone_to_owned()?.into(),
        ])
    };
    let Ok([input, output, mut report]) = streams() else { return 2 };
    let (told, index) = match serde_json::from_str::<Order>(order) {
        Ok(order) => carry_out(&order, input, &output),
        Err(error) => (Report::Stream { text: format!("order: {error}") }, None),
    };
    let told = match &index {
        Some(bytes) => match told {
            Report::Done { digest, bytes: length, same, .. } => {
                Report::Done { digest, bytes: length, same, index: bytes.len() as u64 }
            }
            other => other,
        },
        None => told,
    };
    let Ok(mut line) = serde_json::to_vec(&told) else { return 2 };
    line.push(b'\n');
    let sent =
        report.write_all(&line).and_then(|()| report.write_all(index.as_deref().unwrap_or(&[])));
    if sent.is_ok() { 0 } else { 2 }
}

fn carry_out(order: &Order, input: File, output: &File) -> (Report, Option<Vec<u8>>) {
    let limits = order.limits();
    let input = BufReader::with_capacity(BUFFER, input);
    let result = match order.task {
        Task::Convert => convert(input, output, &limits, &mut |_| Ok(())).map(|done| (done, true)),
        Task::Compare => compare(input, output, &limits),
        Task::Decompress => decompress(input, output).map(|done| (done, true)),
    };
    match result {
        Ok((done, same)) => {
            let report = Report::Done { digest: done.digest, bytes: done.bytes, index: 0, same };
            (report, Some(done.index.encode()))
        }
        Err(UnpackError::Output(error)) => {
            let report = Report::Output { errno: error.raw_os_error(), text: error.to_string() };
            (report, None)
        }
        Err(error) => (Report::Stream { text: chain(&error) }, None),
    }
}

fn decompress(input: impl BufRead, mut output: &File) -> Result<Unpacked, UnpackError> {
    let mut stream = Hashing::new(Decompress::new(input).map_err(UnpackError::Input)?);
    let mut piece = vec![0; BUFFER];
    loop {
        let read = stream.read(&mut piece).map_err(UnpackError::Input)?;
        if read == 0 {
            let (_, digest, bytes) = stream.finish();
            return Ok(Unpacked { index: LayerIndex::default(), digest, bytes });
        }
        output.write_all(&piece[..read]).map_err(UnpackError::Output)?;
    }
}

fn chain(error: &UnpackError) -> String {
    // "cannot read it" says nothing beside its cause.
    let error: &dyn std::error::Error = match error {
        UnpackError::Input(cause) => cause,
        other => other,
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.chars().take(4000).collect()
}

/// Whether a stream equals a file: a writer that compares.
#[derive(Debug)]
pub(crate) struct Compare<R> {
    file: R,
    different: bool,
}

impl<R: Read> Compare<R> {
    pub(crate) fn new(file: R) -> Self {
        Self { file, different: false }
    }

    /// Whether everything was the same, and nothing is left of the file.
    pub(crate) fn finish(mut self) -> io::Result<bool> {
        let mut rest = [0];
        Ok(!self.different && self.file.read(&mut rest)? == 0)
    }
}

impl<R: Read> Write for Compare<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = [0; 64 << 10];
        for part in bytes.chunks(buffer.len()) {
            if self.different {
                break;
            }
            let found = &mut buffer[..part.len()];
            match self.file.read_exact(found) {
                Ok(()) => self.different = found != part,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.different = true,
                Err(error) => return Err(error),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
