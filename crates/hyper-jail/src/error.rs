//! Why a jail could not be made.

use std::path::PathBuf;
use std::time::Duration;

use crate::Searched;

/// Errors of making and steering a jail. Every one names the object and, where there is one, the
/// remedy.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The launcher program is not installed.
    #[error("no program `hyper-jail` in {searched}: set HYPER_LIBEXEC to its directory")]
    NoLauncher { searched: Searched },
    /// The launcher program could not be started.
    #[error("start `{}`", launcher.display())]
    Start {
        launcher: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What was asked for makes no sense.
    #[error("jail specification: {what}: {hint}")]
    Spec { what: String, hint: String },
    /// A step of the set-up failed; everything was taken down again.
    #[error("jail `{name}`: {doing} `{object}`{hint}")]
    Step {
        name: String,
        /// E.g. `bind`.
        doing: String,
        /// What it was done to.
        object: String,
        /// Empty, or `: ` and what to do.
        hint: String,
        #[source]
        source: std::io::Error,
    },
    /// The launcher ended without a word.
    #[error("jail `{name}`: the launcher died while {doing}; was it killed?")]
    LauncherDied { name: String, doing: &'static str },
    /// No answer in time.
    #[error("jail `{name}`: no answer of the launcher after {after:?} while {doing}")]
    Timeout { name: String, doing: &'static str, after: Duration },
    /// This host cannot do it.
    #[error("jail `{name}`: cannot {what}: {hint}")]
    Unsupported { name: String, what: &'static str, hint: String },
    /// Talking to the launcher or the kernel failed.
    #[error("jail `{name}`: {doing}")]
    Io {
        name: String,
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
}
