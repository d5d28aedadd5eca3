//! Why there is no image.

use hyper_dockerfile::DockerfileError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The Dockerfile is wrong.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// Something else of the request is wrong, by name.
    #[error("{0}")]
    Invalid(String),
    /// A step is wrong, or what it does failed.
    #[error("dockerfile line {line}: {why}")]
    Step {
        /// From 1.
        line: usize,
        /// What is wrong with which instruction, and what to do.
        why: String,
    },
    /// A `RUN` ended with another code than 0, in Docker's words.
    #[error("The command '{command}' returned a non-zero code: {code}")]
    Command {
        /// As it was run.
        command: String,
        /// Its exit code.
        code: i32,
    },
    /// The context, or an archive of it, cannot be read.
    #[error("cannot read the archive")]
    Context(#[source] Source),
    /// The engine's words.
    #[error(transparent)]
    Engine(#[from] hyper_engine::Error),
    /// The image store's words.
    #[error(transparent)]
    Image(#[from] hyper_image::Error),
    /// The disk's.
    #[error("{action}")]
    File {
        /// What was done.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The client is gone, or hyperd ends.
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildError {
    pub(crate) fn file(action: &'static str, source: std::io::Error) -> Self {
        Self::File { action, source }
    }

    /// Whether whoever asked has to change something.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Dockerfile(_) | Self::Invalid(_) | Self::Context(_))
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}
