//! What can go wrong, sorted by what a caller does about it.
//!
//! Texts are lower case and name the object and the value. A dialect maps [`Error::kind`] to its
//! own status codes and prints [`std::error::Error::source`] chains once, at its edge.

use std::path::PathBuf;

/// Why a request to the engine failed; the state is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    #[error("no such pod: {0}")]
    NoSuchPod(String),
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    /// In Docker's words.
    #[error("{0}")]
    NoSuchVolume(String),
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("no such service: {0}")]
    NoSuchService(String),
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// Not to be done with this object, in Docker's words.
    #[error("{0}")]
    Forbidden(String),
    #[error(transparent)]
    Network(hyper_network::NetworkError),
    /// In Docker's words.
    #[error("{0}")]
    NoSuchPath(String),
    #[error("{0}")]
    ReadOnly(String),
    #[error("{0}: remove files in it, or give it a larger disk (--storage-opt size=)")]
    ContainerFull(String),
    #[error("multiple containers have an id that begins with `{0}`: give more digits")]
    AmbiguousContainer(String),
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse { name: String, holder: String },
    /// A value that the caller has to change.
    #[error("{0}")]
    Invalid(String),
    /// The request and the object's state exclude each other.
    #[error("{0}")]
    Conflict(String),
    /// Nothing to do: it is so already.
    #[error("{0}")]
    NotModified(String),
    /// Something this engine cannot do, by name.
    #[error("{0}")]
    Unsupported(String),
    /// The program of a container or an exec could not be run.
    #[error("{message}")]
    Program { fault: ProgramFault, message: String },
    /// The supervisor could not be started, or did not do what it was asked.
    #[error("container {id}: {what}: {why}")]
    Supervisor { id: String, what: &'static str, why: String },
    #[error("container {id}: {what} took longer than {seconds} s")]
    Deadline { id: String, what: &'static str, seconds: u64 },
    /// The image store's own words, which name the image.
    #[error(transparent)]
    Image(Box<hyper_image::Error>),
    #[error("the container's writable disk")]
    Disk(#[source] hyper_disk::DiskError),
    #[error("{action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("state database {}: {why}", path.display())]
    Database { path: PathBuf, why: String },
    #[error("hyperd is shutting down")]
    ShuttingDown,
}

/// Why a program could not be run, as shells tell it by their exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramFault {
    /// 127: the program is not there.
    NotFound,
    /// 126: it is there, and cannot be executed.
    NotExecutable,
    /// 126 for Docker: the user or group of the spec is unknown in the image.
    UnknownUser,
}

impl ProgramFault {
    /// The exit code that Docker reports.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable | Self::UnknownUser => 126,
        }
    }
}

/// What a caller does about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    Invalid,
    Unauthorized,
    Forbidden,
    Conflict,
    NotModified,
    Unsupported,
    Unavailable,
    Internal,
}

impl Error {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoSuchContainer(_)
            | Self::NoSuchPod(_)
            | Self::NoSuchExec(_)
            | Self::NoSuchImage(_)
            | Self::NoSuchVolume(_)
            | Self::NoSuchNetwork(_)
            | Self::NoSuchService(_)
            | Self::NoSuchPath(_) => Kind::NotFound,
            Self::ReadOnly(_) | Self::Forbidden(_) => Kind::Forbidden,
            Self::AmbiguousContainer(_) | Self::Invalid(_) | Self::Program { .. } => Kind::Invalid,
            Self::NameInUse { .. } | Self::Conflict(_) => Kind::Conflict,
            Self::NotModified(_) => Kind::NotModified,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::ShuttingDown => Kind::Unavailable,
            Self::Image(error) if matches!(**error, hyper_image::Error::LoginRefused { .. }) => {
                Kind::Unauthorized
            }
            Self::Image(error) => image_kind(error.kind()),
            Self::Supervisor { .. }
            | Self::ContainerFull(_)
            | Self::Deadline { .. }
            | Self::Disk(_)
            | Self::Network(_)
            | Self::File { .. }
            | Self::Database { .. } => Kind::Internal,
        }
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

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// Result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn image_kind(kind: hyper_image::ErrorKind) -> Kind {
    use hyper_image::ErrorKind as Image;
    match kind {
        Image::Invalid => Kind::Invalid,
        Image::NotFound => Kind::NotFound,
        Image::Conflict => Kind::Conflict,
        // Not `Unauthorized`: Docker's client would ask for a password in the middle of a pull.
        Image::Unauthorized | Image::Forbidden => Kind::Forbidden,
        Image::Registry | Image::Corrupt | Image::NoSpace | Image::Internal => Kind::Internal,
    }
}
