//! Hostile streams taken apart: decompressed, hashed, and converted to a layer's blob and index.
//!
//! ```text
//!  our process                                    a process with three descriptors and nothing else
//!  stream ──► pipe (stdin)  ────────────────────► decompress ─► hash ─► convert ──► blob (stdout)
//!  report ◄── pipe (stderr) ◄──────────────────── digest, length, index
//! ```
//! Decoders and archives' headers are where bytes of strangers meet code. An [`Unpacker`] that was given a [`Confine`]
//! runs them in a process of their own, started by it; one without runs them here, which is for programs that have no
//! privilege to lose. What comes back is checked as what a stranger says: the index is decoded within the limits, the
//! blob's length is compared.
//!
//! Invariants: a process ends with the call that started it; one that dies, for whatever reason, is an error that says
//! how; a stream that breaks off never looks like a short one.

mod confined;
mod decompress;
mod order;
mod work;

pub use confined::{Confine, Confined, Work};
pub(crate) use work::Compare;
pub use work::serve;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use hyper_erofs::{LayerIndex, Limits};

pub(crate) use decompress::Compression;
use decompress::Decompress;
use order::Task;

use crate::digest::Digest;
use crate::error::Source;

/// Buffer in front of a decoder, in bytes.
const BUFFER: usize = 256 << 10;

/// Takes streams apart within limits. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Unpacker {
    /// What one archive may cost.
    pub limits: Limits,
    confine: Option<Arc<dyn Confine>>,
}

/// What a stream turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Everything but the contents.
    pub index: LayerIndex,
    /// Of the uncompressed stream.
    pub digest: Digest,
    /// Bytes of the uncompressed stream.
    pub bytes: u64,
}

/// Why a stream was not taken apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The stream broke off.
    #[error("cannot read it")]
    Input(#[source] io::Error),
    /// The blob could not be written.
    #[error("cannot write what it holds")]
    Output(#[source] io::Error),
    /// The stream is not what it should be.
    #[error(transparent)]
    Stream(Source),
    /// The process could not be started.
    #[error("cannot start the process that unpacks it")]
    Start(#[source] io::Error),
    /// The process did not do it.
    #[error("the process that unpacks it {how}")]
    Died {
        /// `was killed by signal 9` …
        how: String,
    },
    /// The caller did not let it go on.
    #[error(transparent)]
    Stopped(Box<crate::Error>),
}

/// Told how many bytes the blob has by now, now and then; an error stops the work.
pub type Watch<'w> = &'w mut dyn FnMut(u64) -> Result<(), crate::Error>;

impl Unpacker {
    /// One that works in this process, or in processes that `confine` starts.
    #[must_use]
    pub fn new(limits: Limits, confine: Option<Arc<dyn Confine>>) -> Self {
        Self { limits, confine }
    }

    /// The same with other limits.
    #[must_use]
    pub fn within(&self, limits: Limits) -> Self {
        Self { limits, confine: self.confine.clone() }
    }

    /// Converts a layer's stream, plain or compressed. Reads it to its end; writes the blob from `blob`'s position,
    /// which is its start. Blocking.
    ///
    /// # Errors
    /// [`UnpackError`]; the blob is then incomplete.
    pub fn layer(
        &self,
        input: impl BufRead,
        blob: &File,
        watch: Watch<'_>,
    ) -> Result<Unpacked, UnpackError> {
        match &self.confine {
            Some(confine) => {
                let done =
                    confined::run(&**confine, Task::Convert, &self.limits, input, blob, watch)?;
                let length = blob.metadata().map_err(UnpackError::Output)?.len();
                if length != done.unpacked.index.blob_len() {
                    let how = format!("wrote {length} bytes and spoke of others");
                    return Err(UnpackError::Died { how });
                }
                Ok(done.unpacked)
            }
            None => work::convert(input, blob, &self.limits, watch),
        }
    }

    /// Converts a layer's stream again and says whether that gives the blob that is in `blob`. Blocking.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn compare(
        &self,
        input: impl BufRead,
        blob: &File,
    ) -> Result<(Unpacked, bool), UnpackError> {
        match &self.confine {
            Some(confine) => {
                let watch = &mut |_| Ok(());
                confined::run(&**confine, Task::Compare, &self.limits, input, blob, watch)
                    .map(|done| (done.unpacked, done.same))
            }
            None => work::compare(input, blob, &self.limits),
        }
    }

    /// Gives `work` the uncompressed stream. One that is not compressed is passed through. Blocking.
    ///
    /// # Errors
    /// If the process cannot be started or the stream's start cannot be read. What is wrong later is an error of the
    /// stream that `work` reads.
    pub fn plain<T>(
        &self,
        input: impl Read + Send,
        work: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<T, UnpackError> {
        let mut input = BufReader::with_capacity(BUFFER, input);
        let start = input.fill_buf().map_err(UnpackError::Input)?;
        if Compression::of(start) == Compression::None {
            return Ok(work(&mut input));
        }
        match &self.confine {
            Some(confine) => confined::plain(&**confine, &self.limits, input, work),
            None => {
                let mut stream = Decompress::new(input).map_err(UnpackError::Input)?;
                Ok(work(&mut stream))
            }
        }
    }
}
