//! From a layer's stream to `layers/DIFF_ID/{blob,index}`.
//!
//! ```text
//!  stored bytes ─► decompress ─► diff id ─► hyper_erofs::convert_layer ─┬─► blob
//!                                                                       └─► index
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hyper_erofs::{LayerIndex, Limits};
use tempfile::TempDir;

use crate::digest::Digest;
use crate::error::Error;
use crate::store::layout::{self, Layout};
use crate::unpack::{UnpackError, Unpacker};

/// Buffer in front of a stored blob, in bytes.
const READ_BUFFER: usize = 256 << 10;
/// Largest index that is read back, in bytes; its writer is bounded by the same figure of `Limits`, with room for
/// fixed-size fields.
pub(crate) const MAX_INDEX: u64 = 2 << 30;

/// What a layer is to be converted to.
#[derive(Debug, Clone)]
pub(crate) struct Conversion {
    /// Digest of the stored bytes, for messages.
    pub blob: Digest,
    /// Digest the uncompressed stream must have.
    pub diff_id: Digest,
    pub unpacker: Unpacker,
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
        let path = directory.path().join("blob");
        let blob =
            File::create_new(&path).map_err(|error| layout::failed("create", &path, error))?;
        let mut charge = layout.charge();
        let done = self
            .unpacker
            .layer(stored, &blob, &mut |written| charge.reach(written))
            .map_err(|error| self.explain(&path, error))?;
        if done.digest != self.diff_id {
            let (blob, bytes) = (self.blob, done.bytes);
            let what = format!("the uncompressed content of layer {blob} ({bytes} bytes)");
            let (expected, actual) = (self.diff_id, done.digest);
            return Err(Error::DigestMismatch { what, expected, actual });
        }
        seal(&blob).map_err(|error| layout::full("write", &path, done.index.blob_len(), error))?;
        write_index(layout, &directory.path().join("index"), &done.index)?;
        Ok(Converted { directory, diff_id: self.diff_id })
    }

    /// Converts a layer that is in the store already.
    pub(crate) fn run_stored(&self, layout: &Layout) -> Result<Converted, Error> {
        let path = layout.blob(&self.blob);
        let file = File::open(&path).map_err(|error| layout::failed("open", &path, error))?;
        self.run(layout, BufReader::with_capacity(READ_BUFFER, file))
    }

    /// A full disk and a process that died are ours to tell; the rest is the layer's fault.
    fn explain(&self, path: &Path, error: UnpackError) -> Error {
        let digest = self.blob;
        match error {
            UnpackError::Output(source) => layout::full("write", path, 0, source),
            UnpackError::Input(source) => Error::Layer { digest, source: source.into() },
            UnpackError::Stream(source) => Error::Layer { digest, source },
            UnpackError::Stopped(error) => *error,
            error => Error::Unpacking { digest: Some(digest), source: error.into() },
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

fn write_index(layout: &Layout, path: &Path, index: &LayerIndex) -> Result<(), Error> {
    let bytes = index.encode();
    layout.charge().reach(bytes.len() as u64)?;
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
