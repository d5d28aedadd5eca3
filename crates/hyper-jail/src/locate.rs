//! Finds the launcher program.

use std::env;
use std::path::{Path, PathBuf};

use crate::JailError;

/// `hyper-jail` beside the running program, in the directories of `HYPER_LIBEXEC`, or in
/// `../libexec/hyper`. Test programs of Cargo sit in `deps/`, one level below it.
pub(crate) fn launcher() -> Result<PathBuf, JailError> {
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
    let found = searched.iter().map(|dir| dir.join("hyper-jail")).find(|path| path.is_file());
    found.ok_or(JailError::NoLauncher { searched })
}
