//! Empty volumes take what the image has where they are to be mounted.

use std::path::Path;

use hyper_files::{path, volume};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::ForeignError;
use crate::error::{Result, file};
use crate::spec::CopyUp;

/// Blocking. A place that the image does not have, or that is no directory, leaves nothing.
pub(crate) fn fill(root: &Path, volumes: &[CopyUp]) -> Result<()> {
    let failed = |failure: hyper_link::message::Failure| ForeignError::Invalid(failure.message);
    let tree = path::root(root).map_err(failed)?;
    for CopyUp { target, directory } in volumes {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(image) = path::followed(&tree, target, flags) else { continue };
        let to = openat(CWD, directory, flags, Mode::empty()).map_err(file("open", directory))?;
        volume::fill(&image, &to).map_err(file("fill the volume", directory))?;
    }
    Ok(())
}
