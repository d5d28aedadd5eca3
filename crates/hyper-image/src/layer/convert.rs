//! From a layer's stream to `layers/DIFF_ID/{blob,index}`.
//!
//! ```text
//!  stored bytes ─► decompress ─► diff id ─► hyper_erofs::convert_layer ─┬─► blob
//!                                                                       └─► index
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hyper_erofs::{LayerIndex, Limits, convert_layer};
use tempfile::TempDir;

use super::decompress::Decompress;
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::store::layout::{self, Layout};

/// Buffer of the data blob's writer, in bytes: file contents come in pieces, the disk wants more.
const WRITE_BUFFER: usize = 256 << 10;
/// Largest index that is read back, in bytes; its writer is bounded by the same figure of `Limits`, with room for
/// fixed-size fields.
pub(crate) const MAX_INDEX: u64 = 2 << 30;

/// What a layer is to be converted to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversion {
    /// Digest of the stored bytes, for messages.
    pub blob: Digest,
    /// Digest the uncompressed stream must have.
    pub diff_id: Digest,
    pub limits: Limits,
}

/// A layer that is converted but not named yet.
#[derive(Debug)]
pub(crate) struct Converted {
    directory: TempDir,
    diff_id: Digest,
}

impl Converted {
    /// Gives it its place in the store. One that is there but could not be read gives way.
    pub(crate) fn publish(self, layout: &Layout) -> Result<(), Error> {
        layout.discard(&layout.layer(&self.diff_id))?;
        layout.publish_directory(self.directory, &layout.layer(&self.diff_id))
    }
}

impl Conversion {
    /// Converts a stream and checks its diff id. Reads to the stream's end.
    pub(crate) fn run(&self, layout: &Layout, stored: impl BufRead) -> Result<Converted, Error> {
        let directory = layout.scratch_directory()?;
        let blob_path = directory.path().join("blob");
        let file = File::create_new(&blob_path)
            .map_err(|error| layout::failed("create", &blob_path, error))?;
        let mut blob = BufWriter::with_capacity(WRITE_BUFFER, file);
        let broken = |source: io::Error| Error::Layer { digest: self.blob, source: source.into() };
        let mut stored = stored;
        let mut tar = Hashing::new(Decompress::new(&mut stored).map_err(broken)?);
        let index = convert_layer(&mut tar, &mut blob, &self.limits)
            .map_err(|error| self.explain(&blob_path, error))?;
        // What a decompressor leaves unread is not part of the layer, but its sender must not be blocked by it.
        let (_, actual, bytes) = tar.finish();
        io::copy(&mut stored, &mut io::sink()).map_err(broken)?;
        if actual != self.diff_id {
            let what = format!("the uncompressed content of layer {} ({bytes} bytes)", self.blob);
            return Err(Error::DigestMismatch { what, expected: self.diff_id, actual });
        }
        let sync =
            blob.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| seal(&file));
        sync.map_err(|error| layout::full("write", &blob_path, index.blob_len(), error))?;
        write_index(&directory.path().join("index"), &index)?;
        Ok(Converted { directory, diff_id: self.diff_id })
    }

    /// Converts a layer that is in the store already.
    pub(crate) fn run_stored(&self, layout: &Layout) -> Result<Converted, Error> {
        let path = layout.blob(&self.blob);
        let file = File::open(&path).map_err(|error| layout::failed("open", &path, error))?;
        self.run(layout, BufReader::with_capacity(WRITE_BUFFER, file))
    }

    /// A full disk is ours to tell; the rest is the layer's fault.
    fn explain(&self, path: &Path, error: hyper_erofs::LayerError) -> Error {
        match error {
            hyper_erofs::LayerError::Blob(source) => layout::full("write", path, 0, source),
            source => Error::Layer { digest: self.blob, source: source.into() },
        }
    }
}

/// The index of a converted layer.
pub(crate) fn read_index(
    layout: &Layout,
    diff_id: &Digest,
    limits: &Limits,
) -> Result<LayerIndex, Error> {
    let directory = layout.layer(diff_id);
    let path = directory.join("index");
    let bytes = layout::read(&path, MAX_INDEX)?;
    let damaged = |path: &Path, reason: String| Error::Damaged { path: path.to_owned(), reason };
    let index =
        LayerIndex::decode(&bytes, limits).map_err(|error| damaged(&path, error.to_string()))?;
    let blob = directory.join("blob");
    let length =
        std::fs::metadata(&blob).map_err(|error| layout::failed("examine", &blob, error))?.len();
    if length != index.blob_len() {
        return Err(damaged(
            &blob,
            format!("it has {length} bytes, its index says {}", index.blob_len()),
        ));
    }
    Ok(index)
}

fn write_index(path: &Path, index: &LayerIndex) -> Result<(), Error> {
    let bytes = index.encode();
    let written = File::create_new(path).and_then(|mut file| {
        file.write_all(&bytes)?;
        seal(&file)
    });
    written.map_err(|error| layout::full("write", path, bytes.len() as u64, error))
}

/// Readable by everybody, and on the disk.
fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.sync_data()
}

/// Whether a stream equals a file, for [`Store::verify`](crate::Store::verify): a writer that compares.
#[derive(Debug)]
pub(crate) struct Compare<R> {
    file: R,
    pub different: bool,
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

impl<R: Read> io::Write for Compare<R> {
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
