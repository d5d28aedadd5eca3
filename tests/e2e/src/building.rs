//! Contexts of builds, and `docker build` with the classic builder.

use std::fs;

use tempfile::TempDir;

use crate::{Engine, Outcome, text};

/// A directory with files.
pub fn context(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("directory");
    for (name, content) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a file")).expect("directory");
        fs::write(path, content).expect("write");
    }
    directory
}

/// Builds the directory.
#[track_caller]
pub fn build(engine: &Engine, directory: &TempDir, flags: &[&str]) -> Outcome {
    let path = text(directory.path());
    let arguments: Vec<&str> =
        ["build"].iter().chain(flags).copied().chain([path.as_str()]).collect();
    engine.docker(&arguments)
}
