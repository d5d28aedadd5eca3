//! Finds the launcher program.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::JailError;

pub(crate) fn launcher() -> Result<PathBuf, JailError> {
    find("hyper-jail").map_err(|searched| JailError::NoLauncher { searched })
}

/// Where a program was looked for; shown as `a`, `b`.
#[derive(Debug)]
pub struct Searched(Vec<PathBuf>);

impl fmt::Display for Searched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|path| format!("`{}`", path.display())).collect();
        f.write_str(&all.join(", "))
    }
}

/// One of Hyper's programs: beside the running program, in the directories of `HYPER_LIBEXEC`, or
/// in `../libexec/hyper`. Test programs of Cargo sit in `deps/`, one level below it.
///
/// # Errors
/// The directories it is not in.
pub fn find(program: &str) -> Result<PathBuf, Searched> {
    let mut searched = Vec::new();
    let here = env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    if let Some(dir) = &here {
        searched.push(dir.clone());
    }
    if let Some(paths) = env::var_os("HYPER_LIBEXEC") {
        searched.extend(env::split_paths(&paths));
    }
    if let Some(parent) = here.as_deref().and_then(Path::parent) {
        searched.push(parent.join("libexec/hyper"));
        if here.as_deref().is_some_and(|dir| dir.ends_with("deps")) {
            searched.push(parent.to_path_buf());
        }
    }
    let found = searched.iter().map(|dir| dir.join(program)).find(|path| path.is_file());
    found.ok_or(Searched(searched))
}
