//! Why a pod refuses or fails.

use std::path::PathBuf;

use hyper_hypervisor::VmError;
use hyper_link::CallError;
use hyper_link::message::{Failure, FailureKind};

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    AlreadyExists,
    /// Not in a state that allows it.
    FailedPrecondition,
    InvalidArgument,
    Unsupported,
    /// The pod is gone.
    Unavailable,
    Internal,
}

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("{what} `{id}` is not in this pod")]
    NotFound { what: &'static str, id: String },
    #[error("{what} `{id}` exists already")]
    Exists { what: &'static str, id: String },
    #[error("{what} `{id}` is {state}: cannot {action}")]
    State { what: &'static str, id: String, state: &'static str, action: &'static str },
    /// `config.json`, an annotation or an option is wrong.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{action} `{}`", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("root file system of container `{container}`")]
    Rootfs {
        container: String,
        #[source]
        source: crate::RootfsError,
    },
    #[error("stdio of container `{container}`")]
    Stdio {
        container: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{action}")]
    Vm {
        action: String,
        #[source]
        source: VmError,
    },
    #[error("share directories of the host with the guest")]
    Share {
        #[source]
        source: hyper_jail::JailError,
    },
    /// The guest ended, or its agent did not come up.
    #[error(
        "guest did not boot on hypervisor `{hypervisor}`: {detail}; end of its console: {console}"
    )]
    Boot { hypervisor: &'static str, detail: String, console: String },
    #[error("container `{container}`")]
    Agent {
        container: String,
        #[source]
        source: CallError,
    },
    /// The guest ended while something was asked of it.
    #[error("container `{container}`: {reason}; end of the guest's console: {console}")]
    Ended { container: String, reason: String, console: String },
    /// The agent's refusal, in words that Docker clients know.
    #[error("container `{container}`: {message}")]
    Refused { container: String, kind: FailureKind, message: String },
    #[error("pod `{pod}` is gone: {reason}")]
    Dead { pod: String, reason: String },
    /// A task of the supervisor failed.
    #[error("supervisor task failed: {0}")]
    Internal(String),
    #[error("wire the pod's network")]
    Network(#[source] hyper_network::NetworkError),
}

impl PodError {
    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::State { .. } => Kind::FailedPrecondition,
            Self::Invalid(_) | Self::Rootfs { .. } | Self::Stdio { .. } => Kind::InvalidArgument,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Vm { source, .. } => match source {
                VmError::Unsupported { .. } => Kind::Unsupported,
                VmError::MemoryTooSmall { .. } => Kind::InvalidArgument,
                VmError::Missing { .. } => Kind::FailedPrecondition,
                _ => Kind::Internal,
            },
            Self::Refused { kind, .. } => match kind {
                FailureKind::NotFound => Kind::NotFound,
                FailureKind::Conflict | FailureKind::ReadOnly => Kind::FailedPrecondition,
                FailureKind::CommandNotFound
                | FailureKind::NotExecutable
                | FailureKind::UnknownUser
                | FailureKind::InvalidArgument => Kind::InvalidArgument,
                FailureKind::Unsupported => Kind::Unsupported,
                FailureKind::NoSpace | FailureKind::Internal | FailureKind::Other => Kind::Internal,
            },
            Self::Dead { .. } => Kind::Unavailable,
            Self::File { .. }
            | Self::Share { .. }
            | Self::Boot { .. }
            | Self::Ended { .. }
            | Self::Agent { .. }
            | Self::Network(_)
            | Self::Internal(_) => Kind::Internal,
        }
    }

    /// Exit code that a shell would give the failed program, when that is what failed.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Refused { kind: FailureKind::CommandNotFound, .. } => Some(127),
            Self::Refused { kind: FailureKind::NotExecutable, .. } => Some(126),
            _ => None,
        }
    }

    pub(crate) fn call(container: &str, source: CallError) -> Self {
        let container = container.to_owned();
        match source {
            CallError::Refused { failure: Failure { kind, message }, .. } => {
                // dockerd and the docker CLI look for these words to choose exit code 127 or 126.
                let words = match kind {
                    FailureKind::CommandNotFound => "executable file not found in $PATH",
                    FailureKind::NotExecutable => "permission denied",
                    _ => "",
                };
                let message =
                    if message.contains(words) { message } else { format!("{message}: {words}") };
                Self::Refused { container, kind, message }
            }
            source => Self::Agent { container, source },
        }
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
