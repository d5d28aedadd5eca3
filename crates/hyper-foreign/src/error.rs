//! Why a container of another runtime cannot be had.

use std::path::PathBuf;

/// Failures of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    #[error("{action} `{}`", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Invalid(String),
    #[error("{what} `{id}` is not there")]
    NotFound { what: &'static str, id: String },
    /// The runtime's own words, or those of its shim.
    #[error("{0}")]
    Refused(String),
    #[error("runtime `{runtime}`: {what}: {why}")]
    Shim { runtime: String, what: &'static str, why: String },
    #[error(transparent)]
    Network(#[from] hyper_network::NetworkError),
    #[error(transparent)]
    Pod(#[from] hyper_pod::PodError),
    #[error(transparent)]
    Log(#[from] hyper_stdio::LogError),
}

pub(crate) type Result<T, E = ForeignError> = std::result::Result<T, E>;

/// For `map_err`.
pub(crate) fn file<E: Into<std::io::Error>>(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> ForeignError {
    let path = path.into();
    move |source| ForeignError::File { action, path, source: source.into() }
}

/// Work that blocks, off the runtime's threads.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let gone = |_| ForeignError::Invalid("the supervisor is ending".to_owned());
    tokio::task::spawn_blocking(work).await.map_err(gone)?
}
