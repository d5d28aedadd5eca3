//! The build context: the request's tar stream, kept as a layer in a temporary file.
//!
//! Names in it are looked up in its index and never used on the host. What it may cost is bounded by the limits of
//! layers.

use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;

use hyper_erofs::NodeKind;
use hyper_image::{ImageFiles, LayerFile, UnpackError, Unpacker};

use crate::BuildError;
use crate::tree::Files;
use hyper_dockerfile::Ignore;
use hyper_dockerfile::MAX_TEXT;

/// Longest `.dockerignore`, in bytes.
const MAX_IGNORE: u64 = 1 << 20;
/// Buffer in front of what takes an archive apart.
const BUFFER: usize = 256 << 10;

/// Where temporary files are, and what they may hold.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// Files in it have no name: nothing is left of them, however this process ends.
    pub directory: PathBuf,
    /// Takes archives apart, and knows what one may hold.
    pub unpacker: Unpacker,
}

impl Scratch {
    /// For an archive of which every byte but the contents was written here: no process of its own is needed.
    pub(crate) fn ours(&self) -> Self {
        let unpacker = Unpacker::new(self.unpacker.limits, None);
        Self { directory: self.directory.clone(), unpacker }
    }
}

/// A received context.
#[derive(Debug)]
pub struct Context {
    pub(crate) files: Arc<Files>,
    /// Bytes of all files.
    pub size: u64,
}

impl Context {
    /// Reads a tar stream, plain or compressed, to its end. Blocking.
    ///
    /// # Errors
    /// [`BuildError::Context`], and [`BuildError::File`] for the temporary file.
    pub fn receive(stream: impl Read + Send, scratch: &Scratch) -> Result<Self, BuildError> {
        let (files, size) = unpack(stream, scratch)?;
        let mut files = Files { files, ignore: Ignore::default() };
        if let Some(text) = read(&files, ".dockerignore", MAX_IGNORE)? {
            let text = String::from_utf8_lossy(&text).into_owned();
            files.ignore = Ignore::parse(&text).map_err(BuildError::Invalid)?;
        }
        Ok(Self { size, files: Arc::new(files) })
    }

    /// The Dockerfile at `path`.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] if there is none.
    pub fn dockerfile(&self, path: &str) -> Result<Vec<u8>, BuildError> {
        read(&self.files, path, MAX_TEXT as u64 + 1)?.ok_or_else(|| {
            BuildError::Invalid(format!(
                "Cannot locate specified Dockerfile: {path}: there is no such file in the build \
                 context (`-f` gives its name, relative to the context)"
            ))
        })
    }
}

/// A regular file, links followed inside the files; `None` if there is none.
fn read(files: &Files, path: &str, limit: u64) -> Result<Option<Vec<u8>>, BuildError> {
    let view = files.view().map_err(|e| BuildError::Context(Box::new(e)))?;
    let Ok(place) = view.resolve(path.as_bytes()) else { return Ok(None) };
    match place.node.map(|node| node.kind) {
        Some(NodeKind::File { layer, data }) => files
            .read(layer, data, limit)
            .map(Some)
            .map_err(|e| BuildError::file("read the build context", e)),
        _ => Ok(None),
    }
}

/// A tar stream as files, and the bytes in them.
pub(crate) fn unpack(
    stream: impl Read + Send,
    scratch: &Scratch,
) -> Result<(ImageFiles, u64), BuildError> {
    let full = |error| BuildError::file("write the temporary file of an archive", error);
    let blob = tempfile::tempfile_in(&scratch.directory).map_err(full)?;
    let stream = BufReader::with_capacity(BUFFER, stream);
    let unpacked =
        scratch.unpacker.layer(stream, &blob, &mut |_| Ok(())).map_err(|error| match error {
            UnpackError::Output(error) => full(error),
            error => BuildError::Context(Box::new(error)),
        })?;
    let index = unpacked.index;
    let size = index.content_bytes();
    Ok((ImageFiles::of(vec![LayerFile { index, blob }]), size))
}
